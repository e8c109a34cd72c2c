# SPDX-License-Identifier: Apache-2.0
"""What happens to training when ``mim train``, which started it, is ended."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from prmim_adapters.openmmlab.end_with_launcher import runs

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
    deadline = time.monotonic() + 60  # seconds of an idle machine are minutes of a loaded one
    while runs(training):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_sigterm_is_ctrl_c(launched):
    (training,) = psutil.Process(launched.pid).children()
    training.terminate()
    assert launched.stdout.readline() == 'interrupted\n'
    assert launched.wait() == 0
