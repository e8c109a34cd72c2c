# SPDX-License-Identifier: Apache-2.0
"""Sweeps on a real Slurm; run by tools/slurm_test.sh."""

import copy
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from same_masks_runs import ENVIRONMENT, page, shell

pytestmark = pytest.mark.slurm
SLURM = ('--engine', 'slurm', '--slurm', 'time=20', '--partition', 'test', '--gpus', '0')


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.5)
    return found


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ended(process, seconds=1800):
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, stdout, stderr


def stable(report):
    """The report without its heading and its last section, measured times."""
    return report.split('## Measured time')[0].split('\n', 1)[1]


def outcomes(out):
    """What must not depend on where the points ran: accuracies, counted MACs, the last loss."""
    found = {}
    for path in sorted(out.glob('*/*/*/result.json')):
        result = json.loads(path.read_text())
        keys = ('forward_gmacs', 'training_gmacs', 'last_loss')
        found[str(path.relative_to(out))] = (
            result['accuracy'],
            {key: result['cost'][key] for key in keys},
        )
    return found


@pytest.fixture
def status(prmim_sweep):
    """Function (spec, name) -> point to its state, as ``--status`` has it."""

    def ask(spec, name):
        code, stdout, stderr = ended(prmim_sweep(spec, name, '--status', '--json')[0])
        assert code == 0, stderr
        return {entry['name']: entry['state'] for entry in json.loads(stdout)}

    return ask


@pytest.fixture
def two_points(own_spec):
    spec = copy.deepcopy(own_spec)
    spec.update(arms={'plain': spec['arms']['plain']}, seeds=[0])
    return spec


def running_jobs():
    lines = slurm('squeue', '--noheader', '--array', '--states=running', '--format=%i').split()
    return sorted(lines)


def test_six_points_with_everything_killed_once_give_what_the_local_engine_gives(
    own_spec, prmim_sweep
):
    code, _, stderr = ended(prmim_sweep(own_spec, 'by_local')[0])
    assert code == 0, stderr

    head, out = prmim_sweep(own_spec, 'by_slurm', *SLURM, '--jobs', '2')
    wait_for(lambda: len(running_jobs()) == 2, 900)
    head.send_signal(signal.SIGKILL)
    head.wait()
    wait_for(lambda: len(list(out.glob('*/*/*/train/*/vis_data/config.py'))) == 2, 900)
    slurm('scontrol', 'requeue', running_jobs()[0])

    # The next call waits for the jobs of the first. One is killed, and nobody begins it again.
    before = (out / 'mine' / 'base.py').stat().st_mtime_ns
    head, _ = prmim_sweep(own_spec, 'by_slurm', *SLURM, '--jobs', '2', '--json')
    wait_for(lambda: (out / 'mine' / 'base.py').stat().st_mtime_ns > before, 900)
    time.sleep(5)  # it asks for its jobs
    killed = wait_for(running_jobs, 900)[-1]
    slurm('scancel', killed)
    assert len(running_jobs()) <= 2
    code, stdout, stderr = ended(head)
    assert code == 1, stderr
    (lost,) = json.loads(stdout)['failed'].values()
    assert f'Slurm: CANCELLED, Slurm job {killed} on 127.0.0.' in lost
    # The call after that does it again.
    code, _, stderr = ended(prmim_sweep(own_spec, 'by_slurm', *SLURM, '--jobs', '2')[0])
    assert code == 0, stderr
    assert len(outcomes(out)) == 6
    assert outcomes(out) == outcomes(out.parent / 'by_local')
    reports = [(out.parent / name / 'report.md').read_text() for name in ('by_local', 'by_slurm')]
    assert stable(reports[0]) == stable(reports[1])


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_cancel(two_points, prmim_sweep, status, number):
    name = f'cancelled_{number}'
    head, out = prmim_sweep(two_points, name, *SLURM)
    wait_for(running_jobs, 900)
    assert sorted(status(two_points, name).values()) == ['pending', 'running']
    head.send_signal(number)
    head.wait(timeout=10)
    wait_for(lambda: not slurm('squeue', '--noheader'), 60)
    assert not list(out.glob('*/*/*/failure.json'))
    assert set(status(two_points, name).values()) == {'not run'}


def test_detached_jobs_go_on_alone(two_points, prmim_sweep, status):
    head, out = prmim_sweep(two_points, 'detached', *SLURM, '--detach', '--jobs', '2')
    code, _, stderr = ended(head)
    assert code == 0, stderr
    assert 'finished' not in status(two_points, 'detached').values()
    # A second call does not submit them again.
    before = len(list(out.glob('.slurm/*/points.json')))
    code, _, stderr = ended(prmim_sweep(two_points, 'detached', *SLURM, '--detach')[0])
    assert code == 0, stderr
    assert len(list(out.glob('.slurm/*/points.json'))) == before == 1
    wait_for(lambda: len(list(out.glob('*/*/*/result.json'))) == 2, 900)
    assert set(status(two_points, 'detached').values()) == {'finished'}


def test_the_commands_of_the_page(own_spec, image_folder, example):
    spec = dict(own_spec, arms={}, verdict={}, seeds=[0])
    (image_folder / 'page.yaml').write_text(yaml.safe_dump(spec))
    values = dict(SPEC='page.yaml', PARTITION='test', GPUS=0)
    for commands in (page('sweep'), page('status')):
        commands = commands.replace('prmim ', f'{sys.executable} -m prmim_adapters.cli ')
        run = subprocess.run(
            shell(commands, **values),
            env={**ENVIRONMENT, 'PYTHONPATH': f'{example}:{ENVIRONMENT["PYTHONPATH"]}'},
            cwd=image_folder,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith('1 finished')


def test_mistakes_are_slurms_own_words(two_points, prmim_sweep):
    flags = ('--engine', 'slurm', '--slurm', 'time=20', '--partition', 'nowhere')
    code, _, stderr = ended(prmim_sweep(two_points, 'nowhere', *flags)[0])
    assert code == 1
    assert 'Error: Slurm does not take the jobs: ' in stderr
    assert 'invalid partition specified: nowhere' in stderr


@pytest.fixture
def long_point(own_spec):
    """A spec of one point that trains for a while, and saves what it can resume from."""
    spec = copy.deepcopy(own_spec)
    checkpoint = dict(interval=20, max_keep_ckpts=2)
    spec.update(arms={}, verdict={}, seeds=[0], resume=True)
    spec['options'] = dict(
        train_cfg=dict(max_epochs=400), default_hooks=dict(checkpoint=checkpoint)
    )
    return spec


def preempt(job):
    slurm('srun', '--partition=urgent', '--nodes=2', '--exclusive', 'true')


def time_out(job):
    """What Slurm sends some time before the limit; submitit takes it for that on short limits."""
    slurm('scancel', '--signal=USR2', job)


@pytest.mark.parametrize('interrupt', [preempt, time_out])
def test_preempted_or_timed_out_a_point_goes_on_from_its_checkpoint(
    long_point, prmim_sweep, interrupt
):
    flags = ('--engine', 'slurm', '--slurm', 'time=5', '--partition', 'test', '--gpus', '0')
    head, out = prmim_sweep(long_point, interrupt.__name__, *flags)
    point = out / 'mine' / 'framework' / 'seed0'
    wait_for((point / 'train' / 'last_checkpoint').exists, 900)
    interrupt(wait_for(running_jobs, 60)[0])
    code, _, stderr = ended(head)
    assert code == 0, stderr
    resumed = re.search(r'resumed epoch: (\d+)', (point / 'config.log').read_text())
    assert int(resumed[1]) >= 20
    assert len(outcomes(out)) == 1


def test_without_resume_the_time_limit_is_a_failure_that_says_so(long_point, prmim_sweep):
    spec = dict(long_point, resume=False)
    flags = ('--engine', 'slurm', '--slurm', 'time=5', '--partition', 'test', '--gpus', '0')
    head, out = prmim_sweep(spec, 'timed_out', *flags)
    wait_for((out / 'mine/framework/seed0/train/last_checkpoint').exists, 900)
    time_out(wait_for(running_jobs, 60)[0])
    code, _, stderr = ended(head)
    assert code == 1
    assert (
        'failed: mine/framework/seed0: Slurm: the time limit was reached; `resume: true` in the '
        'spec would go on in another job'
    ) in stderr


def test_a_point_on_two_nodes(two_points, prmim_sweep):
    spec = copy.deepcopy(two_points)
    spec.update(arms={}, verdict={})
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    spec['options'] = dict(env_cfg=dict(dist_cfg=dict(backend='gloo')), model_wrapper_cfg=wrapper)
    flags = ('--engine', 'slurm', '--slurm', 'time=20', '--partition', 'test')
    shape = ('--launcher', 'slurm', '--gpus', '2', '--gpus-per-node', '1', '--cpus-per-task', '1')
    head, out = prmim_sweep(spec, 'two_nodes', *flags, *shape)
    code, _, stderr = ended(head)
    assert code == 0, stderr
    assert len(outcomes(out)) == 1
