# SPDX-License-Identifier: Apache-2.0
"""Partial reconstruction in SparK's decoder against dense computations on zero-filled maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch.testing import assert_close

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs
from prmim_adapters.accounting.closed_form import predicted_saving
from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone


def build(backbone='SparseConvNeXt', width=32, arch=None, input_size=160, channels=3, **options):
    torch.manual_seed(0)
    neck = {'feature_dim': width, 'upsample_ratio': 32, 'norm_cfg': {'type': 'BN'}}
    encoder = 64 if arch is None else 768
    model = MODELS.build(
        {
            'type': 'SparK',
            'input_size': input_size,
            'enc_dec_norm_cfg': {'type': 'SparseLN2d', 'eps': 1e-6},
            'enc_dec_norm_dim': encoder,
            'backbone': {
                'type': backbone,
                'in_channels': channels,
                'arch': arch or {'depths': [1, 1, 1, 1], 'channels': [8, 16, 32, 64]},
                'out_indices': [0, 1, 2, 3],
                'gap_before_output': False,
                'use_grn': True,
                'layer_scale_init_value': 0.0,
            },
            'neck': {'type': 'SparKLightDecoder', **neck, **options},
            'head': {
                'type': 'SparKPretrainHead',
                'loss': {'type': 'PixelReconstructionLoss', 'criterion': 'L2'},
            },
        }
    )
    model.init_weights()
    return model


@pytest.mark.parametrize('backbone', ['SparseConvNeXt', 'PackedSparseConvNeXt'])
def test_ratio_zero_has_the_gradients_of_the_framework(backbone):
    # in float64: gradients before a batch norm cancel to rounding errors in float32
    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    results = []
    for attached in (False, True):
        model = build(backbone).double()
        if attached:
            prmim.attach(model, throw_ratio=0)
        torch.manual_seed(1)
        loss = model.loss(images, None)['loss']
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (expected, theirs), (actual, ours) = results
    assert_close(actual, expected, rtol=1e-12, atol=0)
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, grad in theirs.items():
        assert_close(ours[name], grad, rtol=1e-8, atol=1e-11 * scale, msg=name)


def test_decoder_equals_the_dense_one_on_zero_filled_maps():
    # In eval mode batch norm is pointwise, so the dense decoder can be held at zero layer by layer.
    model = build().double().eval()
    prmim.attach(model, throw_ratio=0.4, aggregator=None)
    torch.manual_seed(1)
    active = model.mask((2, 3, 160, 160), 'cpu')
    partition = model.neck.partial.current()
    thrown = partition.thrown
    present = torch.ones(2, 25, dtype=torch.float64)
    present = present.scatter(1, thrown, 0.0).view(2, 1, 5, 5)
    maps = [torch.randn(2, 32 >> i, 5 << i, 5 << i).double() for i in range(4)]

    def held(x):
        return x * F.interpolate(present, size=x.shape[-2:])

    x = 0
    for i, module in enumerate(model.neck.decoder):
        x = held(module.upsample(held(x + maps[i] if i < 4 else x)))
        (block,) = module.conv_blocks
        x = held(block.activate1(block.norm1(block.conv1(x))))
        x = held(block.activate2(block.norm2(block.conv2(x))))
    pixels = model.head.patchify(model.neck.proj(x))
    projected = [model.enc_dec_projectors[0]._units().cut(m) for m in maps]
    pred = model.neck(projected)
    expected = model.neck.partial.at_supervised(pixels, partition)
    assert pred.shape == (2, 25 - int(active[0].sum()) - 10, 3072)
    assert_close(pred, expected, rtol=1e-10, atol=1e-10)


def test_batch_norm_counts_present_units_only():
    model = prmim.attach(build(), throw_ratio=0.4)
    seen = []
    model.neck.decoder[1].conv_blocks[0].norm2.register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape))
    )
    model.loss(torch.randn(2, 3, 160, 160), None)
    assert seen == [(2 * 15, 8, 4, 4)]


def test_closed_form_predicts_the_count():
    batch = {'inputs': torch.randn(2, 3, 160, 160), 'data_samples': None}
    full = count_macs(build(), batch).total
    ours = prmim.attach(build(), throw_ratio=0.4, aggregator='distance')
    count = count_macs(ours, batch)
    light = sum(m for n, m in count.by_module.items() if n.endswith('partial.aggregators'))
    assert predicted_saving(ours, batch) == pytest.approx(full - count.total + light, rel=0.01)


@pytest.mark.slow
def test_cost_of_tiny():
    batch = {'inputs': torch.randn(2, 3, 224, 224), 'data_samples': None}
    options = {'width': 512, 'arch': 'tiny', 'input_size': 224}
    full = count_macs(build(**options), batch)
    ours = count_macs(prmim.attach(build(**options), throw_ratio=0.5), batch)
    packed = count_macs(
        prmim.attach(build('PackedSparseConvNeXt', **options), throw_ratio=0.5), batch
    )
    # counted here; test_closed_form_predicts_the_count has the saving by arithmetic
    measured = [count.total / 1e9 for count in (full, ours, packed)]
    assert measured == pytest.approx([9.523, 7.336, 4.761], rel=2e-3)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'kernel_size': 6}, r'neck.kernel_size=\[6\]: partial reconstruction needs the default'),
        ({'upsample_ratio': 16}, 'set neck.upsample_ratio=32'),
    ],
)
def test_decoders_that_units_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        prmim.attach(build(**change))


def test_detach_restores_every_class():
    model = build()
    classes = [type(module) for module in model.modules()]
    prmim.detach(prmim.attach(model, throw_ratio=0.4))
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize('channels', [1, 4])
def test_images_that_the_decoder_cannot_predict_are_refused_at_attach(channels):
    model = build(channels=channels)
    with pytest.raises(ValueError, match=rf'{channels} channels, and 3 are predicted'):
        prmim.attach(model, throw_ratio=0.25)


def test_the_head_cuts_units():
    model = build()
    model.head.patch_size = 16
    with pytest.raises(ValueError, match=r'head\.patch_size=16.*set head\.patch_size=32'):
        prmim.attach(model, throw_ratio=0.25)


def test_another_last_layer_predicts_as_many_channels_as_the_images_have():
    model = build(channels=4)
    model.neck.proj = torch.nn.Conv2d(model.neck.proj.in_channels, 4, 1)
    prmim.attach(model, throw_ratio=0.25)
    assert model.loss(torch.randn(2, 4, 160, 160), None)['loss'].isfinite()
