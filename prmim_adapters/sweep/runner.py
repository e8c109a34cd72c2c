# SPDX-License-Identifier: Apache-2.0
"""Runs the points of a sweep that have no result yet, on an engine.

A sweep may be killed at any moment. Finished points have a ``result.json``; the others are begun
again, after processes that the killed sweep left behind have been ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from rich.console import Console

from .checking import check_arms, check_configs
from .checking_evaluation import check_evaluation
from .configs import write_base
from .display import Display
from .files import check_links, inside
from .local import LocalEngine
from .processes import ended_by_signals
from .results import MEASUREMENTS, check_resumable, result_of
from .spec import Point, Spec


class Engine(Protocol):
    """Where points run."""

    def run(self, points: list[Point], spec: Spec, out: Path, display: Display) -> dict[str, str]:
        """Run points, each to its ``result.json`` or ``failure.json`` in ``out``.

        Returns:
            dict: name of each failed point to the reason.
        """


def run_sweep(
    spec: Spec, out: Path, engine: Engine | None = None, console: Console | None = None
) -> dict[str, str]:
    """Run every point of ``spec`` that has no result in ``out``.

    Args:
        spec: the sweep.
        out: folder of the results: ``<framework>/<arm>-<ratio>/seed<n>/result.json``.
        engine: where the points run; one at a time on this machine by default.
        console: where the progress bar goes.

    Returns:
        dict: name of each failed point to the reason. They do not stop the others, and are tried
        again by the next call.

    Raises:
        SpecError: a config of the spec cannot be read, or saves no checkpoint for the transfers; an
            arm does not attach at a ratio; the images of the evaluation, the network to evaluate or
            a transfer's metric is not what it says.
        ChangedSettingsError: ``out`` holds results, or runs to resume, of other settings.
        FileError: a result is damaged, or a link in ``out`` leads elsewhere.
        BlockingIOError: another sweep is running in ``out``.
        SystemExit: SIGTERM or SIGHUP came; what was running has been ended, as by Ctrl-C.
    """
    engine = engine or LocalEngine()
    check_configs(spec)
    here = isinstance(engine, LocalEngine)
    images = check_evaluation(spec, must_exist=here) if _trains(spec, out) else []
    check_arms(spec, images)
    out.mkdir(parents=True, exist_ok=True)
    with _sole_user(out), ended_by_signals():
        points = spec.points()
        waiting = _unfinished(points, spec, out)
        for name, framework in spec.frameworks.items():
            inside(out, f'{name}/base_source.py')  # of a pure-Python config
            write_base(inside(out, f'{name}/base.py'), framework, spec)
        with Display(len(points), len(points) - len(waiting), console) as display:
            return engine.run(waiting, spec, out, display)


def _unfinished(points: list[Point], spec: Spec, out: Path) -> list[Point]:
    """Points without a result, all checked before the first of them begins."""
    waiting = []
    for point in points:
        settings, folder = spec.settings(point), inside(out, point.name)
        if result_of(point, settings, folder) is None:
            waiting.append(point)
            if spec.resume:
                check_resumable(point, settings, folder)
                check_links(folder)
    return waiting


def _trains(spec: Spec, out: Path) -> bool:
    """Whether a point is left to be trained; what is over needs no images."""
    folders = [out / point.name for point in _unfinished(spec.points(), spec, out)]
    return not all((folder / 'train' / MEASUREMENTS).exists() for folder in folders)


@contextmanager
def _sole_user(out: Path) -> Iterator[None]:
    """Refuse a second sweep in the same folder. The system drops the lock when a sweep dies."""
    lock = FileLock(inside(out, '.lock'))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(f'another sweep is running in {out}') from None
    with lock:
        yield
