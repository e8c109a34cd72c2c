# SPDX-License-Identifier: Apache-2.0
"""Farthest point sampling by distance equals the reference, which goes step by step."""

import sys

import pytest
import torch
from masks import random_mask

from prmim_adapters.core import sampling
from prmim_adapters.core.sampling import _reference
from prmim_adapters.core.seeding import seeded

BITS = 20


def same(mask, start, count, noise, grid):
    count = torch.as_tensor(count).view(-1, 1).expand(len(mask), 1)
    steps = int(count.max())
    expected = _reference(mask, start, count, noise, list(grid), steps)
    found = torch.ops.prmim_adapters.farthest(mask, start, count, noise, list(grid), steps)
    assert found.sum(1).tolist() == count.flatten().tolist()
    assert torch.equal(found, expected)


def noise_for(mask, bits=BITS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1 << bits, mask.shape, generator=generator)


@pytest.mark.parametrize('masked', [0.3, 0.75, 0.95, 1.0])
@pytest.mark.parametrize('grid', [(14, 14), (7, 30), (1, 40), (40, 1), (3, 2)])
@pytest.mark.parametrize('seeds', ['visible', 'none'])
def test_equals_the_reference(grid, masked, seeds):
    length = grid[0] * grid[1]
    mask = random_mask(5, length, max(round(masked * length), 1))
    start = ~mask if seeds == 'visible' else torch.zeros_like(mask)
    for share in (0.0, 0.1, 0.4, 0.9, 1.0):
        same(mask, start, round(share * int(mask[0].sum())), noise_for(mask), grid)


def test_ragged_counts_and_masks():
    masked = (5, 30, 1, 49, 0, 40)
    mask = torch.cat([random_mask(1, 49, m, seed=m) for m in masked])
    for counts in ([2, 10, 0, 49, 0, 39], [0, 0, 0, 1, 0, 0], [5, 30, 1, 49, 0, 40], [0] * 6):
        same(mask, ~mask, counts, noise_for(mask), (7, 7))
        same(mask, torch.zeros_like(mask), counts, noise_for(mask), (7, 7))


@pytest.mark.parametrize('bits', [0, 1, 3])
def test_equal_noise_is_broken_by_position(bits):
    mask = random_mask(6, 144, 110)
    for count in (1, 7, 40, 80):
        same(mask, ~mask, count, noise_for(mask, bits), (12, 12))
        same(mask, torch.zeros_like(mask), count, noise_for(mask, bits), (12, 12))


def test_blocks_far_from_any_visible_token():
    """Distances above and below the bound at which points are no longer chosen one by one."""
    mask = torch.zeros(3, 40, 40, dtype=torch.bool)
    mask[0, 5:39, 2:38] = mask[1, :12, :12] = mask[2, 10:14] = True
    mask = mask.flatten(1)
    for count in (1, 30, 100):
        same(mask, ~mask, count, noise_for(mask), (40, 40))


def test_a_clip_of_video():
    """1,568 tokens, 1,408 masked, 624 kept; the same tokens in every frame are visible."""
    tube = random_mask(2, 196, 176)
    mask = tube.repeat(1, 8)
    same(mask, ~mask, 624, noise_for(mask), (112, 14))


def test_no_images():
    mask = torch.zeros(0, 12, dtype=torch.bool)
    kept = torch.ops.prmim_adapters.farthest(
        mask, ~mask, torch.zeros(0, 1, dtype=torch.int64), mask.long(), [3, 4], 0
    )
    assert kept.shape == (0, 12)


def test_without_numpy_the_reference_chooses(monkeypatch):
    mask = random_mask(3, 49, 30)
    expected = sampling.farthest(mask, 10, (7, 7), noise_for(mask))
    for module in ('numpy', 'prmim_adapters.core.farthest_numpy'):
        monkeypatch.setitem(sys.modules, module, None)
    assert torch.equal(sampling.farthest(mask, 10, (7, 7), noise_for(mask)), expected)
    with seeded(3):
        drawn = torch.rand(2)
    with seeded(3):
        assert torch.equal(torch.rand(2), drawn)
