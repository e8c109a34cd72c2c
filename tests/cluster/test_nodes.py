# SPDX-License-Identifier: Apache-2.0
"""Training on two nodes: two network namespaces of this machine, joined by a cable of their own."""

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from same_masks_runs import ENVIRONMENT, assert_same_weights, page, shell, write_config

pytestmark = pytest.mark.slow
ADDRESSES = ('10.213.7.1', '10.213.7.2')


def ip(*arguments):
    return subprocess.run(['ip', *arguments], capture_output=True, text=True, check=True)


def why_not():
    """Why there can be no namespaces here, or None."""
    if shutil.which('ip') is None:
        return 'no ip; Debian and Ubuntu: apt-get install iproute2'
    name = f'prmim-probe-{os.getpid()}'
    try:
        ip('netns', 'add', name)
        ip('netns', 'delete', name)
    except subprocess.CalledProcessError as error:
        return f'no network namespaces for this user: {error.stderr.strip()}'
    return None


@pytest.fixture
def cable():
    """Names of two namespaces, each with one end of a pair of virtual network devices."""
    if reason := why_not():
        pytest.skip(reason)
    names = [f'prmim{os.getpid()}-{side}' for side in 'ab']
    ends = [f'prv{os.getpid()}{side}' for side in 'ab']
    try:
        for name in names:
            ip('netns', 'add', name)
        first, second = [
            ('name', end, 'netns', name) for end, name in zip(ends, names, strict=True)
        ]
        ip('link', 'add', *first, 'type', 'veth', 'peer', *second)
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip('-n', name, 'address', 'add', f'{address}/24', 'dev', end)
            for device in (end, 'lo'):
                ip('-n', name, 'link', 'set', device, 'up')
        yield list(zip(names, ends, ADDRESSES, strict=True))
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'delete', name], capture_output=True)


def kill(process):
    """A node that is lost: all its processes at once."""
    with suppress(psutil.Error):
        family = psutil.Process(process.pid)
        for each in [*family.children(recursive=True), family]:
            with suppress(psutil.Error):
                each.kill()
    process.wait()


@pytest.fixture
def torchrun(cable, tmp_path):
    """Function (node, config) -> the page's torchrun on that node, under way."""
    started = []

    def start(node, config):
        namespace, device, address = cable[node]
        # The host name says 127.0.0.1 in both.
        flags = f'--local-addr {address} --rdzv-conf is_host={int(node == 0)}'
        commands = page('torchrun').replace('$TRAIN', f'{flags} $TRAIN')
        values = dict(CONFIG=config, NODES=2, GPUS=1, HOST=ADDRESSES[0])
        command = ['ip', 'netns', 'exec', namespace, *shell(commands, **values)]
        more = dict(GLOO_SOCKET_IFNAME=device, TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
        with (tmp_path / f'node{node}.log').open('a') as log:
            started.append(
                subprocess.Popen(
                    command, env={**ENVIRONMENT, **more}, stdout=log, stderr=subprocess.STDOUT
                )
            )
        return started[-1]

    yield start
    for process in started:
        kill(process)


def finished(processes, folder):
    """Wait for both nodes."""
    for node, process in enumerate(processes):
        code = process.wait(timeout=900)
        assert code == 0, (folder / f'node{node}.log').read_text()[-4000:]


def test_two_nodes_train_as_one_process_with_the_same_global_batch(alone, torchrun, tmp_path):
    shared = tmp_path / 'shared'
    config = write_config(tmp_path / 'config.py', shared, processes=2)
    finished([torchrun(node, config) for node in (0, 1)], tmp_path)
    assert_same_weights(shared, alone)


def test_a_node_that_is_lost_and_comes_back_resumes(alone, torchrun, tmp_path):
    shared = tmp_path / 'shared'
    config = write_config(tmp_path / 'config.py', shared, processes=2, seconds=2)
    first, second = (torchrun(node, config) for node in (0, 1))
    end = time.monotonic() + 900
    while not (shared / 'epoch_2.pth').exists():
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.1)
    kill(second)
    assert not (shared / 'epoch_5.pth').exists()
    finished([first, torchrun(1, config)], tmp_path)
    starts = sorted(shared.glob('*/vis_data/scalars.json'))
    assert len(starts) == 2
    resumed = [json.loads(line)['step'] for line in starts[1].read_text().splitlines()]
    assert resumed[0] > 4
    assert_same_weights(shared, alone)
