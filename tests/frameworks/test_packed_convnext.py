# SPDX-License-Identifier: Apache-2.0
"""Packed execution against a dense masked ConvNeXt written here, and against mmpretrain's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import ConvNeXt, SparseConvNeXt
from mmpretrain.models.utils import SparseHelper
from mmpretrain.registry import MODELS
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from prmim_adapters.frameworks.grn import GRN_SCOPES
from prmim_adapters.frameworks.packed_convnext import PackedSparseConvNeXt

ARCH = {'depths': [1, 1, 2, 1], 'channels': [8, 16, 32, 64]}
V2 = {'use_grn': True, 'layer_scale_init_value': 0.0}


def build(cls=PackedSparseConvNeXt, **options):
    """A backbone with all four outputs whose every parameter matters, in float64."""
    torch.manual_seed(0)
    options = {'arch': ARCH, 'gap_before_output': False, **V2, **options}
    model = cls(out_indices=(0, 1, 2, 3), **options).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def random_mask(grid=(4, 4), active=6, batch=3):
    """(B, 1, h, w) bool, True = active."""
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(batch, grid[0] * grid[1], generator=generator).argsort(dim=1)
    return (order < active).view(batch, 1, *grid)


def images(grid=(4, 4), batch=3):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(
        batch, 3, grid[0] * 32, grid[1] * 32, generator=generator, dtype=torch.float64
    )


def run(model, x, active):
    SparseHelper._cur_active = active
    return model(x)


def reference(model, x, active, scope):
    """ConvNeXt V2 under a mask, from plain functions on dense maps."""
    outs = []
    for downsample, stage in zip(model.downsample_layers, model.stages, strict=True):
        for layer in downsample:
            x = reference_layer(layer, x)
            x = x * upsampled(active, x)
        for block in stage:
            mask = upsampled(active, x)
            y = block.depthwise_conv._conv_forward(
                x, block.depthwise_conv.weight, block.depthwise_conv.bias
            )
            y = reference_layer(block.norm, y) * mask
            y = F.gelu(F.linear(y.movedim(1, -1), *linear(block.pointwise_conv1)))
            counted = y if scope == 'image_with_inactive' else y * mask.movedim(1, -1)
            norm = (counted**2).sum(dim=(1, 2), keepdim=True)
            if scope == 'batch':
                norm = norm.sum(dim=0, keepdim=True)
            norm = norm.sqrt()
            response = norm / (norm.mean(-1, keepdim=True) + 1e-6)
            y = block.grn.gamma * y * response + block.grn.beta + y
            y = F.linear(y, *linear(block.pointwise_conv2)).movedim(-1, 1)
            x = x + y * mask
        outs.append(x)
    return outs


def linear(layer):
    return layer.weight, layer.bias


def reference_layer(layer, x):
    if isinstance(layer, torch.nn.Conv2d):
        return F.conv2d(x, layer.weight, layer.bias, stride=layer.stride)
    x = x.movedim(1, -1)
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-6).movedim(-1, 1)


def upsampled(active, x):
    return F.interpolate(active.to(x.dtype), size=x.shape[-2:])


def gradients(outs, model):
    """Gradients of a loss that tells all output values apart."""
    loss = sum((out * torch.cos(torch.arange(out.numel()).view_as(out))).sum() for out in outs)
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize('scope', GRN_SCOPES)
@pytest.mark.parametrize('grid', [(4, 4), (2, 5)])
def test_packed_equals_the_dense_masked_computation(scope, grid):
    model = build(grn_scope=scope)
    x, active = images(grid), random_mask(grid)
    outs = run(model, x, active)
    expected = reference(model, x, active, scope)
    for out, target in zip(outs, expected, strict=True):
        assert out.shape == target.shape
        assert_close(out, target, rtol=1e-11, atol=1e-11)
    for grad, target in zip(gradients(outs, model), gradients(expected, model), strict=True):
        assert_close(grad, target, rtol=1e-9, atol=1e-9 * float(target.abs().max()))


def test_the_three_definitions_differ():
    results = [run(build(grn_scope=scope), images(), random_mask())[-1] for scope in GRN_SCOPES]
    largest = results[0].abs().max()
    for i in range(3):
        assert (results[i] - results[i - 1]).abs().max() > 1e-3 * largest


@pytest.mark.parametrize('execution', ['dense', 'packed'])
@pytest.mark.parametrize('options', [{}, {'use_grn': False, 'layer_scale_init_value': 1e-6}])
def test_defaults_are_mmpretrains_sparse_convnext(execution, options):
    options = {**options, 'drop_path_rate': 0.5}
    theirs = build(SparseConvNeXt, **options)
    ours = build(execution=execution, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    results = []
    for model in (theirs, ours):  # in training mode: the same images drop the same blocks
        torch.manual_seed(3)
        results.append(run(model, images(), random_mask()))
    for mine, target in zip(*results, strict=True):
        assert_close(mine, target, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('scope', GRN_SCOPES)
def test_dense_execution_has_the_same_definitions(scope):
    packed, dense = build(grn_scope=scope), build(grn_scope=scope, execution='dense')
    dense.load_state_dict(packed.state_dict())
    x, active = images(), random_mask()
    for mine, target in zip(run(packed, x, active), run(dense, x, active), strict=True):
        assert_close(mine, target, rtol=1e-11, atol=1e-11)


def test_grn_without_response_has_a_finite_gradient():
    # At initialisation biases are 0, so an inactive position holds exactly GELU(0) = 0.
    model = build(grn_scope='image_with_inactive')
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.zeros_(parameter)
    outs = run(model, images(), random_mask())
    assert all(grad.isfinite().all() for grad in gradients(outs, model))


def test_masked_pixels_are_never_read():
    model, active = build(), random_mask()
    x = images()
    expected = run(model, x, active)
    hidden = ~active.repeat_interleave(32, 2).repeat_interleave(32, 3)
    outs = run(model, x.masked_fill(hidden, math.nan), active)
    for out, target in zip(outs, expected, strict=True):
        assert torch.equal(out, target)


def test_pointwise_layers_see_active_positions_only():
    model, seen = build(), []
    for stage in model.stages:
        stage[0].pointwise_conv1.register_forward_pre_hook(
            lambda module, args: seen.append(tuple(args[0].shape))
        )
    run(model, images(), random_mask(active=6))
    assert seen == [
        (3, 6 * side**2, c) for side, c in zip((8, 4, 2, 1), (8, 16, 32, 64), strict=True)
    ]


def test_backward_keeps_no_dense_map():
    model, x, active = build(), images(), random_mask(active=6)
    kept = []

    def note(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        run(model, x, active)
    tokens = [6 * side**2 for side in (8, 4, 2, 1)]
    maps = [shape for shape in kept if len(shape) > 1 and shape[0] == 3]
    assert maps and all(shape[1] in (1, *tokens) for shape in maps)


def test_activation_checkpointing_gives_the_same_gradients():
    plain, saving = build(), build(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    results = [gradients(run(m, images(), random_mask()), m) for m in (plain, saving)]
    for mine, target in zip(*results, strict=True):
        assert_close(mine, target, rtol=1e-12, atol=0)


def test_without_mask_it_is_the_classifier():
    model = build(grn_scope='batch')
    dense = ConvNeXt(
        arch=ARCH, out_indices=(0, 1, 2, 3), gap_before_final_norm=False, **V2
    ).double()
    missing, unexpected = dense.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('norm') for key in missing)
    seen = []
    for stage in dense.stages:
        stage.register_forward_hook(lambda module, args, output: seen.append(output))
    x = images()
    dense(x)
    units = torch.arange(16).expand(3, -1)
    for mine, target in zip(
        model.forward_packed(x, units, (4, 4), grn_scope='image'), seen, strict=True
    ):
        assert_close(mine, target, rtol=1e-11, atol=1e-11)


def test_spark_trains_the_same_with_packed_execution():
    losses = []
    for backbone in ('SparseConvNeXt', 'PackedSparseConvNeXt'):
        torch.manual_seed(0)
        model = MODELS.build(
            {
                'type': 'SparK',
                'input_size': 128,
                'enc_dec_norm_cfg': {'type': 'SparseLN2d', 'eps': 1e-6},
                'enc_dec_norm_dim': 64,
                'backbone': {
                    'type': backbone,
                    'arch': ARCH,
                    'out_indices': (0, 1, 2, 3),
                    'gap_before_output': False,
                    **V2,
                },
                'neck': {
                    'type': 'SparKLightDecoder',
                    'feature_dim': 32,
                    'upsample_ratio': 32,
                    'norm_cfg': {'type': 'BN'},
                },
                'head': {
                    'type': 'SparKPretrainHead',
                    'loss': {'type': 'PixelReconstructionLoss', 'criterion': 'L2'},
                },
            }
        ).double()
        for parameter in model.backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        torch.manual_seed(1)
        losses.append(model.loss(images(), None)['loss'])
    assert_close(losses[1], losses[0], rtol=1e-11, atol=0)


def test_bf16_autocast_stays_close_and_has_gradients():
    model = build().float()
    x, active = images().float(), random_mask()
    exact = run(model, x, active)
    with torch.autocast('cpu', torch.bfloat16):
        outs = run(model, x, active)
    for out, target in zip(outs, exact, strict=True):
        assert (out - target).abs().max() < 0.1 * target.abs().max()
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients(outs, model))


@pytest.mark.slow
def test_compiles():
    model, x, active = build(), images(), random_mask()
    units = torch.nonzero(active.flatten(1))[:, 1].view(3, -1)
    compiled = torch.compile(model.forward_packed, backend='aot_eager', fullgraph=True)
    outs, expected = compiled(x, units, (4, 4)), model.forward_packed(x, units, (4, 4))
    for out, target in zip(outs, expected, strict=True):
        assert_close(out, target)
    for grad, target in zip(gradients(outs, model), gradients(expected, model), strict=True):
        assert_close(grad, target)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'grn_scope': 'global'}, "unknown GRN scope 'global'; choose one of"),
        ({'execution': 'sparse'}, "unknown execution 'sparse'; choose one of"),
        ({'linear_pw_conv': False}, "execution='packed' needs linear pointwise layers"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_ragged_masks_are_refused():
    active = random_mask()
    active[0, 0, 0, :] = True
    with pytest.raises(ValueError, match='equally many active units in every image, found 6 to'):
        run(build(), images(), active)


@pytest.mark.parametrize(
    ('grid', 'message'),
    [((8, 8), 'unit of 1 x 1 positions cannot be divided'), ((3, 3), 'cannot be cut into 3 x 3')],
)
def test_masks_that_do_not_fit_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        run(build(), images(), random_mask(grid))
