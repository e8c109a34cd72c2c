# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from masks import random_mask
from torch.testing import assert_close

from prmim_adapters.core import PartialReconstruction, sincos_positions
from prmim_adapters.core.aggregation import CrossAttention, Distance
from prmim_adapters.core.cross_blocks import CrossBlocks
from prmim_adapters.core.sampling import farthest, random, squared_distance_to

GRID, WIDTH = (6, 6), 4


def pipeline(stages: int = 1, **options) -> PartialReconstruction:
    aggregators = [Distance(WIDTH, GRID) for _ in range(stages)]
    return PartialReconstruction(0.5, GRID, farthest, aggregators, **options)


def run(partial, mask, seed: int = 0):
    torch.manual_seed(seed)
    partition = partial(mask)
    features = torch.randn(len(mask), partition.present.shape[1], WIDTH, requires_grad=True)
    rows = partial.reconstruct(partition, features, torch.zeros(36, WIDTH))
    return partition, features, rows


def test_rows_are_kept_then_thrown():
    mask = random_mask(2, 36, 27)
    partial = pipeline()
    partition, features, rows = run(partial, mask)
    assert rows.shape == (2, 27, WIDTH)
    assert torch.equal(rows[:, :9], features[:, 9:])
    expected = Distance(WIDTH, GRID)(features, partition, torch.zeros(36, WIDTH))
    assert_close(rows[:, 9:], expected)
    assert torch.equal(partial.supervised(partition), partition.masked)
    assert partial.take(2) is partition


def test_plain_partial_reconstruction_drops_thrown_tokens():
    mask = random_mask(2, 36, 27)
    partial = pipeline(stages=0)
    partition, features, rows = run(partial, mask)
    assert torch.equal(rows, features[:, 9:])
    assert torch.equal(partial.supervised(partition), partition.kept)
    weights = partial.loss_mask(mask.float(), partition)
    assert torch.equal(weights.sum(1), torch.full((2,), 9.0))
    assert (weights.gather(1, partition.kept) == 1).all()


def test_thrown_weight():
    mask = random_mask(2, 36, 27)
    partial = pipeline(thrown_weight=0.25)
    partition, *_ = run(partial, mask)
    weights = partial.loss_mask(mask, partition)
    assert (weights.gather(1, partition.thrown) == 0.25).all()
    assert (weights.gather(1, partition.kept) == 1).all()
    assert (weights.gather(1, partition.visible) == 0).all()
    assert pipeline().loss_mask(mask, partition) is mask


def test_stop_gradient_keeps_thrown_tokens_from_the_heavy_network():
    for stop, reaches in ((False, True), (True, False)):
        _, features, rows = run(pipeline(stop_gradient=stop), random_mask(2, 36, 27))
        rows[:, 9:].sum().backward(retain_graph=True)
        assert (features.grad is not None and bool(features.grad.any())) == reaches
    rows[:, :9].sum().backward()
    assert features.grad[:, 9:].eq(1).all()


def test_stages_go_from_near_to_far_and_build_on_each_other():
    mask = random_mask(2, 36, 33)  # few visible tokens, so distances vary
    partial = PartialReconstruction(0.8, GRID, random, [Distance(WIDTH, GRID, 1) for _ in range(3)])
    partition, features, rows = run(partial, mask)
    present = torch.zeros(2, 36, dtype=torch.bool).scatter(1, partition.present, True)
    distance = squared_distance_to(present, GRID).gather(1, partition.thrown)
    assert (distance.diff(dim=1) >= 0).all()
    assert distance.max() > 1
    # with one neighbour every reconstructed feature is a copy of a present one, stage by stage
    first = partition.thrown.tensor_split(3, dim=1)[0].shape[1]
    kept = partition.kept.shape[1]
    done = rows[:, kept : kept + first]
    one = Distance(WIDTH, GRID, 1)(features, partition, torch.zeros(36, WIDTH))[:, :first]
    assert_close(done, one)
    late = rows[0, -1]
    assert any(torch.equal(late, row) for row in features[0])


def test_the_second_stage_reads_the_first():
    partial = pipeline(stages=2)
    partition, features, rows = run(partial, random_mask(2, 36, 27))
    near, far = partition.thrown.tensor_split(2, dim=1)
    light, queries = Distance(WIDTH, GRID), torch.zeros(36, WIDTH)
    first = light(features, replace(partition, thrown=near), queries)
    known = replace(partition, kept=torch.cat((partition.kept, near), 1), thrown=far)
    second = light(torch.cat((features, first), 1), known, queries)
    assert_close(rows, torch.cat((features[:, 9:], first, second), 1))


def test_ragged_rule():
    """min(round(r * L), floor(2/3 * M)), computed by hand for L = 36, r = 0.5."""
    counts = pipeline().thrown_counts(torch.tensor([0, 1, 2, 3, 10, 27, 36]))
    assert counts.tolist() == [0, 0, 1, 2, 6, 18, 18]


class OwnAttention(CrossAttention):
    """A user's, who knows nothing of padding."""

    def forward(self, features, partition, queries):
        return super().forward(features, partition, queries)


@pytest.mark.parametrize(
    ('cls', 'options', 'calls'),
    [
        (CrossAttention, {}, 1),
        (CrossAttention, {'key_positions': True}, 1),
        (CrossAttention, {'sources': 'kept'}, 4),
        (CrossAttention, {'neighbours': 3}, 4),
        (CrossBlocks, {'key_positions': True}, 1),
        (CrossBlocks, {'sources': 'kept'}, 4),
        (OwnAttention, {}, 4),
    ],
)
def test_ragged_masks_are_reconstructed_as_each_size_by_itself(cls, options, calls):
    torch.manual_seed(0)
    light = cls(WIDTH, GRID, heads=2, inner=4, **options).double()
    partial = PartialReconstruction(0.5, GRID, farthest, [light], ragged=True)
    mask = torch.cat([random_mask(n, 36, m) for n, m in ((2, 30), (1, 12), (3, 21), (1, 2))])
    groups = partial(mask[torch.randperm(len(mask))])
    assert len(groups) == 4
    seen = []
    light.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    packed = torch.randn(sum(groups.num_present), WIDTH, dtype=torch.double)
    queries = torch.randn(36, WIDTH, dtype=torch.double)

    def run(function):
        features, asked = packed.clone().requires_grad_(), queries.clone().requires_grad_()
        light.zero_grad()
        rows = function(features, asked)
        (rows * torch.arange(len(rows))[:, None]).sum().backward()
        return [rows, features.grad, asked.grad, *(p.grad.clone() for p in light.parameters())]

    def one_by_one(features, asked):
        parts = features.split([len(i) * p.present.shape[1] for i, p in groups])
        rows = [
            partial.reconstruct(p, part.view(len(i), -1, WIDTH), asked).flatten(0, 1)
            for (i, p), part in zip(groups, parts, strict=True)
        ]
        return torch.cat(rows)

    found = run(lambda *given: partial.reconstruct_ragged(groups, *given))
    assert len(seen) == calls
    for ours, theirs in zip(found, run(one_by_one), strict=True):
        assert_close(ours, theirs)
    expected = [
        i * 36 + p for index, part in groups for i, p in zip(index, part.masked, strict=True)
    ]
    assert torch.equal(groups.rows(groups.num_visible, 36), torch.cat(expected))


def test_one_masked_token_is_kept_whatever_the_share():
    counts = pipeline(max_masked_share=1.0).thrown_counts(torch.tensor([0, 1, 2, 10, 36]))
    assert counts.tolist() == [0, 0, 1, 9, 18]


def test_sincos_positions_are_distinct_and_bounded():
    table = sincos_positions((3, 7), 16)
    assert table.shape == (21, 16)
    assert table.abs().max() <= 1
    assert torch.cdist(table, table).add(torch.eye(21)).min() > 0.1
    assert_close(table[0].view(2, 2, 4)[:, 0], torch.zeros(2, 4))  # sines at the origin


@pytest.mark.parametrize('throw_ratio', [0.0, 0.25, 0.5])
def test_number_thrown(throw_ratio):
    partial = PartialReconstruction(throw_ratio, (14, 14), farthest)
    assert partial.num_thrown == {0.0: 0, 0.25: 49, 0.5: 98}[throw_ratio]


def test_a_compiled_model_says_what_another_number_of_masked_tokens_is():
    partial = pipeline()
    compiled = torch.compile(lambda mask: partial(mask, loss_reads=False).kept, backend='eager')
    partial(random_mask(2, 36, 27), loss_reads=False)  # the eager batch
    assert compiled(random_mask(2, 36, 27)).shape == (2, 9)
    with pytest.raises(RuntimeError, match='a compiled model takes masks of one size'):
        compiled(random_mask(2, 36, 30))
