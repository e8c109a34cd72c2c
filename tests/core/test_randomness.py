# SPDX-License-Identifier: Apache-2.0
"""The samplers' own random integers."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from prmim_adapters.core.randomness import Randomness

MASK = torch.zeros(64, 196, dtype=torch.bool)


def splitmix(state: int, count: int) -> list[int]:
    """The published generator, in Python's unbounded integers."""
    out, limit = [], 2**64
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % limit
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % limit
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % limit
        out.append((z ^ (z >> 31)) % 2**20)
    return out


@pytest.mark.parametrize('seed', [0, 1, 2**63 - 1])
def test_is_splitmix64_from_call_to_call(seed):
    source = Randomness()
    source.seed(seed)
    drawn = torch.cat([source(MASK[:2, :5]).flatten() for _ in range(3)])
    assert drawn.tolist() == splitmix(seed, 30)


def test_leaves_the_global_generator_alone_and_begins_from_its_seed():
    torch.manual_seed(7)
    first, second = Randomness(), Randomness()
    before = torch.get_rng_state()
    assert torch.equal(first(MASK), second(MASK))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert not torch.equal(Randomness()(MASK), second(MASK))


def test_every_rank_draws_others(monkeypatch):
    drawn = []
    for rank in range(3):
        monkeypatch.setattr('prmim_adapters.core.randomness._rank', lambda rank=rank: rank)
        source = Randomness()
        source.seed(5)
        drawn.append(source(MASK))
    shares = [(drawn[a] == drawn[b]).float().mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert max(shares) < 1e-3


def test_uniform():
    source = Randomness()
    source.seed(3)
    drawn = source(MASK).double()
    assert drawn.min() >= 0 and drawn.max() < 2**20
    assert drawn.mean() / 2**20 == pytest.approx(0.5, abs=0.01)
    assert drawn.std() / 2**20 == pytest.approx(12**-0.5, abs=0.01)
    assert drawn.unique().numel() > 12_000  # of 12,544


def test_state_is_copied_and_not_saved():
    source = Randomness()
    twin = copy.deepcopy(source)
    assert not source.state_dict()
    assert torch.equal(twin(MASK), source(MASK))


def test_compiled():
    source, twin = Randomness(), Randomness()
    for randomness in (source, twin):
        randomness.seed(11)
    compiled = torch.compile(source, backend='aot_eager', fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(MASK), twin(MASK))


def test_a_graph_has_no_arithmetic_of_it():
    """Inductor's code for a GPU has products of a place and a constant, beyond 64 bits here."""
    graphs = []

    def backend(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op != 'output'})
        return graph

    torch.compile(Randomness(), backend=backend, fullgraph=True)(MASK)
    called = {name for name in graphs[0] if 'arange' in name or 'splitmix64' in name}
    assert called == {'prmim_adapters.splitmix64'}


def test_refuses_to_draw_again_in_backward():
    source, x = Randomness(), torch.ones(64, 196, requires_grad=True)

    def step(x):
        return (x * source(MASK)).sum()

    with pytest.raises(RuntimeError, match='blocks of the heavy network, not around it'):
        checkpoint(step, x, use_reentrant=False).backward()


def test_operator_is_sound():
    torch.library.opcheck(torch.ops.prmim_adapters.splitmix64, (torch.tensor(2**62), 12))
