# SPDX-License-Identifier: Apache-2.0
"""What each process of test_distributed.py does."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from contract_case import collect
from mmengine.runner import set_random_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import prmim_adapters as prmim
from prmim_adapters.testing import AdapterCase, recorded_partitions


class LossPath(nn.Module):
    """What DDP wraps: forward is the loss."""

    def __init__(self, case: AdapterCase, model: nn.Module) -> None:
        super().__init__()
        self.case, self.model = case, model

    def forward(self, seed):
        return self.case.loss(self.model, seed)


def train(rank: int, port: int, folder: str) -> None:
    """Two steps of every case; gradients must be the same in both processes.

    Leaves a file with the name of each case that passed: what two starts of it drew.
    """
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    for case in collect():
        model = case.attached()
        print(case.name, flush=True)  # shown when DDP reports an unused parameter
        wrapped = DistributedDataParallel(LossPath(case, model), broadcast_buffers=False)
        for step in range(2):  # DDP reports a parameter left out of step 1 in step 2
            wrapped.zero_grad()
            wrapped(10 * rank + step).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                ours = [torch.empty_like(parameter.grad) for _ in range(2)]
                dist.all_gather(ours, parameter.grad.contiguous())
                assert torch.equal(ours[0], ours[1]), (case.name, name)
        torch.save([draw(case), draw(case)], Path(folder) / f'{case.name}-{rank}')
    dist.destroy_process_group()


def draw(case: AdapterCase) -> list[Tensor]:
    """Masks and kept tokens, (B, L) bool each, of two steps of a run that starts anew."""
    set_random_seed(0, diff_rank_seed=True)
    model, drawn = case.build(), []
    prmim.attach(case.target(model), throw_ratio=case.ratio)
    with recorded_partitions(case.target(model)) as seen:
        for _ in range(2):
            case.losses(model, case.batch())
    for mask, partition in seen:
        kept = torch.zeros_like(mask).scatter_(1, partition.kept, True)
        drawn += [mask, kept]
    return drawn
