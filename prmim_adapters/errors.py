# SPDX-License-Identifier: Apache-2.0
"""Errors as text for users: this package's own by their message, others by type and place too."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from .extras import MissingExtraError

PACKAGE = Path(__file__).parent
#: What this package raises with a message for the user.
_OURS = (KeyError, MissingExtraError, OSError, RuntimeError, TypeError, ValueError)


class Mistake(click.ClickException):
    """In a command: something that the user gave cannot be used; ends it with code 2."""

    exit_code = 2


def described(error: BaseException) -> str:
    """One line that says what went wrong, and where unless the message alone does.

    A framework's ``assert`` has no message, and an ``IndexError`` of a library names nothing that
    its user set: those come with type, file and line.
    """
    message = ' '.join(_message(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or (message and isinstance(error, _OURS) and _is_plain(error, frames[-1])):
        return message or type(error).__name__
    last = frames[-1]
    place = f'{type(error).__name__} at {_short(last.filename)}, line {last.lineno}'
    return f'{place}: {message or last.line}'


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend it: this package says so, or the system names the file at fault."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, _OURS) and bool(frames) and _is_plain(error, frames[-1])


@contextmanager
def shown_without_traceback(file: str | None = None) -> Iterator[None]:
    """In a command: an error ends it with its description; code 2 for a mistake, else 1.

    Args:
        file: what the command works on; named where the description does not.
    """
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, MissingExtraError):
        raise  # the last one is said by the command line, with the command's name
    except Exception as error:
        text = described(error)
        kind = Mistake if is_mistake(error) else click.ClickException
        raise kind(text if file is None or file in text else f'{file}: {text}') from error


def _message(error: BaseException) -> str:
    """A KeyError's text is the repr of its message."""
    alone = isinstance(error, KeyError) and len(error.args) == 1
    return str(error.args[0]) if alone else str(error)


def _is_plain(error: BaseException, last: traceback.FrameSummary) -> bool:
    """Whether this package raised the error on purpose, or the system names the file at fault."""
    own = Path(last.filename).is_relative_to(PACKAGE) and (last.line or '').startswith('raise')
    return own or isinstance(error, FileNotFoundError | PermissionError)


def _short(filename: str) -> str:
    """A file of a package by its path inside the folder of all packages."""
    _, found, inside = filename.rpartition('site-packages/')
    return inside if found else filename
