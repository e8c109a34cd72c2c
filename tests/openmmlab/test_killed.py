# SPDX-License-Identifier: Apache-2.0
"""Training processes killed by SIGKILL at random moments, writes of checkpoints among them.

Shows the table ``run, killed after, in a write, checkpoints found, weights that differ`` with -s.
"""

import contextlib
import io
import os
import random
import time

import processes
import pytest
import survivor
import torch
from mmengine.hooks import Hook

from prmim_adapters.openmmlab import whole_files

MOMENTS = 20


class SlowHook(Hook):
    """As long in an iteration as in a piece of a write, so that moments fall into both."""

    def before_train(self, runner):
        self.begun.set()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(0.02)


class SlowStream(io.FileIO):
    """A file that is written in ten pieces."""

    def write(self, data):
        for piece in range(10):
            start, end = (len(data) * k // 10 for k in (piece, piece + 1))
            super().write(data[start:end])
            time.sleep(0.005)
        return len(data)


def run(kind, folder, begun):
    hook = SlowHook()
    hook.begun = begun
    whole_files.Path.open = lambda path, mode: SlowStream(path, mode)
    torch.set_num_threads(1)
    with open(os.devnull, 'w') as silent, contextlib.redirect_stderr(silent):
        runner = survivor.build(kind, folder, hooks=[hook])
        runner.train()
    torch.save(runner.model.state_dict(), folder / 'final')


def start(kind, folder):
    """A training process that has begun to train."""
    begun = processes.SERVER.Event()
    process = processes.SERVER.Process(
        target=processes.call, args=(__file__, 'run', kind, folder, begun)
    )
    process.start()
    assert begun.wait(300)
    return process


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """By kind: seconds of training, and weights at its end."""
    found = {}
    for kind in survivor.KINDS:
        folder = tmp_path_factory.mktemp(kind)
        process, begin = start(kind, folder), time.monotonic()
        process.join()
        found[kind] = time.monotonic() - begin, torch.load(folder / 'final')
    return found


@pytest.mark.slow
@pytest.mark.parametrize('moment', range(MOMENTS))
def test_resumed_bit_for_bit(moment, uninterrupted, tmp_path):
    kind = list(survivor.KINDS)[moment % len(survivor.KINDS)]
    seconds, expected = uninterrupted[kind]
    wait = random.Random(moment).uniform(0, 0.8 * seconds)
    process = start(kind, tmp_path)
    time.sleep(wait)
    process.kill()
    process.join()
    files = sorted(path.name for path in tmp_path.glob('*.pth*'))
    process = start(kind, tmp_path)
    process.join()
    weights = torch.load(tmp_path / 'final')
    different = [name for name in expected if not torch.equal(expected[name], weights[name])]
    print(f'\n{kind}, {wait:.2f} of {seconds:.2f} s, {files}, {len(different)} of {len(expected)}')
    assert not different
