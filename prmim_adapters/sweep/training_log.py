# SPDX-License-Identifier: Apache-2.0
"""Why a training run failed, read from what its processes printed.

Of several processes all end with an error, most of them because another had gone, and the launcher
adds one of its own. torch marks the lines of a traceback by rank: ``[rank1]: ValueError: ...``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r'(?:\[rank(\d+)\]: ?)?(.*)', re.S)
_BEGIN = re.compile(r'(Original )?Traceback \(most recent call last\):$')
_FRAME = re.compile(r' +File "(.*)", line (\d+)')
_CHAINED = re.compile(r'(During handling of|The above exception was)')
_IGNORED = 'Exception ignored'
#: Errors of processes that another one took along, and of the launcher.
_CONSEQUENCE = re.compile(
    r'ChildFailedError|CalledProcessError|SignalException|KeyboardInterrupt|DistBackendError|'
    r'DistNetworkError|[Cc]onnection (closed|reset|refused)|Broken pipe|NCCL|SIGTERM'
)
_SIGNAL = re.compile(r'\bSIG(?!TERM)[A-Z]+\b')


@dataclass
class LoggedError:
    """A traceback in the log of a training run; of a chain, the last.

    Attributes:
        rank: of the process; None if it ran alone.
        place: file and line of the innermost frame.
        message: the error itself, its first line.
    """

    rank: int | None
    place: str = ''
    message: str = ''

    @property
    def is_consequence(self) -> bool:
        """Whether another process, or a signal, is to blame."""
        return not self.message or _CONSEQUENCE.search(self.message) is not None

    def __str__(self) -> str:
        rank = '' if self.rank is None else f'rank {self.rank}: '
        return f'{rank}{self.message}' + (f' ({self.place})' if self.place else '')


def cause(lines: list[str], code: int) -> str:
    """Why a run failed that ended with this code, in one line: the first real error of any rank."""
    errors = logged_errors(lines)
    last = {error.rank: error for error in errors if not error.is_consequence}
    for error in errors:
        if last.get(error.rank) is error:  # what a process printed before did not end it
            return str(error)
    signals = [signal for line in lines for signal in _SIGNAL.findall(line)]
    if signals:
        hint = ', which a system out of memory sends' if signals[0] == 'SIGKILL' else ''
        return f'a training process was ended by {signals[0]}{hint}'
    return next((str(error) for error in errors if error.message), f'ended with code {code}')


def logged_errors(lines: list[str]) -> list[LoggedError]:
    """All tracebacks, in the order in which they begin."""
    found: list[LoggedError] = []
    open_: dict[int | None, LoggedError] = {}  # by rank, as their lines may alternate
    before = ''
    for line in lines:
        prefix, text = _LINE.match(line.rstrip()).groups()  # type: ignore[union-attr]
        rank = None if prefix is None else int(prefix)
        error = open_.get(rank)
        if begin := _BEGIN.match(text):
            if not (error and (begin[1] or not error.message)):
                error = open_[rank] = LoggedError(rank)
                found += [] if before.startswith(_IGNORED) else [error]
            error.message = ''
        elif error and not error.message and (frame := _FRAME.match(text)):
            error.place = f'{frame[1]}, line {frame[2]}'
        elif error and _CHAINED.match(text):
            error.message = ''
        elif error and text and not text.startswith(' ') and not error.message:
            error.message = text
        before = text
    return found
