# SPDX-License-Identifier: Apache-2.0
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10
from mmpretrain.registry import DATASETS, MODELS
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from prmim_adapters.accounting.batch import first_batch
from prmim_adapters.openmmlab.device_dataset import (
    BatchCrop,
    BatchRandomCrop,
    BatchRandomResizedCrop,
    resize_matrix,
)
from prmim_adapters.openmmlab.images import InMemoryImages, first_of_each


@pytest.fixture
def folder(tmp_path):
    """ImageFolder of 3 classes x 4 PNGs of 20 x 20; pixel (0, 0) tells class and number."""
    init_default_scope('mmpretrain')
    rng = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / f'class{label}').mkdir()
        for number in range(4):
            image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            image[0, 0] = (label, number, 7)
            cv2.imwrite(str(tmp_path / f'class{label}' / f'{number}.png'), image)
    return tmp_path


def folder_dataset(folder, **extra):
    source = dict(
        type='CustomDataset',
        data_prefix=str(folder),
        with_label=True,
        pipeline=[dict(type='LoadImageFromFile')],
    )
    return dict(type='InMemoryImages', dataset=source, **extra)


def loader_of(dataset, **extra):
    return Runner.build_dataloader(
        dict(
            dataset=dataset,
            batch_size=5,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            **extra,
        )
    )


def fixed_boxes(boxes):
    """A crop module whose boxes are given."""

    class Fixed(BatchCrop):
        def boxes(self, count, height, width):
            return torch.tensor(boxes, dtype=torch.float32)

    return Fixed


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [12, 32, 48])
def test_crops_equal_torchvision(interpolation, size):
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 28) * 255
    boxes = [(0, 0, 32, 28), (3, 5, 9, 20), (20, 1, 12, 7), (1, 1, 31, 13)]
    ours = fixed_boxes(boxes)(size, flip=0.0, interpolation=interpolation)(images)
    mode = v2.InterpolationMode(interpolation)
    for image, (top, left, h, w), got in zip(images, boxes, ours, strict=True):
        expected = tv.resized_crop(image, top, left, h, w, [size, size], mode, antialias=True)
        expected = expected.round().clamp(0, 255)
        # A value on the edge of rounding may fall on either side of it.
        assert (got - expected).abs().max() <= 1
        assert (got != expected).float().mean() < 0.005


def test_flip_mirrors_the_crop():
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    crop = fixed_boxes([(2, 3, 9, 10), (0, 0, 16, 16)])
    plain = crop(16, flip=0.0)(images)
    assert torch.equal(crop(16, flip=1.0)(images), plain.flip(-1))


def test_padded_crop_is_a_shift_with_zeros():
    images = torch.randint(1, 256, (1, 3, 8, 8), dtype=torch.uint8)
    got = fixed_boxes([(-2, 3, 8, 8)])(8, flip=0.0, interpolation='bilinear')(images)
    expected = torch.zeros(1, 3, 8, 8)
    expected[:, :, 2:, :5] = images[:, :, :6, 3:].float()
    assert torch.equal(got, expected)


def test_random_crop_reaches_every_corner_and_no_further():
    torch.manual_seed(0)
    boxes = BatchRandomCrop(size=32, padding=4).boxes(4000, 32, 32)
    for axis in (0, 1):
        assert set(boxes[:, axis].tolist()) == set(range(-4, 5))
    assert (boxes[:, 2:] == 32).all()


def test_random_resized_crop_has_torchvisions_distribution():
    torch.manual_seed(0)
    ours = BatchRandomResizedCrop(size=32, scale=(0.2, 1.0)).boxes(8000, 32, 32)
    reference = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    image = torch.empty(3, 32, 32)
    drawn = [reference.make_params([image]) for _ in range(8000)]
    keys = ('top', 'left', 'height', 'width')
    theirs = torch.tensor([[p[key] for key in keys] for p in drawn]).float()
    # The standard error of a mean is about 0.08 pixels here.
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.4
    assert (ours.std(0) - theirs.std(0)).abs().max() < 0.4
    for box in (ours, theirs):
        assert (box[:, 0] + box[:, 2]).max() <= 32
        assert (box[:, 1] + box[:, 3]).max() <= 32


def test_impossible_ratio_falls_back_to_the_largest_centre_crop():
    crop = BatchRandomResizedCrop(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    top, left, h, w = crop.boxes(1, 10, 21)[0].tolist()
    assert (h, w) == (10, 10)
    assert (top, left) == (0, 6)


def test_rows_of_a_resize_matrix_sum_to_one():
    matrix = resize_matrix(torch.tensor([3.0]), torch.tensor([11.0]), 7, 20, 'bicubic')
    torch.testing.assert_close(matrix.sum(2), torch.ones(1, 7))
    assert (matrix[..., :3] == 0).all()
    assert (matrix[..., 14:] == 0).all()


def test_images_and_labels_are_those_of_the_folder(folder):
    dataset = loader_of(folder_dataset(folder)).dataset
    assert isinstance(dataset, InMemoryImages)
    assert dataset.images.shape == (12, 3, 20, 20)
    assert dataset.images.dtype == torch.uint8
    assert dataset.images[:, :, 0, 0].tolist() == [[c, n, 7] for c in range(3) for n in range(4)]
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_mmpretrains_cifar10(tmp_path, monkeypatch):
    """Files in the format of CIFAR-10's archive, whose checksums are left out of the check."""
    init_default_scope('mmpretrain')
    (tmp_path / CIFAR10.base_folder).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    entry = dict(data=pixels, labels=[0, 1, 2, 0, 1, 2])
    (tmp_path / CIFAR10.base_folder / 'batch').write_bytes(pickle.dumps(entry))
    monkeypatch.setattr(CIFAR10, 'train_list', [['batch', None]])
    monkeypatch.setattr(CIFAR10, 'test_list', [])
    source = dict(type='CIFAR10', data_root=str(tmp_path), split='train', pipeline=[])
    dataset = DATASETS.build(dict(type='InMemoryImages', dataset=source))
    assert torch.equal(dataset.images, torch.from_numpy(pixels).view(6, 3, 32, 32))
    assert dataset.labels.tolist() == entry['labels']


def test_batches_equal_the_ordinary_collation(folder):
    fast = loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch'))
    ordinary = [
        torch.stack([fast.dataset[i]['inputs'] for i in range(start, min(start + 5, 12))])
        for start in (0, 5, 10)
    ]
    batches = list(fast)
    assert [len(b['data_samples']) for b in batches] == [5, 5, 2]
    assert all(torch.equal(b['inputs'], o) for b, o in zip(batches, ordinary, strict=True))
    labels = [int(s.gt_label) for b in batches for s in b['data_samples']]
    assert labels == fast.dataset.labels.tolist()


def test_a_wrapped_dataset_gives_the_same_batches(folder):
    wrapper = dict(type='RepeatDataset', dataset=folder_dataset(folder), times=2)
    batches = list(loader_of(wrapper, collate_fn=dict(type='ready_batch')))
    single = DATASETS.build(folder_dataset(folder))
    assert torch.equal(
        torch.cat([batch['inputs'] for batch in batches]), torch.cat([single.images] * 2)
    )
    labels = [int(s.gt_label) for batch in batches for s in batch['data_samples']]
    assert labels == single.labels.tolist() * 2


def test_the_cost_hook_gets_its_batch(folder, tmp_path):
    runner = Runner(
        model=classifier(type='mmpretrain.DeviceAugment'),
        work_dir=str(tmp_path / 'work'),
        train_dataloader=loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        experiment_name=tmp_path.name,
        log_level='ERROR',
    )
    batch = first_batch(runner.train_dataloader, runner.model, 3)
    images = runner.train_dataloader.dataset.images[:3]
    assert torch.equal(batch['inputs'], (images.flip(1).float() - 120.0) / 60.0)
    assert [int(sample.gt_label) for sample in batch['data_samples']] == [0, 0, 0]


@pytest.mark.parametrize('training', [False, True])
def test_labels_go_where_the_images_go(folder, training):
    batch = next(iter(loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch'))))
    crop = dict(type='BatchRandomResizedCrop', size=16)
    preprocessor = MODELS.build(dict(type='DeviceAugment', augment=[crop])).to('meta')
    result = preprocessor(batch, training)
    assert result['inputs'].device.type == 'meta'
    assert {sample.gt_label.device.type for sample in result['data_samples']} == {'meta'}
    assert {sample.gt_label.device.type for sample in batch['data_samples']} == {'cpu'}


def test_crops_are_the_same_under_autocast():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    crop = fixed_boxes([(0, 0, 32, 32), (3, 5, 9, 20), (20, 1, 12, 7), (1, 1, 31, 13)])(24)
    torch.manual_seed(1)
    expected = crop(images)
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16):
        got = crop(images)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_without_augmentation_it_is_mmpretrains_preprocessor(folder):
    batch = next(iter(loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch'))))
    options = dict(mean=[120.0, 110, 100], std=[60.0, 61, 62], to_rgb=True)
    ours = MODELS.build(dict(type='DeviceAugment', **options))
    theirs = MODELS.build(dict(type='SelfSupDataPreprocessor', **options))
    for training in (False, True):
        expected = theirs(dict(batch), training)['inputs']
        assert torch.equal(ours(dict(batch), training)['inputs'], expected)


def test_augmentation_only_in_training_and_repeatable(folder):
    batch = next(iter(loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch'))))
    crop = dict(type='BatchRandomResizedCrop', size=16, scale=(0.2, 1.0))
    preprocessor = MODELS.build(dict(type='DeviceAugment', augment=[crop]))
    assert preprocessor(batch, False)['inputs'].shape == (5, 3, 20, 20)
    torch.manual_seed(3)
    first = preprocessor(batch, True)['inputs']
    second = preprocessor(batch, True)['inputs']
    torch.manual_seed(3)
    assert torch.equal(preprocessor(batch, True)['inputs'], first)
    assert first.shape == (5, 3, 16, 16)
    assert not torch.equal(first, second)


def test_masks_for_frameworks_that_take_them_from_the_data(folder):
    batch = next(iter(loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch'))))
    generator = dict(
        type='SimMIMMaskGenerator',
        input_size=16,
        mask_patch_size=4,
        model_patch_size=4,
        mask_ratio=0.5,
    )
    preprocessor = MODELS.build(dict(type='DeviceAugment', mask_generator=generator))
    masks = torch.stack([s.mask for s in preprocessor(batch, True)['data_samples']])
    assert masks.shape == (5, 4, 4)
    assert (masks.sum(dim=(1, 2)) == 8).all()
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    assert 'mask' not in preprocessor(batch, False)['data_samples'][0]


def test_first_of_each_class():
    labels = np.array([1, 0, 0, 1, 2, 2, 0])
    assert first_of_each(labels, 2).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match='per_class=3, but one class has 2 images'):
        first_of_each(labels, 3)


def test_different_sizes_are_refused(folder):
    cv2.imwrite(str(folder / 'class0' / 'odd.png'), np.zeros((9, 20, 3), np.uint8))
    with pytest.raises(ValueError, match='images of different sizes'):
        loader_of(folder_dataset(folder))


def test_unknown_names_are_refused():
    with pytest.raises(TypeError, match=r"augment=\{'type': .*: expected a list of configs"):
        MODELS.build(dict(type='mmpretrain.DeviceAugment', augment=dict(type='BatchRandomCrop')))
    with pytest.raises(ValueError, match="augmentation 'Sharpen2'"):
        MODELS.build(dict(type='mmpretrain.DeviceAugment', augment=[dict(type='Sharpen2')]))
    with pytest.raises(
        ValueError, match="interpolation='nearest': allowed are 'bicubic', 'bilinear'"
    ):
        BatchRandomResizedCrop(size=8, interpolation='nearest')


def classifier(**preprocessor):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                type='VisionTransformer',
                arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32),
                img_size=20,
                patch_size=5,
            ),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
            data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True, **preprocessor),
        )
    )


def test_classifier_takes_the_same_images_as_from_files(folder):
    batch = next(iter(loader_of(folder_dataset(folder), collate_fn=dict(type='ready_batch'))))
    losses = []
    for kind in ('DeviceAugment', 'ClsDataPreprocessor'):
        model = classifier(type=f'mmpretrain.{kind}').eval()
        data = model.data_preprocessor(batch, training=True)
        losses.append(model(**data, mode='loss')['loss'])
    assert losses[0] == losses[1]
    assert losses[0] > 0


def test_mixing_of_images_is_refused():
    with pytest.raises(ValueError, match='DeviceAugment cannot mix images'):
        MODELS.build(dict(type='mmpretrain.DeviceAugment', batch_augments=dict(type='Mixup')))


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (dict(type='BatchRandomResizedCrop', size=0), 'BatchRandomResizedCrop: size=0 must be at'),
        (dict(type='BatchRandomResizedCrop', size=(32, 32)), r'size=\(32, 32\) \(tuple\)'),
        (dict(type='BatchRandomResizedCrop', size=32, scale=(1.0, 0.2)), 'the first must not be'),
        (dict(type='BatchRandomResizedCrop', size=32, scale=0.5), 'expected the smallest and the'),
        (dict(type='BatchRandomResizedCrop', size=32, ratio=(0, 1)), 'ratio=0: must be between'),
        (dict(type='BatchRandomResizedCrop', size=32, flip=2), 'flip=2: must be between 0 and 1'),
        (dict(type='BatchRandomCrop', size=32, padding=-1), 'padding=-1 must be at least 0'),
        (dict(size=32), 'augmentation None: choose'),
    ],
)
def test_augmentations_are_checked_when_they_are_built(step, message):
    with pytest.raises((TypeError, ValueError), match=message):
        MODELS.build(dict(type='mmpretrain.DeviceAugment', augment=[step]))


def test_an_augmentation_is_found_by_its_qualified_name_too():
    """As mmengine writes a class of a pure-Python config."""
    step = dict(type='torchvision.transforms.v2.RandomHorizontalFlip', p=1.0)
    made = MODELS.build(dict(type='mmpretrain.DeviceAugment', augment=[step]))
    assert isinstance(made.augment[0], v2.RandomHorizontalFlip)
