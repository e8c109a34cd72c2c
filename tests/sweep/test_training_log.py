# SPDX-License-Identifier: Apache-2.0
"""Logs as torchrun, mim and Python write them."""

import subprocess
import sys

import pytest

from prmim_adapters.sweep.training_log import cause

RANKS = """
import sys, time
import torch.distributed as dist

dist.init_process_group('gloo')
if dist.get_rank() == 1:
    time.sleep(0.5)
    raise ValueError('image of the wrong\\nkind')
dist.barrier()
"""


@pytest.mark.slow
def test_two_processes_under_torchrun(tmp_path, free_port):
    (tmp_path / 'train.py').write_text(RANKS)
    command = [sys.executable, '-m', 'torch.distributed.launch', '--nproc_per_node=2']
    run = subprocess.run(
        [*command, f'--master_port={free_port}', 'train.py'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = run.stdout.splitlines()
    assert 'ChildFailedError: ' in run.stdout
    place = f'{tmp_path / "train.py"}, line 8'
    assert cause(lines, 1) == f'rank 1: ValueError: image of the wrong ({place})'


ALTERNATING = """\
11/26 17:46 - mmengine - INFO - Epoch(train) [1][5/5]
[rank1]: Traceback (most recent call last):
[rank0]: Traceback (most recent call last):
[rank1]:   File "loader.py", line 3, in load
[rank0]:   File "reduce.py", line 9, in wait
[rank1]: cv2.error: OpenCV(4.11.0) error: (-215:Assertion failed) !_src.empty()
[rank0]: RuntimeError: [pair.cc:561] Connection closed by peer [127.0.0.1]:51391.
W1126 17:46:47.268000 20428 api.py:1028] Sending process 20451 closing signal SIGTERM
Traceback (most recent call last):
  File "run.py", line 1, in main
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
  rank      : 0 (local_rank: 0)
"""
WORKER = """\
Traceback (most recent call last):
  File "train.py", line 163, in <module>
    main()
ValueError: Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "fetch.py", line 52, in fetch
    data = [self.dataset[idx] for idx in possibly_batched_index]
            ~~~~~~~~~~~~^^^^^
  File "images.py", line 7, in __getitem__
ValueError: a.png is damaged

Traceback (most recent call last):
  File "mim.py", line 1, in main
subprocess.CalledProcessError: Command '['python', 'train.py']' returned non-zero exit status 1.
"""
CHAIN = """\
Exception ignored in: <function DataLoader.__del__>
Traceback (most recent call last):
  File "dataloader.py", line 1, in __del__
AssertionError: can only join a child process
Traceback (most recent call last):
  File "registry.py", line 5, in get
KeyError: 'Nothing'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "build.py", line 6, in build
KeyError: 'Nothing is not in the registry'
"""
HANDLED = """\
Traceback (most recent call last):
  File "retry.py", line 5, in get
OSError: read failed, and will be tried again
11/26 17:46 - mmengine - INFO - Epoch(train) [1][5/5]
Traceback (most recent call last):
  File "train.py", line 6, in run
ZeroDivisionError
"""
KILLED = """\
Traceback (most recent call last):
  File "subprocess.py", line 413, in check_call
subprocess.CalledProcessError: Command '['python', 'train.py']' died with <Signals.SIGKILL: 9>.
"""


@pytest.mark.parametrize(
    ('log', 'expected'),
    [
        (
            ALTERNATING,
            'rank 1: cv2.error: OpenCV(4.11.0) error: (-215:Assertion failed) !_src.empty() '
            '(loader.py, line 3)',
        ),
        (WORKER, 'ValueError: a.png is damaged (images.py, line 7)'),
        (CHAIN, "KeyError: 'Nothing is not in the registry' (build.py, line 6)"),
        (HANDLED, 'ZeroDivisionError (train.py, line 6)'),
        (KILLED, 'a training process was ended by SIGKILL, which a system out of memory sends'),
        ('', 'ended with code 3'),
    ],
    ids=['ranks', 'worker', 'chain', 'handled', 'killed', 'silent'],
)
def test_the_first_real_error(log, expected):
    assert cause(log.splitlines(), 3) == expected
