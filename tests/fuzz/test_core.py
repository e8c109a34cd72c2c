# SPDX-License-Identifier: Apache-2.0
"""Partitions are partitions, aggregators give finite features, whatever grid, mask and option."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from prmim_adapters.core.aggregation import Convolution, CrossAttention, Distance, Nearest
from prmim_adapters.core.cross_blocks import CrossBlocks
from prmim_adapters.core.partition import (
    TokenPartition,
    gather_tokens,
    partition_tokens,
    scatter_tokens,
)
from prmim_adapters.core.ragged import partition_ragged
from prmim_adapters.core.sampling import farthest, lattice, random

SAMPLERS = {
    'farthest': farthest,
    'farthest_unseeded': partial(farthest, seeds='none'),
    'random': random,
    'grid': lattice,
}
AGGREGATORS = {
    'cross_attention': CrossAttention,
    'cross_blocks': CrossBlocks,
    'nearest': Nearest,
    'distance': Distance,
    'convolution': Convolution,
}


def mask_of(counts: list[int], length: int, seed: int) -> Tensor:
    """(B, L) bool with so many True in each image."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(counts), length, generator=generator).argsort(dim=1)
    return order < torch.tensor(counts)[:, None]


@st.composite
def cases(draw: Callable) -> dict[str, Any]:
    grid = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    length = grid[0] * grid[1]
    return dict(
        grid=grid,
        counts=draw(st.lists(st.integers(0, length), min_size=1, max_size=4)),
        num_thrown=draw(st.integers(-2, length + 2)),
        sampler=SAMPLERS[draw(st.sampled_from(sorted(SAMPLERS)))],
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def noise_of(mask: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # As few values as there can be: ties everywhere.
    return torch.randint(1 + seed % 5, mask.shape, generator=generator)


def check_partition(part: TokenPartition, mask: Tensor) -> None:
    """Disjoint, covering, and each part where the mask says."""
    positions = torch.cat((part.visible, part.kept, part.thrown), dim=1)
    every = torch.arange(mask.shape[1]).expand_as(positions)
    assert torch.equal(positions.sort(dim=1).values, every)
    assert not mask.gather(1, part.visible).any()
    assert mask.gather(1, part.masked).all()


def test_partition(fuzz: Callable[..., None]) -> None:
    def check(case: dict[str, Any]) -> None:
        height, width = grid = case['grid']
        masked = case['counts'][0]
        mask = mask_of([masked] * len(case['counts']), height * width, case['seed'])
        cut = partial(partition_tokens, mask, case['num_thrown'], grid, case['sampler'])
        noise = noise_of(mask, case['seed'])
        if not 0 <= case['num_thrown'] < max(masked, 1):
            with pytest.raises(ValueError, match='throw_ratio'):
                cut(noise=noise)
            return
        part, again = cut(noise=noise), cut(num_masked=masked, noise=noise)
        check_partition(part, mask)
        assert part.thrown.shape[1] == case['num_thrown']
        assert torch.equal(part.kept, again.kept)  # the noise is all the randomness there is
        values = torch.randn(len(mask), part.kept.shape[1], 2)
        there = scatter_tokens(values, part.kept, part.length)
        assert torch.equal(gather_tokens(there, part.kept), values)

    fuzz(check, cases(), few=60, many=2000)


def test_ragged_partition(fuzz: Callable[..., None]) -> None:
    def check(case: dict[str, Any]) -> None:
        height, width = grid = case['grid']
        counts = case['counts']
        mask = mask_of(counts, height * width, case['seed'])
        kept = torch.tensor(counts) - torch.tensor(counts).mul(0.6).long()
        parts = partition_ragged(mask, kept, grid, case['sampler'], noise_of(mask, case['seed']))
        images = torch.cat([index for index, _ in parts])
        assert sorted(images.tolist()) == list(range(len(counts)))
        for index, part in parts:
            check_partition(part, mask[index])
            assert part.kept.shape[1] == kept[index[0]]

    fuzz(check, cases(), few=60, many=1500)


NUMBERS = st.sampled_from(
    [1, 2, 3, 4, 5, 8, 0, -1, 10**9, 2.0, True, None, 'present', float('nan')]
)
OPTIONS: dict[str, dict[str, st.SearchStrategy]] = {
    'cross_attention': dict(
        inner=NUMBERS, heads=NUMBERS, neighbours=NUMBERS, key_positions=st.booleans() | st.text()
    ),
    'cross_blocks': dict(
        depth=NUMBERS, inner=NUMBERS, heads=NUMBERS, key_positions=st.booleans() | st.text()
    ),
    'nearest': dict(neighbours=NUMBERS, radius=NUMBERS),
    'distance': dict(neighbours=NUMBERS),
    'convolution': dict(kernel=NUMBERS),
}


@st.composite
def aggregations(draw: Callable) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(OPTIONS)))
    sources = st.sampled_from(['present', 'kept', 'visible', '', None, 1])
    options = draw(st.fixed_dictionaries({}, optional={**OPTIONS[name], 'sources': sources}))
    return dict(draw(cases()), name=name, options=options, width=draw(st.integers(1, 24)))


def test_aggregators(fuzz: Callable[..., None]) -> None:
    def check(case: dict[str, Any]) -> None:
        height, width = grid = case['grid']
        length, channels, options = height * width, case['width'], case['options']
        try:
            aggregator = AGGREGATORS[case['name']](width=channels, grid=grid, **options)
        except (TypeError, ValueError) as error:
            if not any(f'{name}=' in str(error) for name in options):
                raise
            return
        masked = max(case['counts'][0], 1)
        mask = mask_of([masked] * len(case['counts']), length, case['seed'])
        thrown = min(max(case['num_thrown'], 0), masked - 1)
        part = partition_tokens(mask, thrown, grid, random, noise=noise_of(mask, case['seed']))
        features = torch.randn(len(mask), length - thrown, channels, requires_grad=True)
        output = aggregator(features, part, torch.randn(length, channels))
        assert output.shape == (len(mask), thrown, channels)
        output.square().sum().backward()
        gradients = [features.grad, *(p.grad for p in aggregator.parameters())]
        assert all(g is not None and g.isfinite().all() for g in gradients)

    fuzz(check, aggregations(), few=60, many=2000)
