# SPDX-License-Identifier: Apache-2.0
"""The seam of a known class for a user's subclass of it: user's class, then seam, then base.

Such classes are made when they are first needed. Pickle finds them again in this module: their
name says from what they were made.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from operator import attrgetter

_MARK, _DOT = '-', ':'  # neither can be part of a Python name
_MADE: dict[tuple[type, type, type], type] = {}


def between(found: type, base: type, seam: type) -> type:
    """A subclass of ``found`` in whose MRO ``seam`` stands before ``base``.

    Raises:
        TypeError: ``found``, or a class between it and ``base``, overrides what ``seam`` does.
    """
    key = found, base, seam
    if key in _MADE:
        return _MADE[key]
    for cls in found.__mro__[: found.__mro__.index(base)]:
        clash = sorted(_methods(cls) & _seam_methods(seam, base))
        if clash:
            raise TypeError(
                f'{cls.__module__}.{cls.__qualname__} overrides {", ".join(clash)} of '
                f'{base.__name__}, and so does partial reconstruction: register an adapter for '
                'your class'
            )
    # A seam that goes by the framework's name (Hugging Face saves it) leaves the user's, too.
    name = found.__name__ if seam.__name__ == base.__name__ else f'PR{found.__name__}'
    parts = (found.__module__, found.__qualname__, seam.__module__, seam.__qualname__)
    content = {
        '__module__': __name__,
        '__qualname__': _MARK.join(parts).replace('.', _DOT),
        '__doc__': found.__doc__,
    }
    made = type(name, (found, seam), content)
    made.__name__ = name
    return _MADE.setdefault(key, made)


def __getattr__(name: str) -> type:
    """The class that :func:`between` made in another process."""
    parts = name.replace(_DOT, '.').split(_MARK)
    if len(parts) != 4:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    found, seam = (
        attrgetter(qualname)(import_module(module)) for module, qualname in (parts[:2], parts[2:])
    )
    base = next(cls for cls in found.__mro__ if cls in seam.__mro__)
    return between(found, base, seam)


def _methods(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if inspect.isroutine(value)}


def _seam_methods(seam: type, base: type) -> set[str]:
    ours = [cls for cls in seam.__mro__ if cls not in base.__mro__]
    return set().union(*(_methods(cls) for cls in ours))
