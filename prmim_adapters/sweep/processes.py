# SPDX-License-Identifier: Apache-2.0
"""The training processes of a sweep: ended with it, and found again after it was killed.

They carry their point's folder in the environment. A process group would not do: the workers of
``--launcher pytorch`` have sessions of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

#: Environment variable of every process of a point; the value is the point's folder.
MARK = 'PRMIM_SWEEP_POINT'


class SweepEndedError(RuntimeError):
    """The sweep is ending, and starts nothing more."""


class Children:
    """The processes under way, so that an interrupted sweep takes them with it."""

    def __init__(self) -> None:
        self.ended = False
        self._folders: dict[int, Path] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(
        self, folder: Path, command: list[str], environment: dict[str, str], log: IO[str]
    ) -> int:
        """Run a command of the point with this folder, and return its exit code.

        Raises:
            SweepEndedError: :meth:`end` was called before it could start.
        """
        with self._lock:
            if self.ended:
                raise SweepEndedError(f'{folder}: the sweep is ending')
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: str(folder.resolve())},
                start_new_session=True,  # one group, for systems without /proc
            )
            self._folders[process.pid] = folder
        code = process.wait()
        del self._folders[process.pid]
        if code:  # workers may outlive the process that started them
            end_processes(folder, process.pid)
        return code

    def end(self) -> None:
        """End all that are under way, and let no others start."""
        with self._lock:
            self.ended = True
        for group, folder in list(self._folders.items()):
            end_processes(folder, group)


def end_processes(folder: Path, group: int | None = None) -> None:
    """End the processes of the point with this folder, whoever started them, and only those.

    Args:
        folder: the point's.
        group: process group to end as well; where there is no /proc, that is all.
    """
    if group is not None:
        _kill(os.killpg, group)
    while found := processes_of(folder):
        for process in found:
            _kill(os.kill, process)
        time.sleep(0.05)


def processes_of(folder: Path) -> set[int]:
    """Ids of the running processes that carry this folder in their environment."""
    mark = os.fsencode(f'{MARK}={folder.resolve()}')
    found = set()
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            marked = mark in path.read_bytes().split(b'\0')
        except OSError:  # ended meanwhile, or another user's
            continue
        if marked:
            found.add(int(path.parent.name))
    return found - {os.getpid()}


def _kill(kill: Callable[[int, int], None], target: int) -> None:
    try:
        kill(target, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
