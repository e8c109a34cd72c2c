# SPDX-License-Identifier: Apache-2.0
"""Runs the points of a sweep that have no result yet, each by ``mim train`` in its own process.

A sweep may be killed at any moment. Finished points have a ``result.json``; the others are begun
again, after processes that the killed sweep left behind have been ended.
"""

from __future__ import annotations

import fcntl
import os
import queue
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .configs import check_arms, check_configs, write_base, write_point, write_transfer
from .processes import Children, end_processes
from .results import (
    FAILURE,
    MEASUREMENTS,
    RESULT,
    SETTINGS,
    assemble,
    check_resumable,
    fingerprint,
    has_begun,
    last_scalar,
    read_json,
    result_of,
    write_json,
)
from .spec import Point, Spec

_LOG_TAIL = 40
_ERROR = re.compile(r'[\w.]*(Error|Exception|Interrupt)\b')


@dataclass(frozen=True)
class Launch:
    """How each point is launched; the fields are the flags of ``mim train``."""

    launcher: str = 'none'
    gpus: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    srun_args: str | None = None

    def flags(self) -> list[str]:
        """Flags for ``mim train``."""
        flags = []
        for name, value in asdict(self).items():
            if value is not None:
                flags += [f'--{name.replace("_", "-")}', str(value)]
        return flags


class PointError(RuntimeError):
    """A training run ended with an error; the message holds the end of its log."""


def run_sweep(
    spec: Spec,
    out: Path,
    launch: Launch | None = None,
    jobs: int = 1,
    devices: list[str] | None = None,
    console: Console | None = None,
) -> dict[str, str]:
    """Run every point of ``spec`` that has no result in ``out``.

    Args:
        spec: the sweep.
        out: folder of the results: ``<framework>/<arm>-<ratio>/seed<n>/result.json``.
        launch: flags for ``mim train``.
        jobs: points run at a time.
        devices: CUDA devices to share among the jobs, ``launch.gpus`` to each; None leaves
            ``CUDA_VISIBLE_DEVICES`` as it is.
        console: where the progress bar goes.

    Returns:
        dict: name of each failed point to the reason. They do not stop the others, and are tried
        again by the next call.

    Raises:
        SpecError: a config of the spec cannot be read, or saves no checkpoint for the transfers; an
            arm does not attach at a ratio.
        ChangedSettingsError: ``out`` holds results, or runs to resume, of other settings.
        BlockingIOError: another sweep is running in ``out``.
        ValueError: more jobs than the devices can serve.
    """
    launch = launch or Launch()
    pool = _device_pool(devices, launch.gpus, jobs)
    check_configs(spec)
    check_arms(spec)
    out.mkdir(parents=True, exist_ok=True)
    with _sole_user(out):
        points = spec.points()
        waiting = _unfinished(points, spec, out)
        for name, framework in spec.frameworks.items():
            write_base(out / name / 'base.py', framework, spec)
        with _progress(console) as progress:
            bar = progress.add_task(
                'sweep', total=len(points), completed=len(points) - len(waiting)
            )
            return _run_all(waiting, spec, out, launch, jobs, pool, progress, bar)


def _unfinished(points: list[Point], spec: Spec, out: Path) -> list[Point]:
    """Points without a result, all checked before the first of them begins."""
    waiting = []
    for point in points:
        settings, folder = spec.settings(point), out / point.name
        if result_of(point, settings, folder) is None:
            waiting.append(point)
            if spec.resume:
                check_resumable(point, settings, folder)
    return waiting


def _run_all(
    waiting: list[Point],
    spec: Spec,
    out: Path,
    launch: Launch,
    jobs: int,
    pool: queue.Queue[str | None],
    progress: Progress,
    bar: Any,
) -> dict[str, str]:
    failures: dict[str, str] = {}
    with Children() as children, ThreadPoolExecutor(jobs) as executor:

        def run(point: Point) -> None:
            devices = pool.get()
            try:
                progress.update(bar, description=point.name)
                _Run(point, spec, out / point.name, launch, devices, children).run()
            finally:
                pool.put(devices)

        futures: dict[Future[None], Point] = {executor.submit(run, p): p for p in waiting}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    point = futures[future]
                    error = future.exception()
                    if error is not None:
                        failures[point.name] = _described(error)
                        progress.console.print(f'[red]failed[/red] {point.name}')
                    progress.advance(bar)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise
    return failures


@dataclass(frozen=True)
class _Run:
    """One point: folder made, trained, measured, result written."""

    point: Point
    spec: Spec
    folder: Path
    launch: Launch
    devices: str | None
    children: Children

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:
            if not self.children.ended:  # else the point was interrupted, and did not fail
                failure = dict(point=asdict(self.point), reason=_described(error))
                write_json(self.folder / FAILURE, failure)
            raise

    def _run(self) -> None:
        begin = time.monotonic()
        settings = self.spec.settings(self.point)
        end_processes(self.folder)
        if not (self.spec.resume and has_begun(self.folder)):
            shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / FAILURE).unlink(missing_ok=True)
        write_json(self.folder / SETTINGS, dict(settings=fingerprint(settings)))
        measurements = self._measure()
        seconds = time.monotonic() - begin
        result = assemble(self.point, settings, measurements, seconds, asdict(self.launch))
        write_json(self.folder / RESULT, result)

    def _measure(self) -> dict[str, Any]:
        config = self.folder / 'config.py'
        base = self.folder.parents[1] / 'base.py'
        write_point(config, base, self.point, self.spec)
        work_dir = self.folder / 'train'
        if not (work_dir / MEASUREMENTS).exists():  # else it is over, and a transfer is resumed
            self._mim_train(config, work_dir)
        measurements = read_json(work_dir / MEASUREMENTS)
        if measurements is None:
            raise PointError(
                f'training ended without {MEASUREMENTS}: FrozenFeatureHook, in `custom_hooks` of '
                f'{base}, did not run to its end; see {config.with_suffix(".log")}'
            )
        for name, transfer in self.spec.transfers.items():
            config = self.folder / f'{name}.py'
            write_transfer(config, transfer, _last_checkpoint(work_dir), self.point, self.spec)
            self._mim_train(config, self.folder / name)
            accuracy = last_scalar(self.folder / name, transfer.metric)
            if accuracy is None:
                raise PointError(f'{config}: no {transfer.metric!r} in its log')
            measurements['accuracy'][name] = accuracy
        return measurements

    def _mim_train(self, config: Path, work_dir: Path) -> None:
        command = [sys.executable, '-m', 'mim', 'train', 'mmpretrain', str(config)]
        command += [*self.launch.flags(), '--work-dir', str(work_dir)]
        command += ['--resume'] if self.spec.resume else []
        environment = dict(os.environ)
        if self.devices is not None:
            environment['CUDA_VISIBLE_DEVICES'] = self.devices
        log = self.folder / f'{config.stem}.log'
        with log.open('w') as stream:
            code = self.children.run(self.folder, command, environment, stream)
        if code:
            raise PointError(_reason(log, command, code))


def _described(error: BaseException) -> str:
    """What ``failure.json`` says; its last line alone goes into the report."""
    if isinstance(error, PointError):
        return str(error)
    message = ' '.join(str(error).split())
    return ''.join(traceback.format_exception(error)) + f'{type(error).__name__}: {message}'


def _reason(log: Path, command: list[str], code: int) -> str:
    """Why training failed: the end of the log, and as the last line the error itself."""
    lines = log.read_text(errors='replace').splitlines()
    errors = [line for line in lines if _ERROR.match(line) and 'CalledProcessError' not in line]
    summary = errors[-1] if errors else f'ended with code {code}'
    return '\n'.join([' '.join(command), *lines[-_LOG_TAIL:], summary])


def _last_checkpoint(work_dir: Path) -> Path:
    pointer = work_dir / 'last_checkpoint'
    if not pointer.exists():
        raise PointError(
            f'{work_dir} has no checkpoint to transfer: the config needs a CheckpointHook that '
            'saves the last epoch'
        )
    return Path(pointer.read_text().strip())


def _device_pool(devices: list[str] | None, gpus: int, jobs: int) -> queue.Queue[str | None]:
    pool: queue.Queue[str | None] = queue.Queue()
    if devices is None:
        groups: list[str | None] = [None] * jobs
    else:
        size = max(gpus, 1)
        groups = [','.join(devices[i : i + size]) for i in range(0, len(devices) - size + 1, size)]
        if jobs > len(groups):
            raise ValueError(
                f'{jobs} jobs of {size} GPU need {jobs * size} devices, found {len(devices)}: '
                'lower --jobs'
            )
    for group in groups:
        pool.put(group)
    return pool


@contextmanager
def _sole_user(out: Path) -> Iterator[None]:
    """Refuse a second sweep in the same folder. The system drops the lock when a sweep dies."""
    with (out / '.lock').open('w') as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f'another sweep is running in {out}') from None
        yield


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        speed_estimate_period=1e9,
    )
