# SPDX-License-Identifier: Apache-2.0
"""Partial reconstruction in FCMAE's decoder against a dense computation written here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.accounting import activation_bytes, count_macs
from prmim_adapters.frameworks.fcmae import masked_units
from prmim_adapters.testing import recorded_partitions


def build(arch=None, embed_dim=32, width=16, img_size=160, execution='packed', depth=2):
    torch.manual_seed(0)
    model = MODELS.build(
        {
            'type': 'FCMAE',
            'backbone': {
                'type': 'FCMAEConvNeXt',
                'arch': arch or {'depths': [1, 1, 1, 1], 'channels': [4, 8, 16, 32]},
                'img_size': img_size,
                'execution': execution,
            },
            'neck': {
                'type': 'FCMAEPretrainDecoder',
                'embed_dim': embed_dim,
                'decoder_embed_dim': width,
                'decoder_depth': depth,
            },
            'head': {
                'type': 'MAEPretrainHead',
                'norm_pix': True,
                'patch_size': 32,
                'loss': {'type': 'PixelReconstructionLoss', 'criterion': 'L2'},
            },
        }
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def dense_decoder(neck, latent, partition):
    """Features of all units; thrown ones are held at zero through every block."""
    batch, length = len(latent), partition.length
    present = torch.zeros(batch, length).scatter(1, partition.present, 1.0)
    present = present.view(batch, 1, *partition.grid)
    kept = torch.zeros(batch, length).scatter(1, partition.kept, 1.0).view_as(present)
    x = neck.proj(latent) * (present - kept) + neck.mask_token * kept
    for block in neck.decoder:
        y = block.depthwise_conv(x).movedim(1, -1)
        y = F.layer_norm(y, y.shape[-1:], block.norm.weight, block.norm.bias, 1e-6)
        y = F.gelu(block.pointwise_conv1(y)) * present.movedim(1, -1)
        norm = (y**2).sum(dim=(1, 2), keepdim=True).sqrt()
        response = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        y = block.pointwise_conv2(block.grn.gamma * y * response + block.grn.beta + y)
        x = (x + y.movedim(-1, 1)) * present
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize('throw_ratio', [0.2, 0.4, 0.56])
def test_decoder_equals_the_dense_computation_with_zeroed_units(throw_ratio):
    model = prmim.attach(build(), throw_ratio=throw_ratio, aggregator='distance')
    latent, _, visible = model.backbone(torch.randn(3, 3, 160, 160))
    with recorded_partitions(model) as seen:
        pred = model.neck(latent, visible)
    ((_, partition),) = seen
    assert torch.equal(partition.visible, visible)
    features = dense_decoder(model.neck, latent, partition)
    present = torch.stack([f[i] for f, i in zip(features, partition.present, strict=True)])
    thrown = model.neck.partial.aggregators[0](present, partition, None)
    kept = present[:, visible.shape[1] :]
    weight, bias = model.neck.pred.weight.flatten(1), model.neck.pred.bias
    assert_close(pred, F.linear(torch.cat((kept, thrown), 1), weight, bias), rtol=1e-4, atol=1e-4)


def test_thrown_units_do_not_reach_the_decoder():
    # Moving the mask token moves the predictions; a unit that is thrown is no mask token to it.
    model = prmim.attach(build(depth=1), throw_ratio=0.56, aggregator=None)
    latent, _, visible = model.backbone(torch.randn(1, 3, 160, 160))
    seen = []
    model.neck.decoder[0].pointwise_conv1.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape)
    )
    pred = model.neck(latent, visible)
    assert seen == [(1, 25 - 14, 16)]
    assert pred.shape == (1, 15 - 14, 3072)


def test_works_with_either_execution_alike():
    losses = []
    for execution in ('packed', 'dense'):
        model = build(execution=execution)
        torch.manual_seed(1)
        prmim.attach(model, throw_ratio=0.4)
        torch.manual_seed(2)
        losses.append(model.loss(torch.ones(2, 3, 160, 160).cumsum(-1).sin(), None)['loss'])
    assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize('ratio', [0.0, 0.3])
def test_images_that_are_not_square(ratio):
    """At ratio 0 the framework's loss; the decoder predicts units where they are."""
    images = torch.randn(2, 3, 64, 160)
    framework = build(img_size=(64, 160))
    ours = prmim.attach(build(img_size=(64, 160)), throw_ratio=ratio)
    losses = []
    for model in (framework, ours):
        torch.manual_seed(3)
        losses.append(model.loss(images, None)['loss'])
    losses[1].backward()
    if ratio == 0:
        assert_close(*losses)
    else:
        latent, mask, visible = ours.backbone(images)
        assert torch.equal(mask, masked_units(visible, 10))
        assert ours.neck(latent, visible).shape == (2, 6, 3072)


@pytest.mark.parametrize(
    ('part', 'name', 'value', 'message'),
    [
        ('head', 'patch_size', 16, r'head\.patch_size=16.*\(32, 32\).*3072 values'),
        ('neck', 'pred', torch.nn.Conv2d(16, 1024, 1), '3 channels, and 1 are predicted'),
    ],
)
def test_parts_that_disagree_about_a_unit_are_refused_at_attach(part, name, value, message):
    model = build()
    setattr(getattr(model, part), name, value)
    with pytest.raises(ValueError, match=message):
        prmim.attach(model, throw_ratio=0.3)


def test_ratio_is_checked_against_the_mask_that_the_model_draws():
    with pytest.raises(ValueError, match='the model masks 15 of them'):
        prmim.attach(build(), throw_ratio=0.6)


@pytest.mark.slow
def test_cost_of_tiny():
    batch = {'inputs': torch.randn(2, 3, 224, 224), 'data_samples': None}
    dense = build('tiny', 768, 512, 224, 'dense', depth=1)
    ours = prmim.attach(build('tiny', 768, 512, 224, depth=1), throw_ratio=0.5)
    full, less = count_macs(dense, batch), count_macs(ours, batch)
    assert full.by_module['neck'] / 1e9 == pytest.approx(0.2005, abs=1e-3)
    assert less.by_module['neck'] <= (1 - 0.39) * full.by_module['neck']
    assert less.total <= 0.43 * full.total
    assert activation_bytes(ours, batch) <= (1 - 0.45) * activation_bytes(dense, batch)
