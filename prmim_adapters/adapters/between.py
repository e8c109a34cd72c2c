# SPDX-License-Identifier: Apache-2.0
"""Classes that are made when they are first needed, and found again by pickle.

The seam of a known class for a user's subclass of it: user's class, then seam, then base. The name
of such a class says from what it was made, so that another process can make it again.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from operator import attrgetter
from typing import Any

_MARK = '-'
# A part may be such a class itself. Pickle takes a dot for an attribute of an attribute.
_ESCAPES = (('~', '~0'), (_MARK, '~1'), (':', '~2'), ('.', ':'))
_MADE: dict[tuple[Any, ...], type] = {}


def named_class(
    module: str, parts: tuple[Any, ...], bases: type | tuple[type, ...], content: dict[str, Any]
) -> type:
    """A class made once from ``parts``, which its name encodes.

    Args:
        module: ``__name__`` of the module whose ``__getattr__`` makes it again.
        parts: strings and classes.
        bases: of the class.
        content: its methods.
    """
    key = (module, *parts)
    if key not in _MADE:
        bases = bases if isinstance(bases, tuple) else (bases,)
        words: list[str] = []
        for part in parts:
            words += [part.__module__, part.__qualname__] if inspect.isclass(part) else [part]
        named = {
            '__module__': module,
            '__qualname__': _MARK.join(map(_escaped, words)),
            '__doc__': bases[0].__doc__,
        }
        _MADE[key] = type(f'PR{bases[0].__name__}', bases, {**content, **named})
    return _MADE[key]


def forget(module: str, first: str) -> None:
    """Make the classes of that module anew whose first part is ``first``."""
    for key in [key for key in _MADE if key[:2] == (module, first)]:
        del _MADE[key]


def decoded(module: str, name: str) -> tuple[Any, ...]:
    """The ``parts`` of the class called ``name``: the last two words of each pair are a class.

    Raises:
        AttributeError: it is no such name.
    """
    words = [_unescaped(word) for word in name.split(_MARK)]
    if len(words) < 3:
        raise AttributeError(f'module {module!r} has no attribute {name!r}')
    first = words[: len(words) % 2]
    pairs = zip(words[len(first) :: 2], words[len(first) + 1 :: 2], strict=True)
    return (*first, *(attrgetter(qualname)(import_module(source)) for source, qualname in pairs))


def _escaped(word: str) -> str:
    for plain, escape in _ESCAPES:
        word = word.replace(plain, escape)
    return word


def _unescaped(word: str) -> str:
    for plain, escape in reversed(_ESCAPES):
        word = word.replace(escape, plain)
    return word


def between(found: type, base: type, seam: type) -> type:
    """A subclass of ``found`` in whose MRO ``seam`` stands before ``base``.

    Raises:
        TypeError: ``found``, or a class between it and ``base``, overrides what ``seam`` does.
    """
    for cls in found.__mro__[: found.__mro__.index(base)]:
        clash = sorted(_methods(cls) & _seam_methods(seam, base))
        if clash:
            raise TypeError(
                f'{cls.__module__}.{cls.__qualname__} overrides {", ".join(clash)} of '
                f'{base.__name__}, and so does partial reconstruction: register an adapter for '
                'your class'
            )
    made = named_class(__name__, (found, seam), (found, seam), {})
    if seam.__name__ == base.__name__:  # goes by the framework's name, which Hugging Face saves
        made.__name__ = found.__name__
    return made


def __getattr__(name: str) -> type:
    """The class that :func:`between` made in another process."""
    found, seam = decoded(__name__, name)
    return between(found, next(cls for cls in found.__mro__ if cls in seam.__mro__), seam)


def _methods(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if inspect.isroutine(value)}


def _seam_methods(seam: type, base: type) -> set[str]:
    ours = [cls for cls in seam.__mro__ if cls not in base.__mro__]
    return set().union(*(_methods(cls) for cls in ours))
