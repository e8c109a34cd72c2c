# SPDX-License-Identifier: Apache-2.0
"""SimMIM's adapter: the column of patches against the framework's own full picture."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import small_models
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmpretrain.registry import MODELS, PARAM_SCHEDULERS
from mmpretrain.structures import DataSample

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of
from prmim_adapters.core import sincos_positions
from prmim_adapters.frameworks.simmim_vit import SimMIMViT  # noqa: F401  registers it
from prmim_adapters.testing import recorded_partitions

CONFIGS = Path(__file__).parents[3] / 'configs' / 'mmpretrain'
SWIN = dict(
    type='SimMIMSwinTransformer',
    arch=dict(embed_dims=8, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 4]),
    img_size=(128, 192),
    stage_cfgs=dict(block_cfgs=dict(window_size=4)),
    drop_path_rate=0.0,
)
VIT = dict(
    type='SimMIMViT',
    arch=small_models.arch(24, 2),
    img_size=(32, 48),
    patch_size=8,
)
#: backbone, channels, pixels per token or unit, pixels per mask cell; 4 x 6 units each
KINDS = {'swin': (SWIN, 64, 32, 4), 'vit': (VIT, 24, 8, 8)}
MASKED, THROWN = 14, 12


def model_settings(kind, **backbone):
    config, *sizes = KINDS[kind]
    return small_models.simmim({**config, **backbone}, *sizes)


def build(kind, **backbone):
    torch.manual_seed(0)
    model = MODELS.build(model_settings(kind, **backbone))
    for name, parameter in model.named_parameters():
        centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
        torch.nn.init.normal_(parameter, centre, 0.1)
    return model


def make_batch(kind):
    _, _, stride, cell = KINDS[kind]
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(2, 24, generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :MASKED], 1).view(2, 4, 6)
    scale = stride // cell
    mask = mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    images = torch.randn(2, 3, 4 * stride, 6 * stride, generator=generator)
    return images, mask


def loss_of(model, images, mask):
    return model.loss(images, [DataSample().set_mask(m) for m in mask])['loss']


WEIGHTS = [({}, 1.0), ({'thrown_weight': 0.25}, 0.25), ({'aggregator': None}, 0.0)]
BACK = {'aggregator': 'last_blocks', 'thrown_weight': 0.25}


@pytest.mark.parametrize(
    ('kind', 'options', 'weight'),
    [*((kind, *case) for kind in KINDS for case in WEIGHTS), ('vit', BACK, 0.25)],
)
def test_loss_is_that_of_the_full_picture(kind, options, weight):
    """Features put back on the full map, stock neck, and the weighted error pixel by pixel."""
    images, mask = make_batch(kind)
    _, _, stride, cell = KINDS[kind]
    model = prmim.attach(build(kind), throw_ratio=THROWN / 24, **options)
    columns = []
    model.neck.register_forward_pre_hook(lambda module, args: columns.append(args[0]))
    with recorded_partitions(model) as seen:
        loss = loss_of(model, images, mask)

    partition = seen[0][1]
    index, thrown = partial_of(model).supervised(partition), partition.thrown
    column = columns[0].squeeze(-1)
    assert column.shape[2] == (MASKED if weight else MASKED - THROWN)
    features = column.new_zeros(2, column.shape[1], 24)
    features = features.scatter(2, index[:, None].expand_as(column), column)
    picture = model.neck(features.unflatten(2, (4, 6)))
    weights = mask[:, :: stride // cell, :: stride // cell].flatten(1).float()
    weights = weights.scatter(1, thrown, weight).unflatten(1, (4, 6))
    pixels = weights.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, None]
    expected = ((picture - images).abs() * pixels).sum() / pixels.sum() / 3
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize('kind', KINDS)
def test_neck_predicts_supervised_tokens_only(kind):
    model = prmim.attach(build(kind), throw_ratio=THROWN / 24)
    shapes = []
    model.neck.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    loss_of(model, *make_batch(kind))
    stride = KINDS[kind][2]
    assert shapes == [(2, 3, MASKED * stride, stride)]


@pytest.mark.parametrize('options', [{}, {'use_abs_pos_embed': True}, {'pad_small_map': True}])
def test_swin_kept_units_equal_the_dense_masked_network(options):
    """Whole adapter, embedding and positions included; windows in test_packed_swin.py."""
    images, mask = make_batch('swin')
    model = build('swin', **options).eval()
    dense = copy.deepcopy(model.backbone)
    prmim.attach(model, throw_ratio=THROWN / 24)
    with recorded_partitions(model) as seen:
        (column,) = model.backbone(images, mask)
    kept, thrown = seen[0][1].kept, seen[0][1].thrown

    absent = torch.zeros(2, 24).scatter(1, thrown, -1e4).view(2, 4, 6)
    for stage, side in zip(dense.stages, (8, 4, 2, 1), strict=True):
        for block in stage.blocks:
            hide_keys(block.attn, absent.repeat_interleave(side, 1).repeat_interleave(side, 2))
    (expected,) = dense(images, mask)
    expected = expected.flatten(2).gather(2, kept[:, None].expand(-1, 64, -1))
    found = column.squeeze(-1)[..., : MASKED - THROWN]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def hide_keys(attention, scores):
    """Add ``scores`` (B, H, W) to the attention scores of the keys at those positions."""
    upstream = type(attention).get_attn_mask

    def get_attn_mask(hw_shape, window_size, shift_size, device=None):
        padded = torch.zeros(len(scores), *hw_shape)
        padded[:, : scores.shape[1], : scores.shape[2]] = scores
        padded = padded.roll((-shift_size, -shift_size), (1, 2))[..., None]
        keys = attention.window_partition(padded, window_size).flatten(1)[:, None]
        region = upstream(hw_shape, window_size, shift_size)
        mask = keys.expand(-1, window_size**2, -1)
        return mask if region is None else mask + region.repeat(len(scores), 1, 1)

    attention.get_attn_mask = get_attn_mask


@pytest.mark.parametrize('options', [{}, {'use_abs_pos_emb': True}])
@pytest.mark.parametrize('depth', [1, 2])
def test_last_blocks_run_on_all_tokens(depth, options):
    """The dense network, whose first blocks hide thrown tokens from all others."""
    images, mask = make_batch('vit')
    model = build('vit', arch=small_models.arch(24, 3), **options).eval()
    model.backbone.drop_after_pos = torch.nn.Tanh()  # a dropout that can be foreseen
    dense = copy.deepcopy(model.backbone)
    names = set(model.state_dict())
    prmim.attach(model, throw_ratio=THROWN / 24, aggregator=dict(type='last_blocks', depth=depth))
    assert set(model.state_dict()) == names
    with recorded_partitions(model) as seen:
        (column,) = model.backbone(images, mask)
    partition = seen[0][1]
    is_thrown = torch.zeros(2, 25, 1).scatter(1, partition.thrown[..., None] + 1, 1.0)
    hidden = is_thrown.mT[:, None] * -1e4
    if options:
        entering = dense.mask_token + dense.pos_embed
    else:
        positions = sincos_positions((4, 6), 24)
        entering = dense.mask_token + torch.nn.functional.pad(positions, (0, 0, 1, 0))

    for layer in dense.layers[:-depth]:
        layer.register_forward_pre_hook(
            lambda module, args, kw: (args, dict(rel_pos_bias=kw['rel_pos_bias'] + hidden)),
            with_kwargs=True,
        )
    dense.layers[-depth].register_forward_pre_hook(
        lambda module, args: (torch.where(is_thrown > 0, entering.tanh(), args[0]),)
    )
    (expected,) = dense(images, mask)
    index = partition.masked[:, None].expand(-1, 24, -1)
    expected = expected.flatten(2).gather(2, index)
    torch.testing.assert_close(column.squeeze(-1), expected, rtol=1e-5, atol=1e-5)


def test_last_blocks_are_refused_where_an_earlier_layer_is_read():
    with pytest.raises(ValueError, match='whose adapter gives no num_blocks'):
        prmim.attach(build('vit', out_indices=[0]), 0.5, aggregator='last_blocks')


@pytest.mark.parametrize(
    ('found', 'error'), [(-1, ValueError), (1.5, TypeError), ('1', TypeError)], ids=str
)
def test_another_aggregator_says_no_number_of_last_blocks(found, error):
    class Mine(torch.nn.Module):
        last_blocks = found

        def __init__(self, width, grid):
            super().__init__()

    with pytest.raises(error, match=r'Mine\.last_blocks='):
        prmim.attach(build('vit'), 0.5, aggregator=Mine)


def test_last_blocks_train_every_parameter():
    model = prmim.attach(build('vit'), throw_ratio=THROWN / 24, aggregator='last_blocks')
    loss_of(model, *make_batch('vit')).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        ('swin', {}, 'cannot come back before the last blocks of SimMIM, whose adapter gives no'),
        ('vit', dict(aggregator=dict(type='last_blocks', depth=2)), r'last 2 .* has 2: .* 1 to 1'),
        ('vit', dict(aggregator=['last_blocks', 'nearest']), 'stands alone'),
        (
            'vit',
            dict(stop_gradient=True),
            'stop_gradient=True .* whose last blocks they go through',
        ),
    ],
)
def test_last_blocks_are_refused_where_they_cannot_be(kind, options, message):
    with pytest.raises(ValueError, match=message):
        prmim.attach(build(kind), 0.5, **{'aggregator': 'last_blocks'} | options)


@pytest.mark.parametrize('kind', KINDS)
def test_features_of_whole_images_are_unchanged(kind):
    images, _ = make_batch(kind)
    model = build(kind).eval()
    expected = model.extract_feat(images)
    found = prmim.attach(model, throw_ratio=0.25).extract_feat(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_refuses_a_mask_that_changes_inside_a_unit():
    images, mask = make_batch('swin')
    mask[0, 3, 5] = 1 - mask[0, 3, 5]
    model = prmim.attach(build('swin'), throw_ratio=0.25)
    with pytest.raises(ValueError, match=r'32x48 mask is not constant inside the 4x6 units'):
        loss_of(model, images, mask)


def test_refuses_an_image_that_is_not_made_of_units():
    with pytest.raises(ValueError, match=r'33x48 map .* units of 8x8 tokens: choose an img_size'):
        prmim.attach(build('swin', img_size=(132, 192)), throw_ratio=0.25)


def test_refuses_a_bias_per_layer():
    model = build('vit', use_rel_pos_bias=True, use_shared_rel_pos_bias=False)
    with pytest.raises(ValueError, match='use_rel_pos_bias=True'):
        prmim.attach(model, throw_ratio=0.25)


def test_recipe_is_the_originals():
    """microsoft/SimMIM vit_base__800ep: 4e-4 at batch 2048, 10 epochs warm-up, / 10 at 700."""
    config = Config.fromfile(CONFIGS / 'simmim_vitb.py')
    config.optim_wrapper.type = 'OptimWrapper'  # AmpOptimWrapper refuses a CPU
    model = build('vit')
    wrapper: OptimWrapper = build_optim_wrapper(model, config.optim_wrapper)
    decayed = {
        name
        for name, parameter in model.named_parameters()
        for group in wrapper.param_groups
        if group['params'][0] is parameter and group['weight_decay'] > 0
    }
    expected = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert decayed == expected - {'backbone.cls_token'}
    assert {group['weight_decay'] for group in wrapper.param_groups} == {0.0, 0.05}

    steps_per_epoch = 2
    schedulers = []
    for settings in config.param_scheduler:
        settings = {k: v for k, v in settings.items() if k != 'convert_to_iter_based'}
        kind = PARAM_SCHEDULERS.get(settings.pop('type'))
        schedulers.append(
            kind.build_iter_from_epoch(
                optimizer=wrapper, epoch_length=steps_per_epoch, by_epoch=True, **settings
            )
        )
    rates = []
    for _ in range(800 * steps_per_epoch):
        rates.append(wrapper.param_groups[0]['lr'])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(2e-6)
    assert rates[10 * steps_per_epoch] == pytest.approx(4e-4)
    assert rates[700 * steps_per_epoch - 1] == pytest.approx(4e-4)
    assert rates[700 * steps_per_epoch] == rates[-1] == pytest.approx(4e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_images_of_four_bands_are_refused_at_attach(kind):
    """SimMIMLinearDecoder predicts three; one band is compared with all three, as upstream."""
    with pytest.raises(ValueError, match=r'4 channels, and 3 are predicted.*neck of your own'):
        prmim.attach(build(kind, in_channels=4), throw_ratio=0.5)
    prmim.attach(build(kind, in_channels=1), throw_ratio=0.5)


@pytest.mark.parametrize(
    ('kind', 'part', 'change', 'message'),
    [
        ('vit', 'neck', dict(encoder_stride=4), r'neck\.encoder_stride=4.*1x1.*set .*stride=8'),
        ('swin', 'neck', dict(encoder_stride=16), r'neck\.encoder_stride=16.*8x8.*set .*stride=32'),
        ('vit', 'head', dict(patch_size=4), r'head\.patch_size=4.*set head\.patch_size=8'),
        ('swin', 'head', dict(patch_size=32), r'head\.patch_size=32.*set head\.patch_size=4'),
        (
            'swin',
            'backbone',
            dict(stage_cfgs=dict(block_cfgs=dict(window_size=8))),
            'the 4x6 map is smaller than the window 8: set pad_small_map=True',
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_attach(kind, part, change, message):
    settings = model_settings(kind)
    settings[part] |= change
    with pytest.raises(ValueError, match=message):
        prmim.attach(MODELS.build(settings), throw_ratio=0.5)
