# SPDX-License-Identifier: Apache-2.0
"""The training processes of a sweep: ended with it, and found again after it was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .results import read_json

#: Id and time of start of the process under way, in a point's folder.
RUNNING = 'running.json'


class Children:
    """The process groups under way, so that an interrupted sweep takes them with it."""

    def __init__(self) -> None:
        self._groups: set[int] = set()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def add(self, group: int) -> None:
        """A group has started."""
        self._groups.add(group)

    def remove(self, group: int) -> None:
        """A group has ended by itself."""
        self._groups.discard(group)

    def end(self) -> None:
        """End all that are under way."""
        for group in list(self._groups):
            kill_group(group)


def end_left_behind(folder: Path) -> None:
    """End the training processes that a killed sweep left running for this point, and only those.

    A process counts as ours if it has the recorded id and the recorded time of start.
    """
    running = read_json(folder / RUNNING)
    if running is None or running['started'] is None:
        return
    while started(running['pid']) == running['started']:
        kill_group(running['pid'])
        time.sleep(0.05)


def started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if unknown or gone."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return None
    return None if fields[0] == 'Z' else fields[19]


def kill_group(group: int) -> None:
    """End a process group, if it is still there."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
