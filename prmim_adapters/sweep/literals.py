# SPDX-License-Identifier: Apache-2.0
"""Plain values as Python text that reads back to the same values, or not at all.

Sweeps write configs, which are programs, from keys and values of a spec, which are data.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from typing import Any


class NoLiteralError(ValueError):
    """A key or value that cannot be written; the message names it by its path."""


def assignments(values: Mapping[Any, Any], where: str, equals: str = ' = ') -> list[str]:
    """``key = value`` for every entry.

    Args:
        values: keys that are identifiers, with plain values.
        where: what they are, for errors.
        equals: between key and value: '=' in arguments of a call.

    Raises:
        NoLiteralError: a key is no identifier, or a value is not plain.
    """
    for key in values:
        if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key):
            raise NoLiteralError(
                f'{where}: {key!r} is no name of a setting; expected letters, digits and _, not '
                'beginning with a digit'
            )
    return [f'{key}{equals}{literal(value, f"{where}.{key}")}' for key, value in values.items()]


def literal(value: Any, where: str) -> str:
    """Python text of None, numbers, text, and of lists, tuples and mappings of them.

    Args:
        value: the value; mappings have keys of text or whole numbers.
        where: its path, for errors.

    Raises:
        NoLiteralError: it is something else, or a number that is not finite.
    """
    if value is None or type(value) in (bool, int):
        return repr(value)
    if type(value) is str:
        # mmengine replaces {{ ... }} wherever it stands in a config's text.
        return repr(value).replace('{{', '{\\x7b')
    if type(value) is float and math.isfinite(value):
        return repr(value)
    if type(value) is list:
        return f'[{", ".join(_items(value, where))}]'
    if type(value) is tuple:
        items = _items(value, where)
        return f'({", ".join(items)}{"," if len(items) == 1 else ""})'
    if type(value) is dict:
        return f'{{{", ".join(_entry(key, item, where) for key, item in value.items())}}}'
    raise NoLiteralError(
        f'{where}: {value!r:.80} ({type(value).__name__}) cannot be written into a config; allowed '
        'are text (in quotes, if it looks like a date), finite numbers, true, false, null, and '
        'lists and mappings of these'
    )


def _items(values: list[Any] | tuple[Any, ...], where: str) -> list[str]:
    return [literal(item, f'{where}[{index}]') for index, item in enumerate(values)]


def _entry(key: Any, value: Any, where: str) -> str:
    if type(key) not in (str, int):
        raise NoLiteralError(
            f'{where}: the key {key!r:.80} ({type(key).__name__}) cannot be written into a config; '
            'put it in quotes'
        )
    return f'{literal(key, where)}: {literal(value, f"{where}.{key}")}'
