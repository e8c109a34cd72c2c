# SPDX-License-Identifier: Apache-2.0
"""Where a declared framework keeps its mask (:mod:`.declared`).

A source is called with the host module and the arguments of the declared method by name, and
returns (B, L) bool, True = masked, in row-major order of the grid; None where nothing is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Argument:
    """A mask (B, L) that the method is called with.

    Attributes:
        name: of the argument.
        masked: the value that says masked: True, or False where True says visible.
    """

    name: str
    masked: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the arguments that are looked at."""
        return (self.name,)

    def __call__(self, module: Any, arguments: Arguments) -> Tensor | None:
        """See the module docstring."""
        mask = arguments.get(self.name)
        return None if mask is None else _masked(mask, self.masked)


@dataclass(frozen=True)
class Restore:
    """MAE's ``ids_restore`` (B, L): ranks from the number of visible tokens on are masked.

    Attributes:
        name: of the argument.
        tokens: argument with the encoder's output (B, prefix + V, C).
        prefix: tokens of it before the visible ones.
    """

    name: str = 'ids_restore'
    tokens: str = 'x'
    prefix: int = 1

    @property
    def reads(self) -> tuple[str, ...]:
        """As of :class:`Argument`."""
        return self.name, self.tokens

    def __call__(self, module: Any, arguments: Arguments) -> Tensor:
        """See the module docstring."""
        return arguments[self.name] >= arguments[self.tokens].shape[1] - self.prefix


@dataclass(frozen=True)
class Units:
    """A mask (B, n) of units of several tokens each, units in row-major order.

    Attributes:
        name: of the argument.
        shape: module -> (H, W) of a unit in tokens; (T, H, W) of a video's.
        grid: module -> the same of the grid.
        masked: as in :class:`Argument`.
    """

    name: str
    shape: Callable[[Any], Sequence[int]]
    grid: Callable[[Any], Sequence[int]]
    masked: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        """As of :class:`Argument`."""
        return (self.name,)

    def __call__(self, module: Any, arguments: Arguments) -> Tensor | None:
        """See the module docstring."""
        units = Argument(self.name, self.masked)(module, arguments)
        if units is None:
            return None
        shape, grid = self.shape(module), self.grid(module)
        sides = [size // unit for size, unit in zip(grid, shape, strict=True)]
        if units.shape[1] != math.prod(sides):
            raise ValueError(
                f'mask={self}: {self.name!r} has {units.shape[1]} units per image, but a grid of '
                f'{tuple(grid)} tokens in units of {tuple(shape)} has {math.prod(sides)}'
            )
        units = units.view(-1, *sides)
        for axis, unit in enumerate(shape, start=1):
            units = units.repeat_interleave(unit, axis)
        return units.flatten(1)


@dataclass(frozen=True)
class Result:
    """A mask that a method makes while the declared method runs.

    Attributes:
        method: its name.
        index: of the mask (B, L) in what it returns; None where it returns the mask alone.
        masked: as in :class:`Argument`.
        module: path from the host of the module whose method it is; '' is the host.
    """

    method: str
    index: int | None = None
    masked: bool = True
    module: str = ''

    def __call__(self, module: Any, arguments: Arguments) -> None:
        """Nothing yet: see :meth:`of`."""
        return None

    def of(self, returned: Any) -> Tensor:
        """The mask (B, L) bool in what the method returned.

        Raises:
            TypeError: there is none where ``index`` says.
        """
        mask = returned
        if isinstance(returned, (tuple, list)) and self.index is not None:
            mask = dict(enumerate(returned)).get(self.index)
        if not isinstance(mask, Tensor):
            found = type(returned).__name__
            found += f' of {len(returned)}' if isinstance(returned, (tuple, list)) else ''
            raise TypeError(f'mask={self}: it returned a {found}, where there is no mask')
        return _masked(mask, self.masked)


def _masked(mask: Tensor, masked: bool) -> Tensor:
    """(B, L) bool of a mask (B, ...) whose ``masked`` entries are masked."""
    mask = mask.flatten(1).bool()
    return mask if masked else ~mask
