# SPDX-License-Identifier: Apache-2.0
"""Weighted kNN: an independent vote count, and features of mmpretrain's masked backbones."""

import pytest
import torch
from knn_models import TINY, algorithm
from mmengine.dataset import default_collate
from mmpretrain.models.utils import SparseHelper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules

import prmim_adapters.openmmlab  # noqa: F401, registers InMemoryImages
from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone
from prmim_adapters.openmmlab.knn import extract_features, pool_features

register_all_modules()


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
