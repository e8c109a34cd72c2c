# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes put their shares together as one process would have them."""

import os
import resource

import torch
import torch.distributed as dist
from mmengine.dataset import DefaultSampler
from mmengine.model import MMDistributedDataParallel
from processes import on_two_processes
from torch import nn

from prmim_adapters.openmmlab.distributed import gather_shards, unwrapped

ROWS, WIDTH = 2001, 100
FEATURES = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def share(rank, port, folder):
    """What each of two processes does; writes what it ends up with."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    os.chdir(folder)
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    # A share has 0.4 MB; with all of its storage behind each row it would need 400 MB.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    results = []
    for round_up in (True, False):
        sampler = DefaultSampler(range(ROWS), shuffle=False, round_up=round_up)
        rows = torch.tensor(list(sampler))
        results.append(gather_shards(FEATURES[rows], rows, ROWS))
    model = nn.Linear(2, 2)
    assert unwrapped(MMDistributedDataParallel(model, device_ids=None)) is model
    if rank == 0:
        assert all(torch.equal(features, FEATURES) for features, _ in results)
        assert all(torch.equal(labels, torch.arange(ROWS)) for _, labels in results)
        (folder / 'done').touch()
    dist.destroy_process_group()


def test_the_main_process_has_every_row_in_order(tmp_path, free_port):
    on_two_processes(share, free_port, tmp_path)
    assert (tmp_path / 'done').exists()


def test_one_process_keeps_what_it_has():
    labels = torch.arange(ROWS)
    features, same = gather_shards(FEATURES, labels, ROWS)
    assert features is FEATURES
    assert same is labels
    model = nn.Linear(2, 2)
    assert unwrapped(model) is model
