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
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

#: Environment variable of every process of a point; the value is the point's folder.
MARK = 'PRMIM_SWEEP_POINT'
#: What ends a program from outside: ``kill``, Slurm, Kubernetes; a closed terminal.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


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
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends them all
            )
            self._folders[process.pid] = folder
        code = process.wait()
        del self._folders[process.pid]
        if code:  # workers may outlive the process that started them
            end_processes(folder)
        return code

    def end(self) -> None:
        """End all that are under way, and let no others start."""
        with self._lock:
            self.ended = True
        for folder in list(self._folders.values()):
            end_processes(folder)


def end_processes(folder: Path) -> None:
    """End the processes of the point with this folder, whoever started them, and only those.

    Their exit codes are left to whoever started them: psutil's waiting would take a child's from
    its ``Popen``, which then says 0.
    """
    while found := processes_of(folder):
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def processes_of(folder: Path) -> set[psutil.Process]:
    """The running processes of this machine that carry this folder in their environment."""
    return running_folders().get(folder.resolve(), set())


def running_folders() -> dict[Path, set[psutil.Process]]:
    """The points that processes of this machine are at, by their folders."""
    found: dict[Path, set[psutil.Process]] = defaultdict(set)
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # ended meanwhile, or another user's
            mark = process.environ().get(MARK)
            if mark and process.pid != os.getpid():
                found[Path(mark)].add(process)
    return found


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: by an exception, so that it cleans up.

    A signal that the caller ignores (``nohup``) stays ignored. Outside the main thread, where
    Python allows no handlers, this changes nothing.

    Raises:
        SystemExit: one came; the code is 128 + its number, as a shell has it.
    """
    before: dict[signal.Signals, Any] = {}

    def end(number: int, _: object) -> None:
        for other in before:  # the cleaning up is not to be interrupted
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        before = {
            number: handler
            for number in _ENDING
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
        }
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
