# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
sys.path[:0] = [str(BENCHMARKS), str(Path(__file__).parent)]  # also in spawned processes


@pytest.fixture(scope='session')
def dry_run(tmp_path_factory):
    """All stages on the CPU, once for all of pytest's processes: lines printed, folder."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    out, printed = base / 'gpu_dry_run' / 'results', base / 'gpu_dry_run' / 'printed'
    printed.parent.mkdir(exist_ok=True)
    with FileLock(printed.parent / 'lock'):
        if not printed.exists():
            command = [sys.executable, str(BENCHMARKS / 'gpu.py'), '--dry-run', '--out', str(out)]
            done = subprocess.run(
                [*command, '--minutes', '30', '--commit', 'abc'],
                capture_output=True,
                text=True,
                cwd=tmp_path_factory.mktemp('elsewhere'),
            )
            assert done.returncode == 0, done.stdout + done.stderr[-4000:]
            printed.write_text(done.stdout)
    return printed.read_text(), out


@pytest.fixture(scope='session')
def stage_result(dry_run):
    """Name to the result of a stage of the dry run."""
    return lambda name: json.loads((dry_run[1] / f'{name}.json').read_text())['result']
