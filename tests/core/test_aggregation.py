# SPDX-License-Identifier: Apache-2.0
"""Aggregators against references written token by token."""

import pytest
import torch
import torch.nn.functional as F
from masks import random_mask
from torch.testing import assert_close

from prmim_adapters.core import partition_tokens
from prmim_adapters.core.aggregation import (
    Convolution,
    CrossAttention,
    Distance,
    Nearest,
    nearest_sources,
)
from prmim_adapters.core.cross_blocks import CrossBlocks
from prmim_adapters.core.sampling import farthest

GRID, WIDTH = (5, 6), 8


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    partition = partition_tokens(random_mask(3, 30, 22), 14, GRID, farthest)
    features = torch.randn(3, 16, WIDTH, requires_grad=True)
    return features, partition, torch.randn(30, WIDTH)


def build(cls, **options):
    module = cls(width=WIDTH, grid=GRID, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def place(position):
    return int(position) // GRID[1], int(position) % GRID[1]


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(place(a), place(b), strict=True))


@pytest.mark.parametrize('sources', ['present', 'kept'])
@pytest.mark.parametrize('key_positions', [False, True])
def test_cross_attention_equals_its_formula(inputs, sources, key_positions):
    features, partition, queries = inputs
    module = build(CrossAttention, inner=4, heads=2, sources=sources, key_positions=key_positions)
    actual = module(features, partition, queries)
    for b in range(3):
        seen = list(range(16)) if sources == 'present' else list(range(8, 16))
        x = features[b, seen]
        key, value = module.key_value(x).split(4, dim=-1)
        if key_positions:
            key = key + queries[partition.present[b, seen]] @ module.key_position.weight.T
        for t, p in enumerate(partition.thrown[b]):
            query = module.query(queries[p])
            heads = []
            for h in (slice(0, 2), slice(2, 4)):
                weight = torch.softmax(key[:, h] @ query[h] / 2**0.5, 0)
                heads.append(weight @ value[:, h])
            expected = module.norm(module.project(torch.cat(heads)) + queries[p])
            assert_close(actual[b, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('sources', ['present', 'kept'])
@pytest.mark.parametrize('key_positions', [False, True])
def test_cross_blocks_equal_their_formula(inputs, sources, key_positions):
    features, partition, queries = inputs
    module = build(CrossBlocks, inner=4, heads=2, sources=sources, key_positions=key_positions)
    assert len(module.blocks) == 2
    actual = module(features, partition, queries)
    for b in range(3):
        seen = list(range(16)) if sources == 'present' else list(range(8, 16))
        known = module.read(features[b, seen])
        if key_positions:
            known = known + queries[partition.present[b, seen]] @ module.key_position.weight.T
        for t, p in enumerate(partition.thrown[b]):
            x = module.ask(queries[p])
            for block in module.blocks:
                query = block.query(block.norm1(x))
                key, value = block.key_value(known).split(4, dim=-1)
                heads = []
                for h in (slice(0, 2), slice(2, 4)):
                    weight = torch.softmax(key[:, h] @ query[h] / 2**0.5, 0)
                    heads.append(weight @ value[:, h])
                x = x + block.project(torch.cat(heads))
                x = x + block.mlp[2](F.gelu(block.mlp[0](block.norm2(x))))
            expected = module.project(module.norm(x))
            assert_close(actual[b, t], expected, rtol=1e-4, atol=1e-4)


def test_cross_attention_to_the_nearest_ignores_the_rest(inputs):
    features, partition, queries = inputs
    module = build(CrossAttention, inner=4, heads=2, neighbours=3)
    output = module(features, partition, queries)
    output[0, 0].sum().backward()
    index, _ = nearest_sources(partition.thrown, partition.present, GRID, 3)
    used = features.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert used == sorted(index[0, 0].tolist())
    assert features.grad[1:].abs().sum() == 0


def test_nearest_sources_are_the_nearest(inputs):
    _, partition, _ = inputs
    index, distances = nearest_sources(partition.thrown, partition.present, GRID, 4)
    for b in range(3):
        for t, p in enumerate(partition.thrown[b]):
            ranked = sorted(squared(p, q) for q in partition.present[b])
            assert distances[b, t].tolist() == ranked[:4]
            assert [squared(p, partition.present[b, i]) for i in index[b, t]] == ranked[:4]


def test_nearest_equals_its_formula(inputs):
    features, partition, queries = inputs
    module = build(Nearest, neighbours=4, radius=1)
    actual = module(features, partition, queries)
    index, _ = nearest_sources(partition.thrown, partition.present, GRID, 4)
    for b in range(3):
        for t, p in enumerate(partition.thrown[b]):
            total = 0
            for i in index[b, t]:
                down, right = (
                    max(-1, min(1, q - o))
                    for q, o in zip(place(partition.present[b, i]), place(p), strict=True)
                )
                cell = (down + 1) * 3 + right + 1
                total = total + module.weight[cell] * features[b, i] + module.offset[cell]
            assert_close(actual[b, t], module.norm(total / 4), rtol=1e-4, atol=1e-5)


def test_distance_equals_its_formula(inputs):
    features, partition, queries = inputs
    actual = Distance(WIDTH, GRID, neighbours=5)(features, partition, queries)
    index, _ = nearest_sources(partition.thrown, partition.present, GRID, 5)
    for b in range(3):
        for t, p in enumerate(partition.thrown[b]):
            near = index[b, t].tolist()
            weights = [squared(p, partition.present[b, i]) ** -0.5 for i in near]
            expected = sum(w * features[b, i] for w, i in zip(weights, near, strict=True))
            assert_close(actual[b, t], expected / sum(weights), rtol=1e-4, atol=1e-5)


def test_convolution_equals_its_formula(inputs):
    features, partition, queries = inputs
    module = build(Convolution, kernel=3)
    dense = torch.zeros(3, 30, WIDTH)
    for b in range(3):
        dense[b, partition.present[b]] = features[b].detach()
    padded = F.pad(dense.view(3, *GRID, WIDTH), (0, 0, 1, 1, 1, 1))
    actual = module(features, partition, queries)
    for b in range(3):
        for t, p in enumerate(partition.thrown[b]):
            row, column = place(p)
            window = padded[b, row : row + 3, column : column + 3]
            value = (window * module.depthwise.weight[:, 0].permute(1, 2, 0)).sum((0, 1))
            expected = module.norm(value + module.depthwise.bias)
            assert_close(actual[b, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('cls', [CrossAttention, CrossBlocks, Nearest, Distance, Convolution])
def test_any_float_type(inputs, cls, dtype):
    features, partition, queries = inputs
    module = build(cls).to(dtype)
    exact = module.float()(features, partition, queries)
    output = module.to(dtype)(features.to(dtype), partition, queries.to(dtype))
    assert output.dtype == dtype
    assert_close(output.float(), exact, rtol=0.1, atol=0.15)


@pytest.mark.parametrize(
    ('width', 'heads'),
    # 32 channels each; the next smaller divisor of 112, of 104, of 250; less than 32; a prime, 113
    [(768, 6), (512, 4), (448, 2), (416, 2), (1000, 5), (6, 1), (452, 1)],
)
def test_default_heads_divide_the_inner_channels(width, heads):
    module = CrossAttention(width=width, grid=GRID)
    assert (module.query.out_features, module.heads) == (width // 4, heads)


@pytest.mark.parametrize(
    ('cls', 'options', 'error', 'message'),
    [
        (CrossAttention, dict(inner=6, heads=4), ValueError, 'inner=6 must be a multiple of heads'),
        (CrossAttention, dict(inner=0), ValueError, 'inner=0 must be at least 1'),
        (CrossAttention, dict(inner=10**9), ValueError, 'inner=1000000000 must be at most 65536'),
        (CrossAttention, dict(heads=True), TypeError, r'heads=True \(bool\): expected a whole'),
        (CrossAttention, dict(sources='visible'), ValueError, "sources='visible': allowed are 'pr"),
        (CrossAttention, dict(sources=None), TypeError, 'sources=None'),
        (CrossAttention, dict(neighbours=2.0), TypeError, r'neighbours=2.0 \(float\): expected'),
        (CrossAttention, dict(key_positions='no'), TypeError, "key_positions='no'"),
        (CrossBlocks, dict(depth=0), ValueError, 'depth=0 must be at least 1'),
        (CrossBlocks, dict(depth=65), ValueError, 'depth=65 must be at most 64'),
        (CrossBlocks, dict(inner=6, heads=4), ValueError, 'inner=6 must be a multiple of heads'),
        (CrossBlocks, dict(sources='visible'), ValueError, "sources='visible': allowed are 'pr"),
        (CrossBlocks, dict(key_positions=1), TypeError, 'key_positions=1'),
        (Nearest, dict(neighbours=0), ValueError, 'neighbours=0 must be at least 1'),
        (Nearest, dict(neighbours=True), TypeError, 'neighbours=True'),
        (Nearest, dict(radius=0), ValueError, 'radius=0 must be at least 1'),
        (Nearest, dict(radius=10**6), ValueError, 'radius=1000000 must be at most 64'),
        (Distance, dict(neighbours=None), TypeError, 'neighbours=None'),
        (Convolution, dict(kernel=4), ValueError, 'kernel=4 must be odd'),
        (Convolution, dict(kernel='present'), TypeError, "kernel='present'"),
        (Convolution, dict(kernel=1), ValueError, 'kernel=1 must be at least 3'),
    ],
)
def test_options_out_of_range(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(width=WIDTH, grid=GRID, **options)
