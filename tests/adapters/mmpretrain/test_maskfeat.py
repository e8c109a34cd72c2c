# SPDX-License-Identifier: Apache-2.0
"""MaskFeat against the dense encoder with thrown keys masked, and its loss by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of
from prmim_adapters.testing import recorded_partitions

MASKED, THROWN = 78, 60


def maskfeat(**backbone):
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    backbone = dict(type='MaskFeatViT', arch=arch, img_size=112, patch_size=8) | backbone
    return dict(
        type='MaskFeat',
        backbone=backbone,
        neck=dict(type='LinearNeck', in_channels=16, out_channels=27, norm_cfg=None),
        head=dict(type='MIMHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')),
        target_generator=dict(type='HOGGenerator', nbins=9, pool=8, gaussian_window=16),
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = MODELS.build(maskfeat())
    model.init_weights()
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(2, 196, generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :MASKED], 1).view(2, 14, 14)
    return dict(
        inputs=torch.randn(2, 3, 112, 112, generator=generator),
        data_samples=[DataSample().set_mask(m) for m in mask],
    )


def mask_of(batch):
    return torch.stack([sample.mask for sample in batch['data_samples']]).flatten(1).bool()


def test_encoder_equals_the_dense_one_with_thrown_keys_masked(model, batch):
    model.eval()
    dense = copy.deepcopy(model.backbone)
    prmim.attach(model, throw_ratio=THROWN / 196)
    with recorded_partitions(model) as seen:
        found = model.backbone(batch['inputs'], mask_of(batch))
    partition = seen[0][1]
    thrown, index = partition.thrown, partition.masked
    assert found.shape == (2, 1 + MASKED, 16)

    absent = torch.zeros(2, 1, 1, 197, dtype=torch.bool)
    absent[torch.arange(2)[:, None], 0, 0, thrown + 1] = True
    scaled_dot_product = F.scaled_dot_product_attention

    def masked_attention(q, k, v, **options):
        return scaled_dot_product(q, k, v, attn_mask=~absent, **options)

    for layer in dense.layers:
        layer.attn.scaled_dot_product_attention = lambda q, k, v, attn_mask=None, **options: (
            masked_attention(q, k, v, **options)
        )
    expected = dense(batch['inputs'], mask_of(batch))
    kept = index[:, : MASKED - THROWN] + 1
    expected_kept = expected.gather(1, kept[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found[:, 1 : 1 + MASKED - THROWN], expected_kept, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ('options', 'weight'),
    [({}, 1.0), ({'thrown_weight': 0.25}, 0.25), ({'aggregator': None}, 0.0)],
    ids=['all masked tokens', 'thrown ones at a quarter', 'kept ones only'],
)
def test_loss_is_the_weighted_mean_over_masked_tokens(model, batch, options, weight):
    prmim.attach(model, throw_ratio=THROWN / 196, **options)
    predictions = []
    hook = model.neck.register_forward_hook(lambda m, a, out: predictions.append(out[0]))
    with recorded_partitions(model) as seen:
        loss = model.loss(**batch)['loss']
    hook.remove()
    index = partial_of(model).supervised(seen[0][1])
    hog = model.target_generator(batch['inputs'])
    target = hog.gather(1, index[..., None].expand(-1, -1, 27))
    error = (predictions[0].view(2, -1, 27)[:, 1:] - target).square().mean(-1)
    weights = torch.ones_like(error)
    weights[:, MASKED - THROWN :] = weight
    torch.testing.assert_close(loss, (error * weights).sum() / weights.sum())


def test_neck_predicts_supervised_tokens_only(model, batch):
    prmim.attach(model, throw_ratio=THROWN / 196)
    rows = []
    hook = model.neck.register_forward_pre_hook(lambda m, args: rows.append(len(args[0][0])))
    model.loss(**batch)
    hook.remove()
    assert rows == [2 * (1 + MASKED)]


def test_features_of_whole_images_are_unchanged(model, batch):
    model.eval()
    expected = model.extract_feat(batch['inputs'])
    found = prmim.attach(model, throw_ratio=0.25).extract_feat(batch['inputs'])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_largest_ratio_keeps_one_token(model, batch):
    prmim.attach(model, throw_ratio=77 / 196)
    assert model.loss(**batch)['loss'].isfinite()
    prmim.detach(model)
    prmim.attach(model, throw_ratio=78 / 196)
    with pytest.raises(ValueError, match='78 masked tokens of 196, so 0 to 77 can be thrown'):
        model.loss(**batch)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(img_size=(64, 112)), r'targets for 14x14 patches, and the backbone has 8x14'),
        (dict(img_size=64), r'the backbone has 8x8: set img_size to 14 times patch_size'),
        (dict(patch_cfg=dict(in_channels=1)), 'takes images of 3 channels, and the backbone 1'),
    ],
)
def test_images_that_the_targets_do_not_fit_are_refused(change, message):
    model = MODELS.build(maskfeat(**change))
    with pytest.raises(ValueError, match=message):
        prmim.attach(model, 0.25)
