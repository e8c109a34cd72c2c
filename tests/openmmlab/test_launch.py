# SPDX-License-Identifier: Apache-2.0
"""Starts of one process as the launchers do it; tests/cluster has real Slurm and several processes."""

import os

import mmengine.dist.utils as mmengine_dist
import pytest
import torch

from prmim_adapters.openmmlab import launch

LAUNCHERS = dict(
    pytorch=dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1'),
    slurm=dict(
        SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='1', SLURM_NODELIST='n1',
        SLURM_JOB_ID='7', SLURM_STEP_ID='0',
    ),
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, and takes back what the code under test sets."""
    monkeypatch.setattr(os, 'environ', os.environ.copy())
    monkeypatch.delenv('MASTER_PORT', raising=False)
    return os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason='only machines without CUDA need the patch')
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_launchers_start_without_cuda(launcher, free_port):
    choose, before = torch.cuda.set_device, dict(os.environ)
    os.environ.update(LAUNCHERS[launcher], MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port))
    try:
        mmengine_dist.init_dist(launcher, backend='gloo')
        assert torch.distributed.get_backend() == 'gloo'
        assert mmengine_dist.get_world_size() == 1
        assert torch.cuda.set_device is choose
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.distributed.destroy_process_group()


def test_every_step_of_a_job_has_a_port_of_its_own(environment):
    ports = set()
    for job in range(40):
        for step in range(2):
            environment.pop('MASTER_PORT', None)
            environment.update(LAUNCHERS['slurm'], SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))
            launch.prepare_slurm()
            ports.add(int(environment['MASTER_PORT']))
    assert len(ports) == 80
    assert min(ports) >= 20000 and max(ports) < 30000


def test_a_port_that_is_set_stays(environment):
    environment.update(LAUNCHERS['slurm'], MASTER_PORT='29500')
    launch.prepare_slurm()
    assert environment['MASTER_PORT'] == '29500'


def test_rank_0_is_on_the_first_node_of_the_step(environment):
    environment.update(LAUNCHERS['slurm'], SLURM_NODELIST='n[1-2]', SLURM_STEP_NODELIST='n2')
    launch.prepare_slurm()
    assert environment['SLURM_NODELIST'] == 'n2'


@pytest.mark.parametrize(('visible', 'device'), [(0, '3'), (1, '0'), (2, '1'), (8, '3')])
def test_a_task_that_sees_one_gpu_takes_it(environment, monkeypatch, visible, device):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: visible)
    environment.update(LAUNCHERS['slurm'], SLURM_LOCALID='3')
    launch.prepare_slurm()
    assert environment['SLURM_LOCALID'] == device
