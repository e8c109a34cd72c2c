# SPDX-License-Identifier: Apache-2.0
"""MILAN against the dense decoder with thrown keys masked, and its loss by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases.milan import MASKED, THROWN, batch, build
from mmpretrain.models.utils import build_2d_sincos_position_embedding

import prmim_adapters as prmim
from prmim_adapters.testing import recorded_partitions


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build()


def encoded(model):
    """What the decoder is called with, and the targets."""
    images = batch()['inputs']
    target, attention = model.target_generator(images)
    return model.backbone(images, attention[:, 0, 1:]), target


def test_decoder_equals_the_dense_one_with_thrown_keys_masked(model):
    dense = copy.deepcopy(model.neck)
    prmim.attach(model, throw_ratio=THROWN / 64)
    arguments, _ = encoded(model)
    with recorded_partitions(model) as seen:
        found = model.neck(*arguments)
    mask, partition = seen[0]
    assert mask.sum(1).tolist() == [MASKED] * 3 and found.shape == (3, 65, 16)
    absent = torch.zeros(3, 1, 1, 65, dtype=torch.bool)
    absent[torch.arange(3)[:, None], 0, 0, partition.thrown + 1] = True
    for block in dense.decoder_blocks:
        block.attn.scaled_dot_product_attention = lambda q, k, v, dropout_p: (
            F.scaled_dot_product_attention(q, k, v, ~absent)
        )
    rows = F.pad(partition.present + 1, (1, 0))[..., None].expand(-1, -1, 16)
    expected = dense(*arguments).gather(1, rows)
    torch.testing.assert_close(found.gather(1, rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'weight'),
    [({}, 1.0), ({'thrown_weight': 0.25}, 0.25), ({'aggregator': None}, 0.0)],
    ids=['all tokens', 'thrown ones at a quarter', 'all but thrown ones'],
)
def test_loss_is_the_weighted_mean_over_cls_and_all_tokens(model, options, weight):
    prmim.attach(model, throw_ratio=THROWN / 64, **options)
    predictions = []
    hook = model.neck.register_forward_hook(lambda m, a, out: predictions.append(out))
    with recorded_partitions(model) as seen:
        loss = model.loss(**batch())['loss']
    hook.remove()
    weights = torch.ones(3, 65).scatter(1, seen[0][1].thrown + 1, weight)
    similarity = F.cosine_similarity(predictions[0], encoded(model)[1], dim=-1)
    expected = ((2 - 2 * similarity) * weights).sum() / weights.sum()
    torch.testing.assert_close(loss, expected)


def test_the_decoder_must_take_the_encoders_width():
    """mmpretrain's own ViT-B config leaves the decoder's default of ViT-L."""
    model = build()
    model.neck.decoder_embed = torch.nn.Linear(1024, 32)
    with pytest.raises(
        ValueError, match=r'24 channels, but neck\.embed_dim=1024 .*set neck\.embed_dim=24'
    ):
        prmim.attach(model)


def test_the_decoder_must_have_the_encoders_positions():
    model = build(num_patches=16)
    with pytest.raises(ValueError, match=r'8x8 = 64 patches, but neck\.num_patches=16'):
        prmim.attach(model)


def test_rectangles():
    model = prmim.attach(build(img_size=(16, 64)), throw_ratio=THROWN / 64)
    positions = build_2d_sincos_position_embedding((16, 4), 24)
    torch.testing.assert_close(model.backbone.pos_embed[:, 1:], positions)
    inputs = torch.randn(2, 3, 16, 64)
    with recorded_partitions(model) as seen:
        assert model.loss(inputs, None)['loss'].isfinite()
    assert seen[0][1].grid == (4, 16)
