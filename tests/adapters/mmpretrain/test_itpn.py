# SPDX-License-Identifier: Apache-2.0
"""iTPN against the dense networks with thrown keys masked."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from cases import itpn
from mmpretrain.models.backbones.hivit import BlockWithRPE
from mmpretrain.models.selfsup.itpn import iTPN
from mmpretrain.registry import MODELS

import prmim_adapters as prmim
from prmim_adapters.core import gather_tokens, table_rows
from prmim_adapters.testing import recorded_partitions


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def at_present(tokens, partition):
    return gather_tokens(tokens, partition.present)


def pixels_decoded(model):
    """A step of the pixel model: partition, and input and output of the decoder's blocks."""
    rows = []
    blocks = list(model.neck.decoder_blocks.children())
    hooks = [
        blocks[0].register_forward_pre_hook(lambda m, args: rows.append(args[0])),
        blocks[-1].register_forward_hook(lambda m, args, out: rows.append(out)),
    ]
    torch.manual_seed(1)
    with recorded_partitions(model) as seen:
        model.loss(**itpn.batch(64))
    for hook in hooks:
        hook.remove()
    return seen[0][1], *rows


def test_masked_rows_carry_three_mask_tokens():
    """One for each level of the pyramid, which upstream adds up."""
    model = prmim.attach(itpn.build_pixel(), throw_ratio=0.5)
    partition, entering, _ = pixels_decoded(model)
    visible = partition.visible.shape[1]
    assert entering.shape == (3, 32, itpn.DECODER_WIDTH)
    positions = table_rows(model.neck.decoder_pos_embed[0], partition.kept)
    expected = 3 * model.neck.mask_token + positions
    torch.testing.assert_close(entering[:, visible:], expected)
    light = []
    model.neck.partial.aggregators[0].register_forward_pre_hook(lambda m, args: light.append(args))
    partition, _, _ = pixels_decoded(model)
    positions = table_rows(model.neck.decoder_pos_embed[0], partition.thrown)
    torch.testing.assert_close(light[0][2], 3 * model.neck.mask_token + positions)


def test_pixel_decoder_equals_the_dense_one_with_thrown_keys_masked():
    model = prmim.attach(itpn.build_pixel(), throw_ratio=0.5)
    dense = copy.deepcopy(model)
    prmim.detach(dense)
    partition, _, found = pixels_decoded(model)
    absent = torch.zeros(3, 1, 1, 64, dtype=torch.bool)
    absent[torch.arange(3)[:, None], 0, 0, partition.thrown] = True
    for block in dense.neck.decoder_blocks:
        block.attn.scaled_dot_product_attention = lambda q, k, v, attn_mask=None, dropout_p=0.0: (
            F.scaled_dot_product_attention(q, k, v, ~absent)
        )
    out = []
    dense.neck.decoder_blocks[-1].register_forward_hook(lambda m, args, rows: out.append(rows))
    torch.manual_seed(1)
    dense.loss(**itpn.batch(64))
    torch.testing.assert_close(found, at_present(out[0], partition), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('rpe', [True, False])
def test_clip_encoder_equals_the_dense_one_with_thrown_keys_masked(rpe):
    model = itpn.build_clip(rpe=rpe)
    dense = copy.deepcopy(model.backbone)
    prmim.attach(model, throw_ratio=0.25)
    batch = itpn.two_views()
    mask = torch.stack([sample.mask for sample in batch['data_samples']])
    rows = []
    itpn.main_blocks(model)[-1].register_forward_hook(lambda m, args, out: rows.append(out))
    with recorded_partitions(model) as seen:
        levels = model.backbone(batch['inputs'][0], mask)
    partition = seen[0][1]
    present = torch.ones(3, 64).scatter(1, partition.thrown, 0)
    for block in dense.blocks[-itpn.DEPTH :]:
        block.forward = partial(BlockWithRPE.forward, block, mask=present)
    expected = dense(batch['inputs'][0], mask)
    torch.testing.assert_close(rows[0], at_present(expected[-1], partition), rtol=1e-5, atol=1e-5)
    assert [tuple(level.shape[1:-1]) for level in levels] == [(26, 4, 4), (26, 2, 2), (26,)]


@pytest.mark.parametrize('aggregator', ['distance', None])
def test_the_pyramid_of_supervised_tokens_is_exact(aggregator):
    """It does not mix tokens: theirs alone give what all together give there."""
    model = prmim.attach(itpn.build_clip(), throw_ratio=0.25, aggregator=aggregator)
    batch = itpn.two_views()
    mask = torch.stack([sample.mask for sample in batch['data_samples']])
    torch.manual_seed(1)
    with recorded_partitions(model) as seen:
        levels = model.backbone(batch['inputs'][0], mask)
    supervised = model.backbone.partial.supervised(seen[0][1])
    assert supervised.shape[1] == (26 if aggregator else 10)
    everything = [torch.randn(3, 64, *level.shape[2:]) for level in levels]
    for whole, level in zip(everything, levels, strict=True):
        index = supervised.view(3, -1, *[1] * (level.dim() - 2)).expand_as(level)
        whole.scatter_(1, index, level.detach())
    expected = gather_tokens(model.neck(everything), supervised)
    torch.testing.assert_close(model.neck(levels), expected)


@pytest.mark.parametrize('build', [itpn.build_pixel, itpn.build_clip])
def test_features_of_whole_images_are_unchanged(build):
    # deeper: upstream takes the last block's number for one of the stem's too
    model, images = build(depth=7), torch.randn(2, 3, 64, 64)
    expected = model.extract_feat(images)
    found = prmim.attach(model, throw_ratio=0.25).extract_feat(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_both_kinds_are_one_class():
    for build, host in ((itpn.build_pixel, 'neck'), (itpn.build_clip, 'backbone')):
        model = prmim.attach(build(), throw_ratio=0.25)
        assert type(model) is iTPN and hasattr(model.get_submodule(host), 'partial')


@pytest.mark.parametrize(
    ('part', 'change', 'message'),
    [
        (
            'backbone',
            dict(in_chans=1),
            r'images of 1 channels, and 3 are predicted.*neck\.in_chans',
        ),
        ('neck', dict(in_chans=4), r'images of 3 channels, and 4 are predicted'),
        ('neck', dict(patch_size=4), r'head\.patch_size=8.*48 values'),
        ('neck', dict(num_patches=16), r'8x8 = 64 patches.*set neck\.num_patches=64'),
        ('head', dict(patch_size=4), r'head\.patch_size=4.*\(8, 8\)'),
    ],
)
def test_parts_that_disagree_about_a_patch_are_refused_at_attach(part, change, message):
    settings = itpn.pixel_settings()
    settings[part] |= change
    with pytest.raises(ValueError, match=message):
        prmim.attach(MODELS.build(settings), throw_ratio=0.25)
