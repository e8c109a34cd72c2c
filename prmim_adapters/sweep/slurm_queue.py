# SPDX-License-Identifier: Apache-2.0
"""The jobs of a sweep in Slurm: submitted by submitit, found again by their names.

Each submission is an array job with a folder of its own in ``<out>/.slurm``; its name there is part
of the job's name, and its ``points.json`` says which point each task of the array is. So that any
process on any node finds the jobs, whatever became of the process that submitted them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..extras import require
from .files import FileError, inside, read_text

FOLDER = '.slurm'
_FIELDS = '%i|%j|%K|%T|%r|%N'
#: States after which nothing of a job runs, or will run, any more.
_OVER = {
    'BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'LAUNCH_FAILED', 'NODE_FAIL',
    'OUT_OF_MEMORY', 'PREEMPTED', 'RECONFIG_FAIL', 'REVOKED', 'TIMEOUT',
}  # fmt: skip


class SlurmError(RuntimeError):
    """Slurm refuses, or is not there; the message is its own."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm knows it.

    Attributes:
        id: with the index in its array: ``123_4``.
        state: Slurm's word: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``TIMEOUT``, ...
        reason: why it waits, or how it ended; ``None`` in words where there is none.
        node: where it runs or ran; empty while it waits.
    """

    id: str
    state: str
    reason: str
    node: str

    @property
    def alive(self) -> bool:
        """Whether it runs, waits, or is about to begin again."""
        return self.state not in _OVER

    def __str__(self) -> str:
        where = f' on {self.node}' if self.node else ''
        why = f' ({self.reason})' if self.reason not in ('', 'None') else ''
        return f'{self.state}{why}, Slurm job {self.id}{where}'


class SlurmQueue:
    """The jobs of the sweep in one folder.

    Args:
        out: the sweep's folder.
    """

    def __init__(self, out: Path) -> None:
        self.folder = inside(out.absolute(), FOLDER)

    def submit(
        self,
        names: Sequence[str],
        jobs: Sequence[Callable[[], Any]],
        parameters: dict[str, Any],
        timeouts: int,
    ) -> str:
        """Submit an array job, one task for each point.

        Args:
            names: of the points.
            jobs: what each task calls.
            parameters: of submitit's ``update_parameters``.
            timeouts: how often a task may reach its time limit and be requeued.

        Returns:
            str: id of the array job.

        Raises:
            MissingExtraError: no submitit.
            SlurmError: no ``sbatch``, or Slurm refuses.
        """
        token = f'{time.strftime("%Y%m%d-%H%M%S")}-{secrets.token_hex(2)}'
        folder = self.folder / token
        folder.mkdir(parents=True)
        (folder / 'points.json').write_text(json.dumps(list(names)))
        executor = self.executor(folder, timeouts)
        try:
            with _outside_any_job():
                executor.update_parameters(name=_job_name(token), **parameters)
                submitted = executor.submit_array(jobs)
        except (OSError, RuntimeError) as error:
            raise SlurmError(f'Slurm does not take the jobs: {str(error).strip()}') from error
        return submitted[0].job_id.split('_')[0]

    def executor(self, folder: Path, timeouts: int) -> Any:
        """submitit's executor for the submission with this folder.

        Raises:
            SlurmError: there is no Slurm on this machine.
        """
        require('slurm')
        import submitit

        try:
            return submitit.AutoExecutor(folder, cluster='slurm', slurm_max_num_timeout=timeouts)
        except RuntimeError as error:
            raise SlurmError(f'Slurm is not on this machine: {error}') from None

    def jobs(self) -> dict[str, Job]:
        """The latest job of each point that Slurm still knows.

        Raises:
            SlurmError: ``squeue`` fails.
            FileError: a ``points.json`` is damaged.
        """
        submissions = {_job_name(path.parent.name): path for path in self._submissions()}
        found: dict[str, Job] = {}
        for name, index, job in sorted(self.listing(list(submissions)), key=lambda entry: entry[0]):
            point = _point(submissions[name], index)
            if point not in found or job.alive or not found[point].alive:
                found[point] = job
        return found

    def listing(self, names: list[str]) -> list[tuple[str, int, Job]]:
        """Job name, index in the array, and job, of all jobs with these names."""
        if not names:
            return []
        command = ['squeue', '--noheader', '--array', '--states=all']
        lines = _output([*command, f'--name={",".join(names)}', f'--format={_FIELDS}'])
        found = []
        for line in lines.splitlines():
            number, name, index, state, reason, node = line.strip().split('|')
            task = int(index) if index.isdigit() else 0  # N/A: a job without an array
            found.append((name, task, Job(number, state, reason, node)))
        return found

    def cancel(self) -> None:
        """Cancel all that wait or run.

        Raises:
            SlurmError: ``scancel`` fails.
        """
        alive = [job.id for job in self.jobs().values() if job.alive]
        if alive:
            _output(['scancel', *alive])

    def _submissions(self) -> list[Path]:
        """``points.json`` of every submission, oldest first."""
        return sorted(self.folder.glob('*/points.json'))


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Without the variables of the job that the sweep itself may run in; jobs would inherit them."""
    if 'SLURM_JOB_ID' not in os.environ:
        yield
        return
    import submitit.helpers

    kept = {name: os.environ[name] for name in ('SLURM_CONF',) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def minutes(limit: str) -> int:
    """A time limit as Slurm writes it, in whole minutes, rounded up.

    Args:
        limit: ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours``,
            ``days-hours:minutes`` or ``days-hours:minutes:seconds``.

    Raises:
        ValueError: none of these.
    """
    match = re.fullmatch(r'(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?', limit)
    if match is None:
        raise ValueError(
            f'time={limit!r}: expected minutes, hours:minutes:seconds or days-hours, as Slurm has '
            'them: 90, 24:00:00, 2-12'
        )
    days, *parts = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[4] is None:  # minutes, or minutes:seconds
        parts = [0, parts[0], parts[1]]
    hours, mins, seconds = parts
    return days * 1440 + hours * 60 + mins + (seconds > 0)


def _point(path: Path, index: int) -> str:
    """The point that a task of an array is at, by its ``points.json``.

    Raises:
        FileError: it is damaged.
    """
    try:
        name = json.loads(read_text(path))[index]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        name, reason = None, f': {error}'
    else:
        reason = f', task {index} has {name!r:.80}'
    if isinstance(name, str):
        return name
    job = _job_name(path.parent.name)
    raise FileError(
        f'{path}: is damaged, no list of the points of Slurm job {job}{reason}; end that job '
        f'(scancel --name={job}) and delete the file'
    )


def _job_name(token: str) -> str:
    return f'prmim-{token}'


def _output(command: list[str]) -> str:
    """What a command of Slurm prints.

    Raises:
        SlurmError: it is not there, or fails.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith('SQUEUE_')}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout
    except FileNotFoundError:
        raise SlurmError(f'{command[0]} is not on this machine') from None
    except subprocess.CalledProcessError as error:
        raise SlurmError(f'{command[0]}: {error.stderr.strip()}') from None
