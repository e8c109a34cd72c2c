# SPDX-License-Identifier: Apache-2.0
"""numpy's numbers and arrays for ``torch.load(weights_only=True)``, by stand-ins.

Checkpoints hold them beside the weights (log history, random states), and pickle writes them as
calls of numpy. The real ``numpy.dtype`` and ``numpy.ndarray`` cannot be allowed: a file also sets
their state, and a crafted one (fields beyond the item, flags of another type) makes numpy read
foreign memory. The stand-ins take plain number types, a byte order, and as many bytes as the shape
says; whatever else a file asks for is an ``UnpicklingError``.
"""

from __future__ import annotations

import math
from pickle import UnpicklingError
from typing import Any

import numpy as np

#: bool, signed, unsigned, floating and complex numbers of fixed size.
_CODE = {np.dtype(code).str[1:] for code in '?bhilqBHILQefdFD'}
_BYTE_ORDERS = ('<', '>', '|', '=')


def numpy_globals() -> list[tuple[Any, str]]:
    """What to hand to ``torch.serialization.add_safe_globals``.

    numpy's two functions are listed under both their module names, those of numpy 1 and numpy 2.
    """
    functions = [
        (function, f'numpy.{core}.multiarray.{name}')
        for function, name in ((_new_array, '_reconstruct'), (_new_number, 'scalar'))
        for core in ('core', '_core')
    ]
    empty = (_no_bytes, 'builtins.bytes')
    return [(NumberType, 'numpy.dtype'), (Array, 'numpy.ndarray'), empty, *functions]


class NumberType:
    """Stand-in for ``numpy.dtype``; numpy takes it as one, for its attribute ``dtype``."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or code not in _CODE:
            raise UnpicklingError(
                f'the file asks for numpy type {shown(code)}; only numbers are read'
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Take (version, byte order, then nothing but what every plain type has)."""
        order: Any = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        plain = isinstance(order, str) and order in _BYTE_ORDERS
        if not plain or state[2:] != (None, None, None, -1, -1, 0):
            raise UnpicklingError(
                f'the file describes numpy type {self.dtype} by {shown(state)}; only a byte order '
                'is read'
            )
        self.dtype = self.dtype.newbyteorder(order)

    def __reduce__(self) -> Any:
        """Pickled as the type that it stands for."""
        return self.dtype.__reduce__()


class Array(np.ndarray):
    """An array as read: numpy's own in every use, and pickled as such."""

    def __new__(cls) -> Array:
        """Empty; the bytes come as its state."""
        return super().__new__(cls, 0)

    def __setstate__(self, state: Any) -> None:
        """Take (version, shape, type, whether in Fortran's order, bytes), once."""
        if self.size or not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError('the file sets the state of a numpy array in an unknown way')
        _, shape, kind, fortran, data = state
        sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not (sizes and isinstance(kind, NumberType) and type(data) is bytes):
            raise UnpicklingError('the file holds a numpy array of something else than numbers')
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise UnpicklingError(
                f'the file holds {len(data)} bytes for a numpy array {shape!r:.80} of {kind.dtype}'
            )
        whole: Any = (1, shape, kind.dtype, bool(fortran), data)
        super().__setstate__(whole)

    def __reduce__(self) -> Any:
        """Pickled as numpy's own array."""
        return np.asarray(self).__reduce__()


def _new_array(kind: Any, shape: Any, code: Any) -> Array:
    """Stand-in for numpy's ``_reconstruct(ndarray, (0,), b'b')``."""
    if kind is not Array:
        raise UnpicklingError(f'the file makes a numpy array of class {shown(kind)}')
    return Array()


def _new_number(kind: Any, data: Any) -> Any:
    """Stand-in for numpy's ``scalar(dtype, bytes)``."""
    if not isinstance(kind, NumberType) or type(data) is not bytes:
        raise UnpicklingError('the file holds a numpy number that is none')
    if len(data) != kind.dtype.itemsize:
        raise UnpicklingError(f'the file holds {len(data)} bytes for one numpy {kind.dtype}')
    return np.frombuffer(data, kind.dtype)[0]


def shown(value: Any) -> str:
    """Something out of a file, for messages: text and numbers, and of all else its type.

    Lists whose entries are one list, and so on, are small and have a text that fills the memory.
    """
    if isinstance(value, (str, bytes)):
        return repr(value[:80])
    return f'{value!r:.80}' if isinstance(value, (int, float)) else f'of {type(value)}'


def _no_bytes() -> bytes:
    """Stand-in for ``bytes()``, the data of an empty array; ``bytes(n)`` could fill the memory."""
    return b''
