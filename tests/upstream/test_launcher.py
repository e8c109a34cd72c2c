# SPDX-License-Identifier: Apache-2.0
"""Scripts of repositories started by ``prmim run``: as with python, also by torchrun and srun."""

import os

import pytest
import torch
from launched import launch, written

from prmim_adapters.upstream.launcher import UnknownShimError, run_script
from prmim_adapters.upstream.shims import SHIMS


def test_a_script_runs_as_with_python(tmp_path):
    """Its folder comes first on the path, arguments arrive, it is __main__, no file changes."""
    (tmp_path / 'helper.py').write_text('WHERE = __file__\n')
    script = written(
        tmp_path,
        """
        import sys
        import helper
        assert __name__ == '__main__' and sys.argv[1:] == ['--x', '1', '--', '-h'], sys.argv
        print(helper.WHERE)
        """,
    )
    before = script.read_bytes()
    done = launch(script, '--x', '1', '--', '-h', without=tuple(SHIMS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / 'helper.py')
    assert script.read_bytes() == before


def test_local_rank_of_the_launcher_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '3')
    required = written(tmp_path, "p.add_argument('--local_rank', required=True)", 'a.py')
    optional = written(tmp_path, "p.add_argument('--local_rank', default=-1)", 'b.py')
    for script, given, expected in (
        (required, [], ['--local_rank', '3']),
        (required, ['--local-rank=1'], ['--local_rank=1']),
        (required, ['--local_rank', '2'], ['--local_rank', '2']),
        (optional, ['--epochs', '1'], ['--epochs', '1']),
    ):
        arguments = list(given)
        assert SHIMS['local-rank'](script, arguments) == (given != expected)
        assert arguments == expected


NAMES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
SLURM = {'SLURM_PROCID': '11', 'SLURM_LOCALID': '3', 'SLURM_NTASKS': '16'}


@pytest.fixture
def task(tmp_path, monkeypatch):
    """``task(**environment)``: arguments and group of a script that makes one, started by srun."""
    script = written(
        tmp_path, "p.add_argument('--local_rank', required=True); init_process_group()"
    )
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)

    def start(**environment):
        for name in (*NAMES, *SLURM, 'SLURM_STEP_NUM_TASKS', 'MASTER_ADDR', 'MASTER_PORT'):
            monkeypatch.setenv(name, '')  # so that what a shim sets is gone after the test
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        arguments = []
        for name, shim in SHIMS.items():
            if name in ('process-group', 'local-rank'):
                shim(script, arguments)
        return arguments, [os.environ.get(name) for name in NAMES]

    return start


def test_group_of_srun(task, monkeypatch):
    master = {'MASTER_ADDR': 'node7', 'MASTER_PORT': '29500'}
    assert task(**SLURM, **master) == (['--local_rank', '3'], ['11', '16', '3'])
    assert os.environ['MASTER_ADDR'] == 'node7'
    assert task(**SLURM, **master, SLURM_STEP_NUM_TASKS='12')[1] == ['11', '12', '3']
    assert task(**SLURM, **master, RANK='1', WORLD_SIZE='2', LOCAL_RANK='1') == (
        ['--local_rank', '1'],
        ['1', '2', '1'],
    )
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)  # srun --gpus-per-task 1
    assert task(**SLURM, **master) == (['--local_rank', '0'], ['11', '16', '0'])


def test_group_of_srun_needs_an_address(task):
    with pytest.raises(
        SystemExit, match=r'task 11 of 16 .* export MASTER_ADDR and MASTER_PORT bef'
    ):
        task(**SLURM)
    with pytest.raises(SystemExit, match='export MASTER_PORT before'):
        task(**SLURM, MASTER_ADDR='node7')


def test_one_task_of_slurm_is_alone(task):
    for environment in (
        {},
        {'SLURM_NTASKS': '8'},  # salloc, without srun
        {'SLURM_PROCID': '0', 'SLURM_NTASKS': '1'},
        {'SLURM_PROCID': '0', 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '1'},  # srun --pty
    ):
        assert task(**environment) == (['--local_rank', '0'], ['0', '1', '0'])
        assert os.environ['MASTER_ADDR'] == '127.0.0.1'


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.py: no such script'):
        run_script(str(tmp_path / 'gone.py'), [])
    script = written(tmp_path, 'pass')
    with pytest.raises(UnknownShimError, match=r'no shim called torch-seven; there are torch-six'):
        run_script(str(script), [], without=['torch-seven'])


def test_list_shims():
    from click.testing import CliRunner

    from prmim_adapters.commands.run import run

    shown = CliRunner().invoke(run, ['--list-shims'])
    assert shown.exit_code == 0
    assert [line.split()[1] for line in shown.output.splitlines()[2:]] == list(SHIMS)
