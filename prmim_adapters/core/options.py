# SPDX-License-Identifier: Apache-2.0
"""Checks of options, each with the option's name, the value found and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

#: Largest weight that float32 holds.
LARGEST = 3.4028234663852886e38


def check_whole(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """A whole number from ``low`` to ``high``.

    Raises:
        TypeError: no whole number; True and 2.0 are none.
        ValueError: out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name}={value!r} ({type(value).__name__}): expected a whole number')
    if value < low:
        raise ValueError(f'{name}={value} must be at least {low}')
    if value > high:
        raise ValueError(f'{name}={value} must be at most {high}')
    return int(value)


def check_number(name: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """A finite number from ``low`` to ``high``.

    Raises:
        TypeError: no number; True is none.
        ValueError: out of range, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name}={value!r} ({type(value).__name__}): expected a number')
    # whole numbers may be too large for isfinite
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{name}={value} is not finite')
    if not low <= value <= high:
        raise ValueError(f'{name}={value}: must be between {low:g} and {high:g}')
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{name}={value!r} ({type(value).__name__}): expected True or False')
    return value


def check_name(name: str, value: Any) -> str:
    """Text that is not empty.

    Raises:
        TypeError: no text.
        ValueError: empty.
    """
    if not isinstance(value, str):
        raise TypeError(f'{name}={value!r} ({type(value).__name__}): expected a name')
    if not value:
        raise ValueError(f'{name}={value!r} is empty')
    return value


def check_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of the names in ``allowed``.

    Raises:
        TypeError: no text.
        ValueError: another one; lists those there are.
    """
    if not isinstance(value, str):
        raise TypeError(f'{name}={value!r} ({type(value).__name__}): expected a name')
    if value not in allowed:
        raise ValueError(f'{name}={value!r}: allowed are {", ".join(map(repr, allowed))}')
    return value
