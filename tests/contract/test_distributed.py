# SPDX-License-Identifier: Apache-2.0
"""Item 9 of the contract: two gloo processes, without find_unused_parameters."""

import torch.multiprocessing
from contract_case import collect
from contract_ddp import train


def test_two_processes(tmp_path, free_port):
    torch.multiprocessing.spawn(train, args=(free_port, str(tmp_path)), nprocs=2)
    passed = {path.name for path in tmp_path.iterdir()}
    assert passed == {f'{case.name}-{rank}' for case in collect() for rank in range(2)}
    for case in collect():
        first, other = (torch.load(tmp_path / f'{case.name}-{rank}') for rank in range(2))
        for once, again in (first, other):
            assert same(once, again), case.name
        (here, there) = (rank[0] for rank in (first, other))
        steps = len(here) // 2
        in_batch = same(here[:steps:2], here[steps::2])  # the masks of both steps: made by the data
        assert in_batch or not same(here[::2], there[::2]), case.name
        assert not same(here[1::2], there[1::2]), case.name


def same(these, those):
    return all(map(torch.equal, these, those))
