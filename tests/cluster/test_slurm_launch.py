# SPDX-License-Identifier: Apache-2.0
"""Training on a real Slurm, by mim's launcher and by plain srun; run by tools/slurm_test.sh."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from same_masks_runs import ENVIRONMENT, assert_same_weights, page, shell, write_config

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def start(commands, **values):
    values = dict(PARTITION='test', **values)
    return subprocess.Popen(
        shell(commands, **values), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr[-4000:]


@pytest.mark.parametrize(('nodes', 'per_node'), [(1, 2), (2, 1)])
def test_mims_launcher_trains_as_one_process(alone, tmp_path, nodes, per_node):
    config = write_config(tmp_path / 'config.py', tmp_path, processes=2)
    finish(start(page('mim-slurm'), CONFIG=config, NODES=nodes, GPUS=per_node))
    assert_same_weights(tmp_path, alone)


def test_plain_srun_trains_as_one_process(alone, tmp_path):
    """Two jobs at a time, each with two tasks: the ports are not to collide."""
    configs = [write_config(tmp_path / f'{name}.py', tmp_path / name, 2) for name in ('one', 'two')]
    for process in [start(page('srun'), CONFIG=path, NODES=1, GPUS=2) for path in configs]:
        finish(process)
    for path in configs:
        assert_same_weights(path.with_suffix(''), alone)


def test_a_requeued_job_resumes(alone, tmp_path):
    shared = tmp_path / 'shared'
    config = write_config(tmp_path / 'config.py', shared, processes=2, seconds=2)
    commands = page('sbatch').replace('sbatch', f'sbatch --parsable --chdir {tmp_path}')
    values = dict(PARTITION='test', CONFIG=config, NODES=2, GPUS=1)
    job = subprocess.run(
        shell(commands, **values), env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout.strip()
    end = time.monotonic() + 1800
    requeued = False
    while not (shared / 'epoch_5.pth').exists():
        assert time.monotonic() < end
        if not requeued and (shared / 'epoch_2.pth').exists():
            subprocess.run(['scontrol', 'requeue', job], check=True)
            requeued = True
        time.sleep(0.1)
    assert 'resumed epoch: ' in (tmp_path / f'slurm-{job}.out').read_text()
    while subprocess.run(['squeue', '-h', '-j', job, '-t', 'R,CG'], capture_output=True).stdout:
        time.sleep(0.5)
    assert_same_weights(shared, alone)


def test_the_demo_trains_with_two_tasks(tmp_path):
    subprocess.run(
        [sys.executable, '-m', 'prmim_adapters.demo_data', tmp_path / 'images'], check=True
    )
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(ROOT / "configs/mmpretrain/_demo_/mae_prmim_demo.py")!r}\n'
        f'work_dir = {str(tmp_path)!r}\n'
        "env_cfg = dict(dist_cfg=dict(backend='gloo'))\n"
        "model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)\n"
        'train_dataloader = dict(batch_size=8, dataset=dict(dataset=dict(indices=64, '
        f'data_root={str(tmp_path / "images" / "train")!r})))\n'
        'train_cfg = dict(max_epochs=2)\n'
        'default_hooks = dict(logger=dict(interval=1))\n'
        'param_scheduler = []\n'
    )
    finish(start(page('mim-slurm'), CONFIG=tmp_path / 'config.py', NODES=1, GPUS=2))
    (log,) = tmp_path.glob('*/*.log')
    assert 'Epoch(train) [2][4/4]' in log.read_text()  # 64 images, 8 in each of 2 tasks
