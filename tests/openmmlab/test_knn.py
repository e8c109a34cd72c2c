# SPDX-License-Identifier: Apache-2.0
"""Weighted kNN: an independent vote count, and features of mmpretrain's masked backbones."""

import math

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from mmpretrain.models.utils import SparseHelper
from mmpretrain.registry import HOOKS, MODELS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules
from PIL import Image

import prmim_adapters.openmmlab  # noqa: F401, registers InMemoryImages
from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone
from prmim_adapters.openmmlab.knn import KNNHook, extract_features, knn_classify, pool_features

register_all_modules()

TINY = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def vote_by_hand(train, labels, test, num_classes, k, temperature):
    """The definition, image by image, in double precision numpy."""
    predictions = []
    for image in test.double().numpy():
        similarity = [
            float(image @ row / (np.linalg.norm(image) * np.linalg.norm(row)))
            for row in train.double().numpy()
        ]
        votes = [0.0] * num_classes
        for index in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
            votes[int(labels[index])] += math.exp(similarity[index] / temperature)
        predictions.append(int(np.argmax(votes)))
    return predictions


@pytest.mark.parametrize(('k', 'temperature'), [(1, 0.07), (20, 0.07), (20, 10.0)])
def test_prediction_is_the_weighted_vote(k, temperature):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(60, 5, generator=generator) * 3
    test = torch.randn(37, 5, generator=generator)
    labels = torch.randint(0, 4, (60,), generator=generator)

    predicted = knn_classify(train, labels, test, 4, k, temperature, chunk_size=10)

    assert predicted.tolist() == vote_by_hand(train, labels, test, 4, k, temperature)


def test_near_neighbour_outvotes_a_far_majority_only_when_temperature_is_low():
    angles = torch.tensor([0.0, 0.9, 1.0, 1.1])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 1, 1, 1])
    test = torch.tensor([[1.0, 0.05]])

    assert knn_classify(train, labels, test, 2, k=4, temperature=0.07).item() == 0
    assert knn_classify(train, labels, test, 2, k=4, temperature=100.0).item() == 1


def test_small_temperature_does_not_overflow():
    train = torch.eye(3)
    labels = torch.tensor([2, 1, 0])
    assert knn_classify(train, labels, torch.eye(3), 3, k=3, temperature=1e-3).tolist() == [2, 1, 0]


def test_too_many_neighbours_is_an_error():
    with pytest.raises(ValueError, match='k=20 neighbours asked of 3 training features'):
        knn_classify(torch.eye(3), torch.arange(3), torch.eye(3), 3)
    with pytest.raises(ValueError, match='2 labels for 3 training features'):
        knn_classify(torch.eye(3), torch.arange(2), torch.eye(3), 3, k=1)


def batches(sizes, image_size=32):
    generator = torch.Generator().manual_seed(1)
    label = iter(range(100))
    for size in sizes:
        yield default_collate(
            [
                dict(
                    inputs=torch.randint(
                        0, 256, (3, image_size, image_size), generator=generator
                    ).byte(),
                    data_samples=DataSample().set_gt_label(next(label)),
                )
                for _ in range(size)
            ]
        )


def algorithm(name):
    preprocessor = dict(
        type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True
    )
    if name == 'MAE':
        model = dict(
            type='MAE',
            backbone=dict(type='MAEViT', arch=TINY, patch_size=8, img_size=32),
            neck=dict(
                type='MAEPretrainDecoder',
                num_patches=16,
                patch_size=8,
                embed_dim=32,
                decoder_embed_dim=16,
                decoder_depth=1,
                decoder_num_heads=2,
            ),
            head=dict(
                type='MAEPretrainHead',
                patch_size=8,
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
        )
    elif name == 'MaskFeat':
        model = dict(
            type='MaskFeat',
            backbone=dict(type='MaskFeatViT', arch=TINY, patch_size=8, img_size=32),
            neck=dict(type='LinearNeck', in_channels=32, out_channels=8, gap_dim=0),
            head=dict(type='MIMHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')),
            target_generator=dict(type='HOGGenerator'),
        )
    else:
        model = dict(
            type='SimMIM',
            backbone=dict(
                type='SimMIMSwinTransformer',
                img_size=32,
                stage_cfgs=dict(block_cfgs=dict(window_size=4)),
                arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2]),
                out_indices=(1,),
            ),
            neck=dict(type='SimMIMLinearDecoder', in_channels=32, encoder_stride=8),
            head=dict(
                type='SimMIMHead',
                patch_size=4,
                loss=dict(type='PixelReconstructionLoss', criterion='L1', channel=3),
            ),
        )
    torch.manual_seed(0)
    return MODELS.build({**model, 'data_preprocessor': preprocessor})


@pytest.mark.parametrize('name', ['MAE', 'MaskFeat', 'SimMIM'])
def test_features_are_the_average_over_unmasked_tokens(name):
    model = algorithm(name).train()

    features, labels = extract_features(model, batches([3, 2]))

    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert model.training
    assert model.backbone.training
    images = torch.cat(
        [(batch['inputs'].flip(1).float() - 120.0) / 60.0 for batch in batches([3, 2])]
    )
    model.eval()
    with torch.no_grad():
        output = model.backbone(images, None)[0]
    tokens = output.flatten(2).mT if name == 'SimMIM' else output[:, 1:]
    expected = tokens.sum(dim=1) / tokens.shape[1]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_class_token_on_request():
    model = algorithm('MAE').eval()

    features, _ = extract_features(model, batches([2]), class_token=True)

    images = (next(iter(batches([2])))['inputs'].flip(1).float() - 120.0) / 60.0
    with torch.no_grad():
        expected = model.backbone(images, None)[0][:, 0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_class_token_of_a_backbone_without_one_is_an_error():
    with pytest.raises(ValueError, match='SimMIMSwinTransformer has no class token'):
        extract_features(algorithm('SimMIM'), batches([2]), class_token=True)


def test_features_of_another_branch_by_its_path():
    model = algorithm('MAE')
    model.teacher = torch.nn.ModuleDict(dict(backbone=algorithm('MAE').backbone))
    torch.nn.init.normal_(model.teacher['backbone'].patch_embed.projection.weight)

    own, _ = extract_features(model, batches([2]))
    other, _ = extract_features(model, batches([2]), backbone='teacher.backbone')

    assert (own - other).abs().max() > 0.1


def test_frozen_parts_stay_in_evaluation_mode():
    model = algorithm('MAE').train()
    model.backbone.layers[0].eval()
    extract_features(model, batches([2]))
    assert not model.backbone.layers[0].training
    assert model.backbone.layers[1].training


SPARSE = {
    name: dict(
        type=name,
        arch=dict(depths=[1, 1, 2, 1], channels=[4, 8, 16, 32]),
        out_indices=[0, 1, 2, 3],
        gap_before_output=False,
        use_grn=True,
    )
    for name in ('SparseConvNeXt', 'PackedSparseConvNeXt')
}
SPARSE['SparseResNet'] = dict(
    type='SparseResNet', depth=50, stem_channels=4, base_channels=2, out_indices=[0, 1, 2, 3]
)


@pytest.fixture
def spark(request):
    """SparK of 2 x 2 units; the global that its layers read is left as it was found."""
    before = SparseHelper._cur_active
    SparseHelper._cur_active = None
    torch.manual_seed(0)
    width = 64 if request.param == 'SparseResNet' else 32
    yield MODELS.build(
        dict(
            type='SparK',
            input_size=64,
            enc_dec_norm_cfg=dict(type='SparseLN2d', eps=1e-6),
            enc_dec_norm_dim=width,
            backbone=SPARSE[request.param],
            neck=dict(
                type='SparKLightDecoder',
                feature_dim=32,
                upsample_ratio=32,
                norm_cfg=dict(type='BN'),
            ),
            head=dict(
                type='SparKPretrainHead',
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
            data_preprocessor=dict(
                type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3
            ),
        )
    )
    SparseHelper._cur_active = before


@pytest.mark.parametrize('spark', list(SPARSE), indirect=True)
def test_sparse_backbone_sees_the_whole_image_whatever_was_masked_before(spark):
    untrained, _ = extract_features(spark, batches([2], 64))
    assert SparseHelper._cur_active is None
    mask = torch.tensor([[[[True, False], [False, False]]]] * 2)
    SparseHelper._cur_active = mask
    trained, _ = extract_features(spark, batches([2], 64))

    assert SparseHelper._cur_active is mask
    assert torch.equal(trained, untrained)
    SparseHelper._cur_active = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    images = (next(iter(batches([2], 64)))['inputs'].float() - 120.0) / 60.0
    with torch.no_grad():
        expected = spark.eval().backbone(images)[-1].mean(dim=(2, 3))
    torch.testing.assert_close(trained, expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize('spark', list(SPARSE), indirect=True)
def test_every_unit_of_an_image_counts_to_a_sparse_backbone(spark):
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    pool_features(spark.eval().backbone, images).square().sum().backward()
    per_unit = images.grad.abs().unfold(2, 32, 32).unfold(3, 32, 32).sum(dim=(0, 1, 4, 5))
    assert (per_unit > 0).all()


def test_beit_is_given_the_image_with_the_normalisation_of_its_encoder():
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='BEiT',
            backbone=dict(type='BEiTPretrainViT', arch=TINY, patch_size=8, img_size=32),
            neck=None,
            head=dict(
                type='BEiTV1Head',
                embed_dims=32,
                num_embed=16,
                loss=dict(type='CrossEntropyLoss'),
            ),
            data_preprocessor=dict(
                type='TwoNormDataPreprocessor',
                mean=[120.0] * 3,
                std=[60.0] * 3,
                second_mean=[-30.0] * 3,
                second_std=[7.0] * 3,
                to_rgb=True,
            ),
        )
    )

    features, labels = extract_features(model, batches([2, 1]))

    images = torch.cat([(b['inputs'].flip(1).float() - 120.0) / 60.0 for b in batches([2, 1])])
    with torch.no_grad():
        expected = model.eval().backbone(images, None)[0][:, 1:].mean(dim=1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert labels.tolist() == [0, 1, 2]


class Blobs(torch.utils.data.Dataset):
    """Images of two colours, the class."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.full((3, 32, 32), 30.0 if index % 2 else 220.0)
        image += torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % 2))


def blobs():
    return dict(
        batch_size=4,
        dataset=Blobs(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=default_collate,
    )


def runner_with(hook, model, folder):
    return Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=blobs(),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=None),
        default_scope='mmpretrain',
        experiment_name=folder.name,
        log_level='ERROR',
    )


def test_hook_logs_the_accuracy_at_the_start_at_the_interval_and_at_the_end(tmp_path):
    seen = []

    class Watch(KNNHook):
        def evaluate(self, runner):
            seen.append((runner.epoch, super().evaluate(runner)))

    loader = blobs()
    hook = Watch(loader, loader, num_classes=2, interval=2, k=3, at_start=True)
    model = algorithm('MAE')
    runner = runner_with(hook, model, tmp_path)
    runner.train()

    assert seen == [(0, 100.0), (1, 100.0), (2, 100.0)]
    assert runner.message_hub.get_scalar('val/knn_top1').current() == 100.0
    assert model.training


class Labelled(Blobs):
    """Says its labels, as mmpretrain's data sets do."""

    def get_gt_labels(self):
        return [index % 2 for index in range(len(self))]


class Negative(Labelled):
    """Marks an image without class by -1."""

    def get_gt_labels(self):
        return [-1, *super().get_gt_labels()[1:]]


class TwoClasses(Labelled):
    """Several classes an image."""

    def get_data_info(self, index):
        return dict(gt_label=[0, 1])


class Unlabelled(Blobs):
    """As self-supervised pre-training has them."""

    def __getitem__(self, index):
        return dict(super().__getitem__(index), data_samples=DataSample())


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('SimMIM', dict(class_token=True), 'has no class token'),
        ('MAE', dict(k=13), r'k=13 neighbours asked of the 12 images of .*: choose 1 <= k <= 12'),
        ('MAE', dict(num_classes=1), 'num_classes=1, but .*_dataloader has the label 1'),
        ('MAE', dict(dataset=Unlabelled()), r'an image has no label \(gt_label\)'),
        ('MAE', dict(dataset=Negative()), 'train_dataloader has the label -1: labels count from 0'),
        ('MAE', dict(dataset=TwoClasses()), 'has the label .*: expected one class number'),
        (
            'MAE',
            dict(backbone='bakbone'),
            r"backbone='bakbone': MAE has no such .*parts are .*neck",
        ),
        ('MAE', dict(backbone='backbone.nothing'), 'has no such network'),
    ],
)
def test_settings_are_checked_before_training(tmp_path, name, options, message):
    loader = blobs()
    loader['dataset'] = options.pop('dataset', Labelled())
    settings = dict(num_classes=2, k=3, interval=100) | options
    runner = runner_with(KNNHook(loader, loader, **settings), algorithm(name), tmp_path)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('wrapper', ['none', 'InMemoryImages', 'RepeatDataset', 'ConcatDataset'])
@pytest.mark.parametrize('labelled', [True, False])
def test_data_sets_of_files_are_checked_through_any_wrapper(tmp_path, wrapper, labelled):
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        Image.new('L', (32, 32), 20 * label).save(tmp_path / str(label) / 'a.png')
    pipeline = [dict(type='LoadImageFromFile')]
    dataset = dict(
        type='CustomDataset', data_prefix=str(tmp_path), with_label=labelled, pipeline=pipeline
    )
    if wrapper != 'InMemoryImages':
        pipeline.append(dict(type='PackInputs'))
    if wrapper == 'RepeatDataset':
        dataset = dict(type=wrapper, times=2, dataset=dataset)
    elif wrapper == 'ConcatDataset':
        dataset = dict(type=wrapper, datasets=[dataset, dataset])
    elif wrapper == 'InMemoryImages':
        dataset = dict(type=wrapper, dataset=dataset)
    loader = dict(blobs(), dataset=dataset)
    runner = runner_with(KNNHook(loader, loader, num_classes=2, k=3), algorithm('MAE'), tmp_path)
    message = r'num_classes=2, but .* label 2: set num_classes=3' if labelled else 'no label'
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_trying_the_network_leaves_the_random_state_and_its_mode(tmp_path):
    model = algorithm('MAE').train()
    hook = KNNHook(blobs(), blobs(), num_classes=2, k=3)
    runner = runner_with(hook, model, tmp_path)
    state = torch.get_rng_state()
    hook.before_train(runner)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ('option', 'error'),
    [
        (dict(k=0), ValueError),
        (dict(interval=0), ValueError),
        (dict(num_classes=0), ValueError),
        (dict(temperature=0.0), ValueError),
        (dict(k=2.5), TypeError),
        (dict(at_start=1), TypeError),
        (dict(backbone=''), ValueError),
        (dict(test_dataloader=None), TypeError),
    ],
)
def test_options_out_of_range_are_refused_when_the_hook_is_built(option, error):
    with pytest.raises(error, match=f'KNNHook: {next(iter(option))}'):
        KNNHook(**(dict(train_dataloader={}, test_dataloader={}, num_classes=2) | option))


def test_hook_is_registered_for_configs():
    hook = HOOKS.build(
        dict(type='KNNHook', train_dataloader={}, test_dataloader={}, num_classes=10, k=5)
    )
    assert isinstance(hook, KNNHook)
    assert (hook.k, hook.interval, hook.num_classes) == (5, 10, 10)
