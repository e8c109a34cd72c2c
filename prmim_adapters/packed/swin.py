# SPDX-License-Identifier: Apache-2.0
"""Swin on present units only: what a dense Swin computes, without the thrown tokens.

A *unit* is the patch of image under one token of the last stage: ``2 ** (stages - 1)`` tokens on a
side in the first stage (8), half as many after every patch merging. A unit is present or thrown
as a whole, so tokens stay packed as (B, U * side * side, C), unit after unit and row-major inside
each, through all stages: LayerNorm, QKV, projection, MLP and patch merging (whose 2x2 blocks never
cross a unit) see present tokens only. Together they are 98 % of the multiply-adds.

Attention alone is dense, in windows (see ``window_attention.py``). The dense copies and the attention
matrix are recomputed in backward, so stored activations are proportional to present tokens as well.
The result is exactly the dense network with thrown keys masked.

Implementations name and order the parts of a block differently: each adapter describes its blocks
as :class:`SwinBlock` and its patch merging as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.partition import Grid
from .units import Units
from .window_attention import WindowAttention, attend, attend_again
from .windows import Windows, place, window_layout


@dataclass(frozen=True, eq=False)  # torch.compile looks a callable up by its hash
class SwinBlock:
    """One block of any Swin.

    Attributes:
        qkv: norm, then queries, keys and values: (B, N, C) -> (B, N, 3C).
        attention: of the windows, between the two.
        update: what follows attention: the block's input x and its attended tokens, both
            (B, N, C), to the output (B, N, C) of projection, MLP and residual connections.
        window: side of a window in tokens.
        shift: cyclic shift in tokens.
        recompute: compute the whole block again in backward (activation checkpointing).
    """

    qkv: Callable[[Tensor], Tensor]
    attention: WindowAttention
    update: Callable[[Tensor, Tensor], Tensor]
    window: int
    shift: int
    recompute: bool = False

    def __call__(self, x: Tensor, windows: Windows) -> Tensor:
        """Packed tokens (B, N, C) -> (B, N, C)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, windows, use_reentrant=False)
        return self._forward(x, windows)

    def _forward(self, x: Tensor, windows: Windows) -> Tensor:
        qkv = self.qkv(x)
        held = not torch.is_grad_enabled() or self.recompute  # by the block's own checkpoint
        attended = (attend if held else attend_again)(self.attention, qkv, windows)
        return self.update(x, attended)


#: Patch merging of 2x2 blocks: (..., row, column, C) -> (..., C_out).
Merging = Callable[[Tensor], Tensor]
#: Blocks, and the patch merging after them.
Stage = tuple[Iterable[SwinBlock], Merging | None]


def encode_units(x: Tensor, stages: Iterable[Stage], units: Units) -> Tensor:
    """All stages on packed tokens.

    Args:
        x: (B, U * side * side, C) packed tokens of the units.
        stages: of the network.
        units: the present units.

    Returns:
        (B, U, C_last), the last stage's output before the final norm, in the order of ``units``.
    """
    side = units.side(x)
    for blocks, merge in stages:
        placed: dict[tuple[int, int], Windows] = {}  # two at most: shifted and not
        for block in blocks:
            key = block.window, block.shift
            if key not in placed:
                layout = window_layout(units.grid, side, *key, x.device)
                placed[key] = place(layout, units.index)
            x = block(x, placed[key])
        if merge is not None:
            side //= 2
            x = x.unflatten(1, (-1, side, 2, side, 2)).transpose(3, 4)
            x = merge(x).flatten(1, 3)
    return x


def microsoft_merging(merging: Any | None) -> Merging | None:
    """Patch merging as Microsoft orders it: column of the block, then row, then channel.

    Args:
        merging: has ``norm`` and ``reduction``; None after the last stage.
    """
    if merging is None:
        return None
    return lambda x: merging.reduction(merging.norm(x.transpose(-3, -2).flatten(-3)))


def unit_side(num_stages: int) -> int:
    """Side of a unit in tokens of the first stage: one token of the last."""
    return 2 ** (num_stages - 1)


def unit_grid(height: int, width: int, num_stages: int, patch_size: int, option: str) -> Grid:
    """Units (height, width) of a first stage of height x width tokens.

    Raises:
        ValueError: it cannot be divided into units; ``option`` is what to set.
    """
    side = unit_side(num_stages)
    if height % side or width % side:
        raise ValueError(
            f'the {height}x{width} map of the first stage is not divisible into units of '
            f'{side}x{side} tokens: choose {option} divisible by {side * patch_size}'
        )
    return height // side, width // side
