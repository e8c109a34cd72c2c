# SPDX-License-Identifier: Apache-2.0
"""Window attention of packed tokens: dense in the windows, packed outside.

A *unit* is a square of tokens that is present or thrown as a whole. Tokens are packed as
(B, U * side * side, C): unit after unit, row-major inside each. :func:`window_layout` says where
the tokens of every unit lie in the (shifted, padded) windows of the map, :func:`place` applies it
to the present units of a batch, and :func:`attend` copies packed QKV there, masks keys at thrown
positions and copies the outputs back. That equals attention on the dense map with thrown keys
masked. A window without any present token computes finite numbers that nobody reads.

The rules of shift, region and padding are those of Swin in mmpretrain and mmdetection [0]. Padded
positions are *not* thrown: they are keys and values, equal to what QKV makes of a zero token.

[0] Liu et al., Swin Transformer, ICCV 2021
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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


class WindowAttention(NamedTuple):
    """A window attention between its projections.

    Attributes:
        num_heads: of the C channels.
        scale: of the queries.
        bias_table: (pairs, num_heads) relative position bias.
        bias_index: area * area int64 in any shape, the table's row of each query and key.
        qkv_bias: (3C,) bias of queries, keys and values, or None.
        dropout: of the attention weights; 0 outside of training.
    """

    num_heads: int
    scale: float
    bias_table: Tensor
    bias_index: Tensor
    qkv_bias: Tensor | None
    dropout: float

    @classmethod
    def of(cls, module: Any) -> WindowAttention:
        """Of a module whose parts are named as in the original Swin, as mmpretrain's are."""
        return cls(
            num_heads=module.num_heads,
            scale=module.scale,
            bias_table=module.relative_position_bias_table,
            bias_index=module.relative_position_index,
            qkv_bias=module.qkv.bias,
            dropout=module.attn_drop.p if module.training else 0.0,
        )


def attend(attention: WindowAttention, qkv: Tensor, windows: Windows) -> Tensor:
    """Window attention of packed qkv (B, N, 3C) -> (B, N, C)."""
    batch, heads, area = qkv.shape[0], attention.num_heads, windows.layout.area
    dense = _empty_windows(attention, qkv, windows.layout)
    dense = dense.index_copy(0, windows.rows, qkv.flatten(0, 1))
    q, k, v = dense.view(-1, area, 3, heads, qkv.shape[-1] // 3 // heads).permute(2, 0, 3, 1, 4)
    bias = attention.bias_table[attention.bias_index.flatten()]
    bias = bias.view(area, area, heads).permute(2, 0, 1)
    scores = (q * attention.scale) @ k.transpose(-2, -1) + bias
    # One mask for images and regions lives here only: kept for backward, it would be large.
    region = windows.layout.region
    mask = windows.absent if region is None else windows.absent + region
    scores = scores.unflatten(0, (batch, -1)) + mask.to(scores.dtype)
    weights = F.dropout(scores.flatten(0, 1).softmax(dim=-1), attention.dropout)
    out = (weights @ v).transpose(1, 2).flatten(0, 1).flatten(1)
    return out.index_select(0, windows.rows).unflatten(0, (batch, -1))


def _empty_windows(attention: WindowAttention, qkv: Tensor, layout: WindowLayout) -> Tensor:
    """(B * num_slots, 3C): zeros; at padded positions what QKV makes of a zero token."""
    batch, channels = qkv.shape[0], qkv.shape[-1]
    if layout.padding is None or attention.qkv_bias is None:
        return qkv.new_zeros(batch * layout.num_slots, channels)
    filler = layout.padding[:, None] * attention.qkv_bias
    return filler.to(qkv.dtype).repeat(batch, 1)
