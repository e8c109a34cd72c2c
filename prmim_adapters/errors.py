# SPDX-License-Identifier: Apache-2.0
"""Errors as text for users: this package's own by their message, others by type and place too."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .extras import MissingExtraError

PACKAGE = Path(__file__).parent
#: What this package raises with a message for the user.
_OURS = (KeyError, MissingExtraError, OSError, RuntimeError, TypeError, ValueError)


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


@contextmanager
def shown_without_traceback() -> Iterator[None]:
    """In a command: an error ends it with its description."""
    import click

    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        raise click.ClickException(described(error)) from error


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
