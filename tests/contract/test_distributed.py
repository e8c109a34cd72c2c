# SPDX-License-Identifier: Apache-2.0
"""Item 9 of the contract: two gloo processes, without find_unused_parameters."""

import socket

import torch.multiprocessing
from contract_ddp import train


def test_two_processes():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(port,), nprocs=2)
