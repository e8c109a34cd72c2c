# SPDX-License-Identifier: Apache-2.0
import copy
import os
import signal
import subprocess
import sys
import time

import pytest

from prmim_adapters.sweep.processes import end_left_behind, started
from prmim_adapters.sweep.results import read_json, write_json


def stable(report):
    """The report without its last section, measured times, and its heading."""
    return report.split('## Measured time')[0].split('\n', 1)[1]


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_twice_the_report_is_that_of_an_uninterrupted_sweep(own_spec, prmim_sweep):
    spec = copy.deepcopy(own_spec)
    spec['arms'], spec['seeds'] = {'plain': spec['arms']['plain']}, [0]
    process, whole = prmim_sweep(spec, 'whole')
    assert process.wait(timeout=600) == 0

    # Once in the middle of the second point's training ...
    process, out = prmim_sweep(spec, 'killed')
    wait_for(lambda: list(out.glob('mine/plain-0.25/seed0/train/*/vis_data/config.py')), 300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = out / 'mine' / 'framework' / 'seed0' / 'result.json'
    kept = first.read_bytes(), first.stat().st_mtime_ns
    second = out / 'mine' / 'plain-0.25' / 'seed0'
    assert not (second / 'result.json').exists()
    # ... which goes on as an orphan; and once when that point has just begun again.
    orphan = read_json(second / 'running.json')
    process, _ = prmim_sweep(spec, 'killed')
    wait_for(lambda: read_json(second / 'running.json') not in (None, orphan), 300)
    assert started(orphan['pid']) != orphan['started']
    process.send_signal(signal.SIGKILL)
    process.wait()

    process, _ = prmim_sweep(spec, 'killed')
    assert process.wait(timeout=600) == 0
    assert (first.read_bytes(), first.stat().st_mtime_ns) == kept
    assert not list(out.rglob('running.json'))
    assert stable((out / 'report.md').read_text()) == stable((whole / 'report.md').read_text())


def test_only_the_recorded_process_is_ended(tmp_path):
    def sleeper():
        return subprocess.Popen(
            [sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True
        )

    ours, other = sleeper(), sleeper()
    try:
        write_json(tmp_path / 'a' / 'running.json', dict(pid=ours.pid, started=started(ours.pid)))
        # The same id, started at another time: a stranger who got the number later.
        write_json(tmp_path / 'b' / 'running.json', dict(pid=other.pid, started='1'))
        end_left_behind(tmp_path / 'a')
        end_left_behind(tmp_path / 'b')
        assert ours.wait(timeout=10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()


def test_a_half_written_result_is_no_result(tmp_path, monkeypatch):
    write_json(tmp_path / 'result.json', dict(value=1))

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.fsync', die)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / 'result.json', dict(value=2))
    assert (tmp_path / 'result.json').read_text() == '{\n  "value": 1\n}\n'
