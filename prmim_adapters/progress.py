# SPDX-License-Identifier: Apache-2.0
"""How long work says how far it is, to whoever listens: a command's bar, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar('T')
Report = Callable[[str, int, int | None], None]
"""Takes what is being done, how much of it is done, and how much there is, if that is known."""

_listener: ContextVar[Report | None] = ContextVar('listener', default=None)


@contextmanager
def reported_to(listener: Report) -> Iterator[None]:
    """Inside, the listener hears of all work of this thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def step(what: str, done: int = 0, total: int | None = None) -> None:
    """Say what begins now."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def track(items: Collection[T], name: Callable[[T], str]) -> Iterator[T]:
    """The items, each announced by its name before it is handed out."""
    for index, item in enumerate(items):
        step(name(item), index, len(items))
        yield item
