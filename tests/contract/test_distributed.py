# SPDX-License-Identifier: Apache-2.0
"""Item 9 of the contract: two gloo processes, without find_unused_parameters."""

import torch.multiprocessing
from contract_case import collect
from contract_ddp import train


def test_two_processes(tmp_path, free_port):
    torch.multiprocessing.spawn(train, args=(free_port, str(tmp_path)), nprocs=2)
    passed = {path.name for path in tmp_path.iterdir()}
    assert passed == {f'{case.name}-{rank}' for case in collect() for rank in range(2)}
