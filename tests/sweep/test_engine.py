# SPDX-License-Identifier: Apache-2.0
"""The engine for Slurm on submitit's local executor: jobs are processes of this machine.

Training is over in every point, so that a job only puts its result together. test_slurm.py has
whole points on a real Slurm.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import pytest
import submitit
import yaml
from click.testing import CliRunner
from submitit.core.utils import DelayedSubmission

from prmim_adapters.commands.sweep import sweep
from prmim_adapters.sweep import load_spec
from prmim_adapters.sweep.files import read_json
from prmim_adapters.sweep.point import Launch
from prmim_adapters.sweep.results import FAILURE, RESULT, fingerprint, write_json
from prmim_adapters.sweep.runner import run_sweep
from prmim_adapters.sweep.slurm import SlurmEngine
from prmim_adapters.sweep.slurm_queue import Job, SlurmQueue, minutes
from prmim_adapters.sweep.status import states

TIME = dict(time='5')


class ProcessQueue(SlurmQueue):
    """Jobs are submitit's local controllers; what ``squeue`` says comes from the process table."""

    def executor(self, folder, timeouts):
        return submitit.AutoExecutor(folder, cluster='local', local_max_num_timeout=timeouts)

    def listing(self, names):
        found = []
        for pickle in self.folder.glob('*/*_submitted.pkl'):
            number, point = pickle.name.split('_')[0], DelayedSubmission.load(pickle).function.point
            index = json.loads((pickle.parent / 'points.json').read_text()).index(point.name)
            job = Job(number, 'RUNNING' if self._process(number) else 'COMPLETED', 'None', 'here')
            found.append((f'prmim-{pickle.parent.name}', index, job))
        return found

    def cancel(self):
        for job in self.jobs().values():
            if job.alive and (process := self._process(job.id)):
                for each in [*process.children(recursive=True), process]:
                    with suppress(psutil.Error):
                        each.kill()

    def _process(self, number):
        with suppress(psutil.Error):
            process = psutil.Process(int(number))
            if 'submitit.local._local' in process.cmdline():
                return process
        return None


@dataclass(frozen=True)
class ProcessEngine(SlurmEngine):
    options: dict = field(default_factory=lambda: TIME)

    def queue(self, out):
        return ProcessQueue(out)


@pytest.fixture
def trained(own_spec, tmp_path, example, monkeypatch):
    """A spec of two points, and the folder where the training of both is over; one is damaged."""
    monkeypatch.syspath_prepend(str(example))
    monkeypatch.setattr('prmim_adapters.sweep.slurm._POLL_SECONDS', 0.2)
    monkeypatch.setattr('prmim_adapters.sweep.slurm._SHARED_FILES_SECONDS', 1.0)
    data = dict(
        own_spec, arms={'damaged': {'aggregator': 'nearest'}}, verdict={}, seeds=[0], resume=True
    )
    (tmp_path / 'spec.yaml').write_text(yaml.safe_dump(data))
    spec, out = load_spec(tmp_path / 'spec.yaml'), tmp_path / 'out'
    measurements = dict(
        accuracy=dict(knn=90.0, linear=91.0),
        cost=dict(forward_gmacs=1.5, training_gmacs=4.5),
        environment=dict(gpu=None, processor='a processor'),
    )
    for point in spec.points():
        folder = out / point.name
        write_json(folder / 'settings.json', dict(settings=fingerprint(spec.settings(point))))
        write_json(folder / 'train' / 'measurements.json', measurements)
    (out / 'mine/damaged-0.25/seed0/train/measurements.json').write_text('{')
    return spec, out


def by_name(spec, out):
    return {entry.name: entry for entry in states(spec, out, ProcessQueue(out))}


def test_detached_jobs_are_found_again_and_what_failed_is_redone(trained):
    spec, out = trained
    damaged = 'mine/damaged-0.25/seed0'
    assert run_sweep(spec, out, ProcessEngine(detach=True)) == {}
    assert {entry.state for entry in by_name(spec, out).values()} == {'running'}

    failures = run_sweep(spec, out, ProcessEngine())
    assert len(list((out / '.slurm').glob('*/points.json'))) == 1
    assert list(failures) == [damaged]
    assert 'is damaged, no JSON: Expecting property name' in failures[damaged]
    assert read_json(out / 'mine/framework/seed0' / RESULT)['accuracy']['knn'] == 90.0
    found = by_name(spec, out)
    assert {name: entry.state for name, entry in found.items()} == {
        'mine/framework/seed0': 'finished',
        damaged: 'failed',
    }
    assert 'is damaged, no JSON: Expecting' in found[damaged].detail

    whole = (out / 'mine/framework/seed0/train/measurements.json').read_text()
    (out / damaged / 'train' / 'measurements.json').write_text(whole)
    assert run_sweep(spec, out, ProcessEngine()) == {}
    assert not (out / damaged / FAILURE).exists()
    assert (out / damaged / RESULT).exists()


class KillingQueue(ProcessQueue):
    def submit(self, *arguments):
        number = super().submit(*arguments)
        self.cancel()
        return number


def test_a_job_that_is_killed_is_a_failure_that_names_it(trained, monkeypatch):
    spec, out = trained
    monkeypatch.setattr(ProcessEngine, 'queue', lambda self, out: KillingQueue(out))
    failures = run_sweep(spec, out, ProcessEngine())
    assert len(failures) == 2
    reason = failures['mine/framework/seed0']
    assert reason.startswith('Slurm: COMPLETED, Slurm job ')
    assert f'on here; it left no result. Its output is in {out / ".slurm"}' in reason
    assert read_json(out / 'mine/framework/seed0' / FAILURE)['reason'] == reason


@pytest.mark.parametrize('ending', [KeyboardInterrupt, SystemExit])
def test_what_ends_the_sweep_cancels_its_jobs(trained, monkeypatch, ending):
    spec, out = trained

    def end(_):
        raise ending

    monkeypatch.setattr('prmim_adapters.sweep.slurm.time.sleep', end)
    with pytest.raises(ending):
        run_sweep(spec, out, ProcessEngine())
    assert {entry.state for entry in by_name(spec, out).values()} == {'not run'}
    assert not list(out.glob('*/*/*/failure.json'))


@pytest.mark.parametrize(
    ('limit', 'expected'),
    [
        ('90', 90),
        ('90:01', 91),
        ('24:00:00', 1440),
        ('0:30:30', 31),
        ('2-12', 3600),
        ('1-0:30', 1470),
        ('1-00:00:01', 1441),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(limit, expected):
    assert minutes(limit) == expected


@pytest.mark.parametrize('limit', ['', 'a day', '1:2:3:4', '-5'])
def test_other_time_limits_are_refused(limit):
    with pytest.raises(
        ValueError, match=f'time={limit!r}: expected minutes, hours:minutes:seconds'
    ):
        SlurmEngine(options=dict(time=limit))


@pytest.mark.parametrize(
    ('launch', 'expected'),
    [
        (Launch(gpus=0), dict(nodes=1)),
        (Launch(gpus=1, cpus_per_task=8), dict(nodes=1, gpus_per_node=1, cpus_per_task=8)),
        (Launch('pytorch', 8), dict(nodes=1, gpus_per_node=8)),
        (Launch('slurm', 16, 8), dict(nodes=2, gpus_per_node=8)),
        (Launch('slurm', 4, 8), dict(nodes=1, gpus_per_node=4)),
    ],
)
def test_what_a_job_asks_for(launch, expected):
    engine = SlurmEngine(launch, 3, dict(time='1:00:00', account='mine'))
    parameters = engine.parameters()
    parameters.pop('slurm_srun_args', None)
    assert parameters == dict(
        timeout_min=60,
        slurm_array_parallelism=3,
        slurm_additional_parameters=dict(account='mine'),
        **expected,
    )


def test_several_gpus_need_a_launcher():
    with pytest.raises(ValueError, match='8 GPUs need a launcher'):
        Launch(gpus=8)


def test_pytorch_needs_one_node():
    with pytest.raises(ValueError, match='--launcher slurm'):
        SlurmEngine(Launch('pytorch', 16, 8), options=TIME)


def test_mims_slurm_launcher_always_gets_srun_args():
    flags = Launch('slurm', 2, 2, None, 'test').flags()
    assert flags[flags.index('--srun-args') + 1] == ''


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--engine', 'slurm'], 'needs the time limit of a point: --slurm time='),
        (['--engine', 'slurm', '--slurm', 'time'], '--slurm time: expected KEY=VALUE'),
        (['--slurm', 'time=5'], '--slurm and --detach are for --engine slurm'),
        (['--detach'], '--slurm and --detach are for --engine slurm'),
        (['--partition', 'gpu'], '--partition is for Slurm: --engine slurm or --launcher slurm'),
        (['--engine', 'slurm', '--devices', '0'], '--devices is for --engine local'),
        (['--engine', 'slurm', '--slurm', 'time=5'], 'squeue is not on this machine'),
    ],
)
def test_mistaken_flags_end_the_command_with_a_message(trained, monkeypatch, flags, message):
    _, out = trained
    monkeypatch.setenv('PATH', '')
    arguments = [str(out.parent / 'spec.yaml'), '--out', str(out)]
    submission = out / '.slurm' / 'earlier'
    submission.mkdir(parents=True)
    (submission / 'points.json').write_text('[]')
    run = CliRunner().invoke(sweep, [*arguments, *flags])
    assert run.exit_code == 2
    assert message in run.output
    assert isinstance(run.exception, SystemExit)


@pytest.mark.parametrize('text', ['', '[', '[]', '{}', '7', '[7]', '[' * 9999, '\xff'])
@pytest.mark.parametrize('flag', ['--status', '--engine'])
def test_a_damaged_list_of_points_is_one_line(trained, monkeypatch, text, flag):
    _, out = trained
    submission = out / '.slurm' / '1'
    submission.mkdir(parents=True)
    (submission / 'points.json').write_text(text, encoding='latin-1')
    job = Job('12_0', 'RUNNING', 'None', 'node')
    monkeypatch.setattr(SlurmQueue, 'listing', lambda queue, names: [('prmim-1', 0, job)])
    flags = ['--status'] if flag == '--status' else ['--engine', 'slurm', '--slurm', 'time=5']
    arguments = [str(out.parent / 'spec.yaml'), '--out', str(out), *flags]
    run = CliRunner().invoke(sweep, arguments)
    assert run.exit_code == 2
    assert isinstance(run.exception, SystemExit)
    (line,) = [line for line in run.output.splitlines() if 'points.json' in line]
    assert 'is damaged, no list of the points of Slurm job prmim-1' in line
    assert 'scancel --name=prmim-1' in line


def test_status_without_slurm_says_what_the_files_say(trained, monkeypatch):
    spec, out = trained
    run_sweep(spec, out, ProcessEngine(detach=True))
    ProcessQueue(out).cancel()
    monkeypatch.setenv('PATH', '')
    arguments = [str(out.parent / 'spec.yaml'), '--out', str(out), '--status']
    run = CliRunner().invoke(sweep, arguments)
    assert run.exit_code == 0
    assert 'jobs are left out: squeue is not on this machine' in run.output
    rows = [line.split(' | ')[1] for line in run.output.splitlines() if line.startswith('| mine/')]
    assert rows == ['not run', 'not run']
    assert run.output.endswith('\n\n2 not run\n')
