# SPDX-License-Identifier: Apache-2.0
"""Swin implementations outside mmpretrain on present units only.

The windows and their attention are those of ``windows.py``; here a
block of another implementation is described by :class:`SwinBlock`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core import gather_tokens
from ..core.partition import Grid
from .windows import Windows, attend, place, window_layout

Function = Callable[[Tensor], Tensor]


class QKVBias(NamedTuple):
    """The bias of queries, keys and values (3C,), or None."""

    bias: Tensor | None


class WindowAttention(NamedTuple):
    """What ``attend`` reads of a window attention, under mmpretrain's names."""

    num_heads: int
    embed_dims: int
    scale: float
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    attn_drop: Function
    softmax: Function
    qkv: QKVBias


@dataclass(frozen=True)
class SwinBlock:
    """One block of any Swin.

    Attributes:
        norm1: LayerNorm before attention.
        qkv: (..., C) -> (..., 3C), queries, keys, values.
        attention: what ``attend`` reads of a window attention: ``num_heads``, ``embed_dims``,
            ``scale``, ``relative_position_bias_table``, ``relative_position_index``, ``attn_drop``,
            ``softmax``, ``qkv.bias``.
        random: attention dropout is active.
        project: output projection and its dropout.
        drop_path: stochastic depth.
        norm2: LayerNorm before the MLP.
        mlp: with its dropout.
        window: side of a window in tokens.
        shift: cyclic shift in tokens.
        recompute: compute the whole block again in backward (activation checkpointing).
    """

    norm1: Function
    qkv: Function
    attention: WindowAttention
    random: bool
    project: Function
    drop_path: Function
    norm2: Function
    mlp: Function
    window: int
    shift: int
    recompute: bool = False

    def __call__(self, x: Tensor, windows: Windows) -> Tensor:
        """Packed tokens (B, N, C) -> (B, N, C)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, windows, use_reentrant=False)
        return self._forward(x, windows)

    def _forward(self, x: Tensor, windows: Windows) -> Tensor:
        qkv = self.qkv(self.norm1(x))
        if torch.is_grad_enabled() and not self.recompute:  # only the windows are made again
            attended = checkpoint(
                attend,
                self.attention,
                qkv,
                windows,
                use_reentrant=False,
                preserve_rng_state=self.random,
            )
        else:
            attended = attend(self.attention, qkv, windows)
        x = x + self.drop_path(self.project(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))


Stage = tuple[Iterable[SwinBlock], Any | None]


def gather_units(x: Tensor, units: Tensor, grid: Grid) -> Tensor:
    """Tokens of some units.

    Args:
        x: (B, h * w, C) in row-major order.
        units: (B, U) int64.
        grid: units in (height, width).

    Returns:
        (B, U * side * side, C), unit after unit, row-major inside each.
    """
    channels = x.shape[-1]
    side = round((x.shape[1] / (grid[0] * grid[1])) ** 0.5)
    x = x.view(-1, grid[0], side, grid[1], side, channels).transpose(2, 3)
    x = gather_tokens(x.reshape(x.shape[0], grid[0] * grid[1], -1), units)
    return x.view(x.shape[0], -1, channels)


def encode_units(x: Tensor, stages: Iterable[Stage], units: Tensor, grid: Grid) -> Tensor:
    """All stages on packed tokens.

    Args:
        x: (B, U * side * side, C), see :func:`gather_units`.
        stages: blocks, and the patch merging after them (``norm`` and ``reduction``) or None.
        units: (B, U) int64, the present units.
        grid: units in (height, width).

    Returns:
        (B, U, C_last) before the final norm.
    """
    side = round((x.shape[1] / units.shape[1]) ** 0.5)
    for blocks, merging in stages:
        placed: dict[int, Windows] = {}
        for block in blocks:
            if block.shift not in placed:
                layout = window_layout(grid, side, block.window, block.shift, x.device)
                placed[block.shift] = place(layout, units)
            x = block(x, placed[block.shift])
        if merging is not None:
            x = merge_patches(merging, x, side)
            side //= 2
    return x


def merge_patches(merging: Any, x: Tensor, side: int) -> Tensor:
    """Patch merging as Microsoft orders it: column of the 2x2 block, then row, then channel."""
    half = side // 2
    x = x.unflatten(1, (-1, half, 2, half, 2)).permute(0, 1, 2, 4, 5, 3, 6)
    return merging.reduction(merging.norm(x.flatten(4).flatten(1, 3)))


def mask_tokens(x: Tensor, mask: Tensor, token: nn.Parameter) -> Tensor:
    """x (B, h * w, C) with ``token`` (1, 1, C) where mask (B, h, w) is 1."""
    return torch.where(mask.flatten(1)[..., None].bool(), token.to(x.dtype), x)
