# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from masks import random_mask

from prmim_adapters.core.sampling import farthest, lattice, random, squared_distance_to


def noise_of(mask, seed):
    return torch.randint(1 << 20, mask.shape, generator=torch.Generator().manual_seed(seed))


def oracle(mask, noise, num_kept, grid, seeded=True):
    """Farthest point sampling of one image in plain Python, ties by noise, then by position."""
    height, width = grid
    places = [(p // width, p % width) for p in range(height * width)]
    present = [p for p in range(len(places)) if seeded and not mask[p]]
    kept = []

    def distance(p):
        if not present:
            return height**2 + width**2
        row, column = places[p]
        return min((row - places[q][0]) ** 2 + (column - places[q][1]) ** 2 for q in present)

    for _ in range(num_kept):
        candidates = [p for p in range(len(places)) if mask[p] and p not in kept]
        chosen = max(candidates, key=lambda p: (distance(p), int(noise[p]), -p))
        kept.append(chosen)
        present.append(chosen)
    return sorted(kept)


@pytest.mark.parametrize('grid', [(7, 7), (4, 9), (1, 12)])
@pytest.mark.parametrize('seeds', ['visible', 'none'])
def test_farthest_agrees_with_the_oracle(grid, seeds):
    length = grid[0] * grid[1]
    mask = random_mask(3, length, length * 3 // 4)
    noise = noise_of(mask, 3)
    kept = farthest(mask, length // 4, grid, noise, seeds=seeds)
    for image in range(3):
        expected = oracle(mask[image], noise[image], length // 4, grid, seeds == 'visible')
        assert kept[image].nonzero().flatten().tolist() == expected


def test_farthest_takes_ragged_counts():
    mask = torch.cat([random_mask(1, 49, m, seed=m) for m in (5, 30, 1, 49)])
    counts = torch.tensor([2, 10, 0, 49])
    kept = farthest(mask, counts, (7, 7))
    assert kept.sum(1).tolist() == [2, 10, 0, 49]
    assert not (kept & ~mask).any()


@pytest.mark.parametrize('sampler', [random, lattice])
def test_other_samplers_take_ragged_counts(sampler):
    mask = torch.cat([random_mask(1, 49, m, seed=m) for m in (5, 30, 1, 49)])
    kept = sampler(mask, torch.tensor([2, 10, 0, 49]), (7, 7))
    assert kept.sum(1).tolist() == [2, 10, 0, 49]
    assert not (kept & ~mask).any()


def test_every_thrown_token_touches_a_present_one():
    """MAE's mask ratio 0.75 at throw ratio 0.5 on 14x14, 256 masks; random sampling does not."""
    mask = random_mask(256, 196, 147)
    generator = torch.Generator().manual_seed(0)
    worst = {}
    for name, sampler in (('farthest', farthest), ('random', random)):
        noise = torch.randint(1 << 20, mask.shape, generator=generator)
        present = ~mask | sampler(mask, 49, (14, 14), noise)
        worst[name] = int(squared_distance_to(present, (14, 14)).max())
    assert worst['farthest'] == 1
    assert worst['random'] > 1


def test_distance_transform_equals_all_pairs():
    points = random_mask(4, 35, 3)
    points[3] = False
    actual = squared_distance_to(points, (5, 7))
    place = torch.stack((torch.arange(35) // 7, torch.arange(35) % 7), 1)
    pairs = ((place[:, None] - place[None]) ** 2).sum(-1)
    expected = torch.where(points[:, None], pairs, 5**2 + 7**2).amin(-1)
    assert torch.equal(actual, expected)


def test_lattice_is_even():
    """On a fully masked 8x8 grid, 16 of 64 kept tokens form one of the four-by-four lattices."""
    kept = lattice(torch.ones(5, 64, dtype=torch.bool), 16, (8, 8))
    for image in kept.view(5, 8, 8):
        rows, columns = image.nonzero().T
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == 4
        assert (rows.unique().diff() == 2).all() and (columns.unique().diff() == 2).all()


def test_random_is_uniform():
    mask = torch.ones(20000, 9, dtype=torch.bool)
    kept = random(mask, 3, (3, 3), noise_of(mask, 0))
    share = kept.float().mean(0)
    assert (share - 1 / 3).abs().max() < 0.015  # 4.5 standard errors


def test_ties_are_broken_at_random_and_repeatably():
    mask = torch.ones(1, 16, dtype=torch.bool)
    picks = [
        farthest(mask, 1, (4, 4), noise_of(mask, seed)).nonzero()[0, 1].item() for seed in range(40)
    ]
    assert len(set(picks)) > 8
    again = farthest(mask, 1, (4, 4), noise_of(mask, 0)).nonzero()[0, 1].item()
    assert again == picks[0]


def test_unknown_seeds():
    with pytest.raises(ValueError, match="seeds='all': allowed are 'visible', 'none'"):
        farthest(torch.ones(1, 4, dtype=torch.bool), 1, (2, 2), seeds='all')


def test_custom_operator_is_sound():
    mask = random_mask(2, 20, 15)
    count, noise = torch.full((2, 1), 5), torch.randint(1 << 20, mask.shape)
    for given in (mask, mask.t().contiguous().t()):  # whatever its layout in memory
        arguments = (given, ~given, count, noise, [4, 5], 5)
        torch.library.opcheck(torch.ops.prmim_adapters.farthest, arguments)
