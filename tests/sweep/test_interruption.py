# SPDX-License-Identifier: Apache-2.0
import copy
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from prmim_adapters.sweep.files import read_json
from prmim_adapters.sweep.processes import (
    MARK,
    Children,
    SweepEndedError,
    end_processes,
    ended_by_signals,
    processes_of,
)
from prmim_adapters.sweep.results import write_json

# A process whose child has a session of its own, as torchrun's workers do.
TREE = """
import subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
if sys.argv[1] == 'waits':
    import time; time.sleep(600)
sys.exit(3)
"""


# A sweep of one point that waits for TREE; killed, it would leave both processes.
ENDED = f"""
import os, pathlib, sys
from prmim_adapters.sweep.processes import Children, ended_by_signals
with ended_by_signals(), Children() as children, open(os.devnull, 'w') as log:
    command = [sys.executable, '-c', {TREE!r}, 'waits']
    children.run(pathlib.Path(sys.argv[1]), command, dict(os.environ), log)
"""


def stable(report):
    """The report without its last section, measured times, and its heading."""
    return report.split('## Measured time')[0].split('\n', 1)[1]


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.02)


def begun_again(point, before):
    """Whether the point has another settings.json than the one of this time."""
    try:
        return (point / 'settings.json').stat().st_mtime_ns != before
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_killed_twice_the_report_is_that_of_an_uninterrupted_sweep(own_spec, prmim_sweep):
    spec = copy.deepcopy(own_spec)
    spec['arms'], spec['seeds'] = {'plain': spec['arms']['plain']}, [0]
    process, whole = prmim_sweep(spec, 'whole')
    assert process.wait(timeout=900) == 0

    # Once in the middle of the second point's training ...
    process, out = prmim_sweep(spec, 'killed')
    wait_for(lambda: list(out.glob('mine/plain-0.25/seed0/train/*/vis_data/config.py')), 900)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = out / 'mine' / 'framework' / 'seed0' / 'result.json'
    kept = first.read_bytes(), first.stat().st_mtime_ns
    second = out / 'mine' / 'plain-0.25' / 'seed0'
    assert not (second / 'result.json').exists()
    # ... which goes on as an orphan; and once when that point has just begun again.
    orphan = processes_of(second)
    assert orphan
    begun = (second / 'settings.json').stat().st_mtime_ns
    process, _ = prmim_sweep(spec, 'killed')
    wait_for(lambda: begun_again(second, begun) and processes_of(second), 900)
    assert not processes_of(second) & orphan
    process.send_signal(signal.SIGKILL)
    process.wait()

    process, _ = prmim_sweep(spec, 'killed')
    assert process.wait(timeout=900) == 0
    assert (first.read_bytes(), first.stat().st_mtime_ns) == kept
    assert not processes_of(second)
    assert stable((out / 'report.md').read_text()) == stable((whole / 'report.md').read_text())


@pytest.mark.slow
def test_terminated_with_two_points_running_nothing_is_left_and_the_next_call_goes_on(
    own_spec, prmim_sweep
):
    spec = copy.deepcopy(own_spec)
    spec.update(arms={'plain': spec['arms']['plain']}, seeds=[0])
    process, out = prmim_sweep(spec, 'terminated', '--jobs', '2')
    points = [out / 'mine' / arm / 'seed0' for arm in ('framework', 'plain-0.25')]
    wait_for(lambda: all(processes_of(point) for point in points), 900)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert not any(processes_of(point) for point in points)
    assert time.monotonic() - begin < 10
    assert not any((point / 'failure.json').exists() for point in points)

    process, _ = prmim_sweep(spec, 'terminated', '--jobs', '2')
    assert process.wait(timeout=900) == 0
    assert all((point / 'result.json').exists() for point in points)


@pytest.mark.slow
def test_resumed_during_a_transfer_the_pretraining_is_kept(own_spec, prmim_sweep, image_folder):
    data = dict(own_spec['evaluation']['train'], persistent_workers=False)
    (image_folder / 'finetune.py').write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='VisionTransformer', img_size=16,\n"
        '    patch_size=8, arch=dict(embed_dims=8, num_layers=1, num_heads=1,\n'
        "    feedforward_channels=8)), head=dict(type='VisionTransformerClsHead', num_classes=2,\n"
        "    in_channels=8, loss=dict(type='CrossEntropyLoss'), topk=(1,)))\n"
        "data_preprocessor = dict(type='DeviceAugment', mean=[127.5] * 3, std=[127.5] * 3)\n"
        f'train_dataloader = val_dataloader = {data!r}\n'
        "val_evaluator, val_cfg = dict(type='Accuracy'), dict()\n"
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n"
        'train_cfg = dict(by_epoch=True, max_epochs=1)\n'
    )
    spec = copy.deepcopy(own_spec)
    spec.update(arms={}, verdict={}, seeds=[0], resume=True)
    spec['options'] = dict(default_hooks=dict(checkpoint=dict(interval=1)))
    spec['transfers'] = dict(finetune=dict(config='finetune.py'))
    process, out = prmim_sweep(spec, 'resumed')
    point = out / 'mine' / 'framework' / 'seed0'
    wait_for(lambda: (point / 'finetune.log').exists(), 900)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert processes_of(point) == set()
    assert not (point / 'failure.json').exists()
    log = (point / 'config.log').read_bytes()

    process, _ = prmim_sweep(spec, 'resumed')
    _, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    result = read_json(point / 'result.json')
    assert 0 < result['cost']['forward_gmacs'] < result['cost']['training_gmacs']
    assert 0 <= result['accuracy']['finetune'] <= 100
    assert (point / 'config.log').read_bytes() == log


def test_all_processes_of_a_point_are_ended_and_no_others(tmp_path):
    points = [tmp_path / 'seed1', tmp_path / 'seed10']
    command = [sys.executable, '-c', TREE, 'waits']
    trees = [
        subprocess.Popen(command, env={**os.environ, MARK: str(point)}, start_new_session=True)
        for point in points
    ]
    try:
        for point in points:
            wait_for(lambda point=point: len(processes_of(point)) == 2, 60)
        sessions = {os.getsid(process.pid) for process in processes_of(points[0])}
        assert len(sessions) == 2
        # The sweep is killed, and mim with it: the worker goes on, until the next call.
        os.killpg(trees[0].pid, signal.SIGKILL)
        assert trees[0].wait(timeout=10) == -signal.SIGKILL
        assert len(processes_of(points[0])) == 1
        end_processes(points[0])
        assert processes_of(points[0]) == set()
        assert len(processes_of(points[1])) == 2
        end_processes(points[1])
        # The exit code is still there for whoever waits, or a killed run would pass for a finished one.
        assert trees[1].wait(timeout=10) == -signal.SIGKILL
    finally:
        for point, tree in zip(points, trees, strict=True):
            end_processes(point)
            tree.wait()


def test_an_interrupted_sweep_takes_its_processes_with_it(tmp_path):
    codes = []

    def run():
        with open(os.devnull, 'w') as log:
            codes.append(children.run(tmp_path, command, dict(os.environ), log))

    command = [sys.executable, '-c', TREE, 'waits']
    with Children() as children:
        thread = threading.Thread(target=run)
        thread.start()
        wait_for(lambda: len(processes_of(tmp_path)) == 2, 60)
    thread.join(timeout=60)
    assert codes == [-signal.SIGKILL]
    assert processes_of(tmp_path) == set()
    with pytest.raises(SweepEndedError):
        run()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_program_end_its_points(tmp_path, number):
    sweep = subprocess.Popen([sys.executable, '-c', ENDED, str(tmp_path)])
    wait_for(lambda: len(processes_of(tmp_path)) == 2, 60)
    sweep.send_signal(number)
    assert sweep.wait(timeout=10) == 128 + number
    assert processes_of(tmp_path) == set()


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_of_a_run_that_failed_are_ended(tmp_path):
    command = [sys.executable, '-c', TREE, 'fails']
    with Children() as children, open(os.devnull, 'w') as log:
        assert children.run(tmp_path, command, dict(os.environ), log) == 3
        assert processes_of(tmp_path) == set()


def test_a_half_written_result_is_no_result(tmp_path, monkeypatch):
    write_json(tmp_path / 'result.json', dict(value=1))

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.fsync', die)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / 'result.json', dict(value=2))
    assert (tmp_path / 'result.json').read_text() == '{\n  "value": 1\n}\n'
