# SPDX-License-Identifier: Apache-2.0
"""How far a sweep is, from its files and its jobs; reads, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..tables import Table
from .collected import collect
from .processes import running_folders
from .slurm_queue import SlurmQueue
from .spec import Spec


@dataclass(frozen=True)
class PointState:
    """How far a point is.

    Attributes:
        state: ``finished``, ``failed``, ``not run``, ``running`` on this machine, or Slurm's word
            for its job, in small letters.
        detail: the reason of a failure, or the job.
    """

    name: str
    state: str
    detail: str = ''


def states(spec: Spec, out: Path, queue: SlurmQueue | None = None) -> list[PointState]:
    """The state of every point, in the order in which they run.

    Args:
        spec: the sweep.
        out: folder of its results.
        queue: its jobs in Slurm; None leaves them out.

    Raises:
        ChangedSettingsError: a result was made with other settings than the spec's.
        SlurmError: ``squeue`` fails.
    """
    found, running = collect(spec, out), running_folders()
    jobs = queue.jobs() if queue is not None else {}
    entries = []
    for point in spec.points():
        name, job = point.name, jobs.get(point.name)
        if point.seed in found.results[point.cell]:
            entries.append(PointState(name, 'finished'))
        elif job is not None and job.alive:
            entries.append(PointState(name, job.state.lower(), str(job)))
        elif (out / name).resolve() in running:
            entries.append(PointState(name, 'running', 'on this machine'))
        elif name in found.failures:
            entries.append(PointState(name, 'failed', found.failures[name]))
        else:
            entries.append(PointState(name, 'not run', '' if job is None else f'Slurm: {job}'))
    return entries


def table(entries: list[PointState]) -> Table:
    """A row for each point; below, how many are in each state."""
    rows = [[entry.name, entry.state, entry.detail] for entry in entries]
    words = [entry.state for entry in entries]
    counts = ', '.join(f'{words.count(word)} {word}' for word in dict.fromkeys(words))
    return Table(['point', 'state', ''], rows, notes=counts, words=True)
