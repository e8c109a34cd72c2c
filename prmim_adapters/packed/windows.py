# SPDX-License-Identifier: Apache-2.0
"""Where packed tokens lie in the windows of a Swin's attention.

A *unit* is a square of tokens that is present or thrown as a whole. Tokens are packed as
(B, U * side * side, C): unit after unit, row-major inside each. :func:`window_layout` says where
the tokens of every unit lie in the (shifted, padded) windows of the map, :func:`place` applies it
to the present units of a batch.

The rules of shift, region and padding are those of Swin in mmpretrain and mmdetection [0]. Padded
positions are *not* thrown: they are keys and values, equal to what QKV makes of a zero token.

[0] Liu et al., Swin Transformer, ICCV 2021
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core.partition import Grid

#: Added to the scores of thrown keys. Finite: a row of -inf has no softmax, and windows without a
#: present token have only such rows. exp() of it is 0 in fp32, bf16 and fp16.
ABSENT = -1e4


@dataclass(frozen=True)
class WindowLayout:
    """Where the tokens of every unit lie in the windows of one attention layer.

    Attributes:
        slots: (units, side * side) int64; window * area + place in the window.
        region: (windows, 1, area, area) float32, upstream's mask of a shifted map, or None.
        padding: (windows * area,) bool, True where the map is padded, or None.
        area: tokens of a window.
        num_slots: windows * area.
    """

    slots: Tensor
    region: Tensor | None
    padding: Tensor | None
    area: int
    num_slots: int


@dataclass(frozen=True)
class Windows:
    """A :class:`WindowLayout` applied to the present units of one batch.

    Attributes:
        rows: (B * N,) int64, the row of each packed token among the B * num_slots slots.
        absent: (B, windows, 1, 1, area) float32, added to the scores of keys: 0 or ``ABSENT``.
        layout: the layout.
    """

    rows: Tensor
    absent: Tensor
    layout: WindowLayout


@lru_cache(maxsize=64)
def window_layout(
    grid: Grid, side: int, window: int, shift: int, device: torch.device
) -> WindowLayout:
    """The layout of one attention layer; cached, as all steps share it.

    Args:
        grid: units in (height, width).
        side: tokens on a side of a unit in this stage.
        window: tokens on a side of a window.
        shift: cyclic shift towards the top left, in tokens.
        device: of the tensors.
    """
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        height, width = grid[0] * side, grid[1] * side
        rows, columns = -(-height // window), -(-width // window)
        position = torch.arange(rows * columns * window**2, device=device)
        position = position.view(rows * window, columns * window)

        def by_window(map_: Tensor) -> Tensor:
            map_ = map_.roll((-shift, -shift), (0, 1))
            return map_.view(rows, window, columns, window).transpose(1, 2).flatten()

        slots = torch.empty_like(position).flatten()
        slots[by_window(position)] = torch.arange(slots.numel(), device=device)
        slots = slots.view_as(position)[:height, :width]
        slots = slots.reshape(grid[0], side, grid[1], side).transpose(1, 2).reshape(-1, side**2)

        padding = torch.ones_like(position, dtype=torch.bool)
        padding[:height, :width] = False
        size = rows * window, columns * window
        region = region_mask(size, window, shift, device) if shift else None
        return WindowLayout(
            slots=slots,
            region=None if region is None else region[:, None],
            padding=by_window(padding) if size != (height, width) else None,
            area=window**2,
            num_slots=position.numel(),
        )


def region_mask(size: Grid, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, area, area) float32: -100 between positions that the cyclic shift joined.

    Args:
        size: (height, width) of the (padded) map in tokens, multiples of ``window``.
        window: tokens on a side of a window.
        shift: at least 1.
        device: of the result.
    """

    def label(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).long() + (position >= length - shift).long()

    labels = 3 * label(size[0])[:, None] + label(size[1])
    labels = labels.view(size[0] // window, window, size[1] // window, window)
    labels = labels.transpose(1, 2).reshape(-1, window**2)
    return (labels[:, :, None] != labels[:, None, :]) * -100.0


def place(layout: WindowLayout, units: Tensor) -> Windows:
    """The layout at the present units (B, U) int64 of a batch."""
    batch = units.shape[0]
    image = torch.arange(batch, device=units.device)[:, None, None] * layout.num_slots
    rows = (layout.slots[units] + image).flatten()
    absent = torch.full((batch * layout.num_slots,), ABSENT, device=units.device)
    absent = absent.index_fill(0, rows, 0.0).view(batch, -1)
    if layout.padding is not None:
        absent = absent.masked_fill(layout.padding, 0.0)
    return Windows(rows, absent.view(batch, -1, 1, 1, layout.area), layout)
