# SPDX-License-Identifier: Apache-2.0
"""A data set that is decoded once into a file gives what decoding it each time gives."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from torchvision.transforms import v2

from prmim_adapters.decode_data import decode, main, unpacked
from prmim_adapters.openmmlab.decoded import DecodedImages, labels_of

SQUARE = [dict(type='ResizeEdge', scale=24), dict(type='CenterCrop', crop_size=24)]


@pytest.fixture
def folder(tmp_path):
    """Images of different sizes, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(7):
        (tmp_path / f'class{number % 2}').mkdir(exist_ok=True)
        shape = 30 + number, 50 - 2 * number, 3
        path = tmp_path / f'class{number % 2}' / f'{number}.png'
        cv2.imwrite(str(path), rng.integers(0, 256, shape, dtype=np.uint8))
    return tmp_path


def images(folder, *steps):
    pipeline = [dict(type='LoadImageFromFile'), *steps]
    return dict(type='CustomDataset', data_root=str(folder), pipeline=pipeline)


def loader_of(dataset, **options):
    sampler = dict(type='DefaultSampler', shuffle=False)
    return Runner.build_dataloader(
        dict(dataset=dataset, batch_size=3, num_workers=0, sampler=sampler, **options)
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_pixels_and_labels_are_those_of_the_files(folder, tmp_path, workers):
    file = tmp_path / 'images.npy'
    assert decode(images(folder, *SQUARE), file, workers) == 7
    dataset = dict(type='DecodedImages', file=str(file))
    expected = dict(type='InMemoryImages', dataset=images(folder, *SQUARE))
    collate = dict(collate_fn=dict(type='ready_batch'))
    batches = zip(loader_of(dataset, **collate), loader_of(expected, **collate), strict=True)
    for ours, theirs in batches:
        assert torch.equal(ours['inputs'], theirs['inputs'])
        labels = [[s.gt_label.item() for s in b['data_samples']] for b in (ours, theirs)]
        assert labels[0] == labels[1]
    ours, theirs = DATASETS.build(dataset)[5], DATASETS.build(expected)[5]
    assert torch.equal(ours['inputs'], theirs['inputs'])
    assert sorted(path.name for path in tmp_path.glob('images*')) == [
        'images.npy',
        'images.npy.labels.npy',
    ]


def test_images_without_labels(folder, tmp_path):
    file = tmp_path / 'images.npy'
    np.save(labels_of(file), [1])  # of another file of that name
    packed = dict(type='mmpretrain.PackInputs')
    dataset = unpacked(dict(images(folder, *SQUARE, packed), with_label=False))
    assert dataset['pipeline'] == [dict(type='LoadImageFromFile'), *SQUARE]
    assert decode(dataset, file) == 7
    assert 'gt_label' not in DecodedImages(str(file))[3]['data_samples']
    assert DecodedImages(str(file))[3]['inputs'].shape == (3, 24, 24)


def test_pixels_stay_in_the_file(folder, tmp_path):
    file = tmp_path / 'images.npy'
    decode(images(folder, *SQUARE), file)
    dataset = DecodedImages(str(file))
    assert len(pickle.dumps(dataset)) < 500
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).images, dataset.images)
    dataset.images[0] = 0
    assert not torch.equal(DecodedImages(str(file)).images[0], dataset.images[0])


def test_old_images_never_have_new_labels(folder, tmp_path, monkeypatch):
    file = tmp_path / 'images.npy'
    decode(images(folder, *SQUARE), file)

    def full(*_):
        raise OSError('no space left')

    monkeypatch.setattr(np, 'save', full)
    with pytest.raises(OSError, match='no space left'):
        decode(images(folder, *SQUARE), file, force=True)
    with pytest.raises(FileNotFoundError):
        DecodedImages(str(file))


def test_errors(folder, tmp_path):
    file = tmp_path / 'images.npy'
    with pytest.raises(ValueError, match=r'image 1 has \(32, 46\) pixels, those before it'):
        decode(images(folder), file)
    assert not file.exists()
    with pytest.raises(FileNotFoundError, match=r'decode_data CONFIG .*npy'):
        DecodedImages(str(file))
    file.write_bytes(b'no array')
    with pytest.raises(ValueError, match=r'cannot be read as a \.npy file .* it is written by'):
        DecodedImages(str(file))
    file.unlink()
    decode(images(folder, *SQUARE), file)
    with pytest.raises(FileExistsError, match='--force'):
        decode(images(folder, *SQUARE), file)
    np.save(labels_of(file), [1, 2])
    with pytest.raises(ValueError, match='and N labels or none, found uint8'):
        DecodedImages(str(file))


def test_the_command_decodes_the_training_set_of_a_config(folder, tmp_path, capsys):
    dataset = images(folder, *SQUARE, dict(type='PackInputs'))
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmpretrain'\nmodel = dict(type='MAE')\n"
        f'train_dataloader = dict(dataset={dataset})\n'
    )
    file = str(tmp_path / 'images.npy')
    command = [sys.executable, '-m', 'prmim_adapters.decode_data', str(config), file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.endswith(f'7 images in {file}\n'), done.stderr
    for wrong, said in ((str(config), '--force to replace it'), ('gone.py', 'no such config')):
        with pytest.raises(SystemExit) as ended:
            main([wrong, file])
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert error.startswith('Error: ') and error.count('\n') == 1 and said in error


@pytest.mark.parametrize(
    'crop',
    [
        dict(type='BatchRandomResizedCrop', size=16, scale=(0.2, 1.0)),
        dict(type='RandomResizedCrop', size=16, scale=(0.2, 1.0), interpolation=3),
    ],
)
def test_images_of_different_sizes_are_cropped_one_by_one_on_the_device(folder, crop):
    """What v2 makes of each image, and what mmpretrain's preprocessor makes of that."""
    loader = loader_of(
        images(folder, dict(type='PackInputs')), collate_fn=dict(type='pseudo_collate')
    )
    batch = next(iter(loader))
    options = dict(mean=[120.0, 110, 100], std=[60.0, 61, 62], to_rgb=True)
    preprocessor = MODELS.build(dict(type='DeviceAugment', augment=[crop], **options))
    torch.manual_seed(1)
    ours = preprocessor(batch, True)
    torch.manual_seed(1)
    by_itself = preprocessor.augment[0]
    parts = torch.cat([by_itself(image[None]) for image in batch['inputs']])
    if crop['type'] == 'RandomResizedCrop':
        assert isinstance(by_itself, v2.RandomResizedCrop)
    theirs = MODELS.build(dict(type='SelfSupDataPreprocessor', **options))
    expected = theirs(dict(inputs=parts, data_samples=None))['inputs']
    assert ours['inputs'].shape == (3, 3, 16, 16)
    assert torch.equal(ours['inputs'], expected)
    assert [sample.img_path for sample in ours['data_samples']] == [
        sample.img_path for sample in batch['data_samples']
    ]


def test_images_of_different_sizes_that_stay_so(folder):
    loader = loader_of(
        images(folder, dict(type='PackInputs')), collate_fn=dict(type='pseudo_collate')
    )
    preprocessor = MODELS.build(dict(type='DeviceAugment'))
    for training in (False, True):
        with pytest.raises(ValueError, match=r'sizes \[\(30, 50\), .* begin augment with a crop'):
            preprocessor(next(iter(loader)), training)
