# SPDX-License-Identifier: Apache-2.0
"""The engine that runs points as an array job of Slurm, on submitit.

The jobs outlive the process that submits them: the next one finds them by their names. A job that
is preempted, or reaches its time limit, is requeued, and goes on if the spec has ``resume``.
"""

from __future__ import annotations

import math
import signal
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .display import Display
from .files import read_json
from .point import Launch, PointRun
from .processes import Children, ended_by_signals
from .results import FAILURE, RESULT, write_json
from .slurm_queue import Job, SlurmError, SlurmQueue, minutes
from .spec import Point, Spec

#: How often a point may reach its time limit and be resumed.
MOST_TIMEOUTS = 100
_POLL_SECONDS = 5.0
_SHARED_FILES_SECONDS = 15.0  # network file systems show a file late on other nodes
_GRACE_SECONDS = 600.0
_PATIENCE_SECONDS = 1800.0


@dataclass(frozen=True)
class SlurmEngine:
    """Runs points as jobs of Slurm.

    Attributes:
        launch: flags for ``mim train`` inside the job, and what the job asks for: ``gpus``,
            ``gpus_per_node``, ``cpus_per_task``, ``partition``.
        jobs: points run at a time.
        options: other options of ``sbatch``; ``time``, the limit of a point, is needed.
        detach: return when the jobs are queued, and leave them to Slurm.

    Raises:
        ValueError: no time limit, or one that Slurm would not understand; several nodes, and no
            launcher for them.
    """

    launch: Launch = field(default_factory=Launch)
    jobs: int = 1
    options: dict[str, str] = field(default_factory=dict)
    detach: bool = False

    def __post_init__(self) -> None:
        if 'time' not in self.options:
            raise ValueError(
                '--engine slurm needs the time limit of a point: --slurm time=HOURS:MINUTES:SECONDS'
            )
        minutes(self.options['time'])
        if self.launch.launcher != 'slurm' and self.parameters()['nodes'] > 1:
            raise ValueError(
                f'{self.launch.gpus} GPUs, {self.launch.gpus_per_node} on a node, are several '
                'nodes: --launcher slurm'
            )

    def queue(self, out: Path) -> SlurmQueue:
        """The jobs of the sweep in ``out``."""
        return SlurmQueue(out)

    def run(self, points: list[Point], spec: Spec, out: Path, display: Display) -> dict[str, str]:
        """Submit the points that no job is at, and wait for all.

        An exception (Ctrl-C, SIGTERM) cancels the jobs.

        Returns:
            dict: name of each failed point to the reason.

        Raises:
            SlurmError: Slurm refuses, or is not there.
        """
        queue = self.queue(out)
        jobs = queue.jobs()
        new = [point for point in points if not (point.name in jobs and jobs[point.name].alive)]
        try:
            if new:
                self._submit(new, spec, out, queue)
            return {} if self.detach else _wait(points, queue, out, display)
        except SlurmError:  # there is nobody to cancel them
            raise
        except BaseException:
            queue.cancel()
            raise

    def _submit(self, points: list[Point], spec: Spec, out: Path, queue: SlurmQueue) -> None:
        launch = self.launch
        if launch.launcher == 'slurm':  # a step inside the job, beside the one that starts it
            launch = replace(launch, srun_args=f'--overlap {launch.srun_args or ""}'.strip())
        jobs = []
        for point in points:
            folder = out.absolute() / point.name
            (folder / FAILURE).unlink(missing_ok=True)
            jobs.append(PointJob(point, spec, folder, launch))
        timeouts = MOST_TIMEOUTS if spec.resume else 0
        queue.submit([point.name for point in points], jobs, self.parameters(), timeouts)

    def parameters(self) -> dict[str, Any]:
        """What a job asks for, as submitit's parameters."""
        launch, options = self.launch, dict(self.options)
        per_node = min(launch.gpus_per_node or launch.gpus, launch.gpus)
        parameters: dict[str, Any] = dict(
            timeout_min=minutes(options.pop('time')),
            nodes=math.ceil(launch.gpus / per_node) if per_node else 1,
            gpus_per_node=per_node or None,
            cpus_per_task=launch.cpus_per_task,
            slurm_partition=launch.partition,
            slurm_array_parallelism=self.jobs,
            slurm_additional_parameters=options,
        )
        if launch.launcher == 'slurm':  # the step that starts training, which is one of its own
            parameters['slurm_srun_args'] = ['--nodes=1', '--ntasks=1', '--overlap']
        return {key: value for key, value in parameters.items() if value is not None}


@dataclass
class PointJob:
    """What a job calls; submitit pickles it, and again when the job is requeued."""

    point: Point
    spec: Spec
    folder: Path
    launch: Launch

    def __call__(self) -> None:
        """Run the point in this job."""
        from submitit.core.utils import UncompletedJobError

        try:
            with ended_by_signals(), Children() as children:
                PointRun(self.point, self.spec, self.folder, self.launch, None, children).run()
        except UncompletedJobError:  # at its time limit, too often
            reason = 'Slurm: the time limit was reached'
            if not self.spec.resume:
                reason += '; `resume: true` in the spec would go on in another job'
            write_json(self.folder / FAILURE, dict(point=asdict(self.point), reason=reason))
            raise
        except SystemExit as ended:
            if ended.code == 128 + signal.SIGTERM:
                # Cancelled, the job is killed in a moment. Preempted, it is requeued when the time
                # of grace is over, but only if it is still there.
                time.sleep(_GRACE_SECONDS)
            raise

    def checkpoint(self) -> Any:
        """What submitit is to call when the job begins again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self))


def _wait(points: list[Point], queue: SlurmQueue, out: Path, display: Display) -> dict[str, str]:
    """Wait until every point has ended; failed points to their reasons."""
    waiting, running = {point.name: point for point in points}, set()
    failures: dict[str, str] = {}
    while waiting:
        jobs = _known(queue)
        for name, point in list(waiting.items()):
            job = jobs.get(name)
            if job is not None and job.state == 'RUNNING' and name not in running:
                running.add(name)
                display.begun(name)
            if job is not None and job.alive:
                continue
            if not _has_ended(out / name):
                job = _known(queue).get(name)
                if job is not None and job.alive:  # requeued meanwhile
                    continue
                lost = dict(point=asdict(point), reason=_lost(job, queue))
                write_json(out / name / FAILURE, lost)
            del waiting[name]
            failure = read_json(out / name / FAILURE)
            if failure is not None:
                failures[name] = failure['reason']
            display.ended(name, failed=failure is not None)
        if waiting:
            time.sleep(_POLL_SECONDS)
    return failures


def _known(queue: SlurmQueue) -> dict[str, Job]:
    """The jobs; a controller that does not answer is asked again, for a while."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return queue.jobs()
        except SlurmError:
            if time.monotonic() > end:
                raise
            time.sleep(_POLL_SECONDS)


def _has_ended(folder: Path) -> bool:
    """Whether the point has written how it ended."""
    end = time.monotonic() + _SHARED_FILES_SECONDS
    while time.monotonic() < end:
        if folder.is_dir() and {RESULT, FAILURE} & {path.name for path in folder.iterdir()}:
            return True
        time.sleep(0.5)
    return False


def _lost(job: Job | None, queue: SlurmQueue) -> str:
    """Why a job left neither result nor failure."""
    state = 'Slurm no longer knows its job' if job is None else f'Slurm: {job}'
    return f'{state}; it left no result. Its output is in {queue.folder}'
