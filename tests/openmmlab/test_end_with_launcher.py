# SPDX-License-Identifier: Apache-2.0
"""What happens to training when ``mim train``, which started it, is ended."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import survivor
from mmengine.config import Config

from prmim_adapters.openmmlab.end_with_launcher import runs
from prmim_adapters.openmmlab.whole_files import newest_whole

# Like mim: starts training, hands no signal on.
LAUNCHER = """
import subprocess, sys
subprocess.call([sys.executable, '-c', sys.argv[2]])
"""
TRAINING = """
import time
from prmim_adapters.openmmlab.end_with_launcher import EndWithLauncherHook
EndWithLauncherHook().before_run(None)
try:
    print('begun', flush=True)
    time.sleep(100)
except KeyboardInterrupt:
    print('interrupted', flush=True)
"""


@pytest.fixture
def launched(tmp_path):
    script = tmp_path / 'mim'
    script.write_text(LAUNCHER)
    process = subprocess.Popen(
        [sys.executable, str(script), 'train', TRAINING],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == 'begun\n'
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize('end', [signal.SIGTERM, signal.SIGKILL])
def test_training_ends_with_mim(launched, end):
    (training,) = psutil.Process(launched.pid).children()
    launched.send_signal(end)
    launched.wait()
    assert launched.stdout.readline() == 'interrupted\n'
    wait_until(lambda: not runs(training), 60)


def test_sigterm_is_ctrl_c(launched):
    (training,) = psutil.Process(launched.pid).children()
    training.terminate()
    assert launched.stdout.readline() == 'interrupted\n'
    assert launched.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('end', [signal.SIGTERM, signal.SIGKILL])
def test_real_training_ends_with_mim_and_is_resumed(processes, end, tmp_path):
    work = tmp_path / 'work'
    config = survivor.settings('mae-by-epoch', work)
    config.update(
        custom_imports=dict(imports=['survivor']),
        custom_hooks=[dict(type='EndWithLauncherHook')],
        train_cfg=dict(by_epoch=True, max_epochs=10_000),
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
    )
    Config(config).dump(tmp_path / 'config.py')
    command = [sys.executable, '-m', 'mim', 'train', 'mmpretrain', str(tmp_path / 'config.py')]
    if processes > 1:
        command += ['--launcher', 'pytorch', '--gpus', str(processes)]
    mim = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'},
    )
    wait_until(lambda: (work / 'last_checkpoint').exists(), 600)
    started = psutil.Process(mim.pid).children(recursive=True)
    assert len(started) >= processes
    mim.send_signal(end)
    mim.wait()
    wait_until(lambda: not any(map(runs, started)), 300)  # minutes on a loaded machine
    assert newest_whole(work)[0] is not None


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
