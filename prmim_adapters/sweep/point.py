# SPDX-License-Identifier: Apache-2.0
"""One point of a sweep: its configs written, trained by ``mim train``, measured, its result stored."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import described as in_one_line
from ..openmmlab.whole_files import newest_whole
from .configs import write_point, write_transfer
from .files import read_json
from .processes import Children, SweepEndedError, end_processes
from .results import (
    FAILURE,
    MEASUREMENTS,
    RESULT,
    SETTINGS,
    assemble,
    fingerprint,
    has_begun,
    last_scalar,
    write_json,
)
from .spec import Point, Spec
from .training_log import cause

_LOG_TAIL = 40


@dataclass(frozen=True)
class Launch:
    """How each point is launched; the fields are the flags of ``mim train``.

    Raises:
        ValueError: several GPUs, and nothing that starts a process for each.
    """

    launcher: str = 'none'
    gpus: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    srun_args: str | None = None

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.launcher == 'none':
            raise ValueError(
                f'{self.gpus} GPUs need a launcher, or one process would use the first alone: '
                '--launcher pytorch, or slurm'
            )

    def flags(self) -> list[str]:
        """Flags for ``mim train``."""
        flags, values = [], asdict(self)
        if self.launcher == 'slurm':  # left out, openmim 0.3.9 fails under click >= 8.3
            values['srun_args'] = self.srun_args or ''
        for name, value in values.items():
            if value is not None:
                flags += [f'--{name.replace("_", "-")}', str(value)]
        return flags


class PointError(RuntimeError):
    """A training run ended with an error; the message holds the end of its log."""


@dataclass(frozen=True)
class PointRun:
    """The run of one point in its folder.

    Attributes:
        devices: its CUDA_VISIBLE_DEVICES; None leaves what is set.
        children: where its processes are registered, and ended from outside.
    """

    point: Point
    spec: Spec
    folder: Path
    launch: Launch
    devices: str | None
    children: Children

    def run(self) -> None:
        """Train and measure, and write the result; or the failure, which is raised as well.

        Raises:
            PointError: training ended with an error.
            SweepEndedError: the processes were ended from outside; that is no failure.
        """
        try:
            self._run()
        except Exception as error:
            if self.children.ended:  # the point was interrupted, and did not fail
                raise SweepEndedError(f'{self.folder}: the sweep is ending') from error
            failure = dict(point=asdict(self.point), reason=described(error))
            write_json(self.folder / FAILURE, failure)
            raise

    def _run(self) -> None:
        begin = time.monotonic()
        settings = self.spec.settings(self.point)
        end_processes(self.folder)
        resumed = self.spec.resume and has_begun(self.folder)
        if not resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / FAILURE).unlink(missing_ok=True)
        write_json(self.folder / SETTINGS, dict(settings=fingerprint(settings)))
        measurements = self._measure()
        seconds = None if resumed else time.monotonic() - begin
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
        if self.spec.resume and newest_whole(work_dir, '*.pth')[0] is None:
            shutil.rmtree(work_dir, ignore_errors=True)  # nothing to go on from
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


def described(error: BaseException) -> str:
    """What ``failure.json`` says; its last line alone goes into the report."""
    if isinstance(error, PointError):
        return str(error)
    kind, line = type(error).__name__, in_one_line(error)
    last = line if line.startswith(kind) else f'{kind}: {line}'
    return ''.join(traceback.format_exception(error)) + last


def _reason(log: Path, command: list[str], code: int) -> str:
    """Why training failed: the end of the log, and as the last line the error itself."""
    lines = log.read_text(errors='replace').splitlines()
    return '\n'.join([' '.join(command), *lines[-_LOG_TAIL:], cause(lines, code)])


def _last_checkpoint(work_dir: Path) -> Path:
    pointer = work_dir / 'last_checkpoint'
    if not pointer.exists():
        raise PointError(
            f'{work_dir} has no checkpoint to transfer: the config needs a CheckpointHook that '
            'saves the last epoch'
        )
    return Path(pointer.read_text().strip())
