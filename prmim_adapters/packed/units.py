# SPDX-License-Identifier: Apache-2.0
"""Convolutions of some square units of a dense map: each unit is one small map with a border.

Units (B, U) of a grid are kept as a batch of maps (B * U, C, side, side). Pointwise layers, norms
and activations take them as they are. A 3x3 convolution or an upsampling by two reads a border of
one position from the neighbouring units; where a neighbour is absent, or outside of the image, the
border is zero, as in a dense convolution of a map with zeros there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import PackedLayout


class Units:
    """Units ``index`` (B, U) int64 of a grid (h, w), and where their borders lie.

    Args:
        index (Tensor): Flat positions on the grid, each at most once per image.
        grid (tuple[int, int]): Units per column and per row.
    """

    def __init__(self, index: Tensor, grid: tuple[int, int]) -> None:
        self.index = index
        self.grid = grid
        self._borders: dict[int, Tensor] = {}

    def cut(self, dense: Tensor) -> Tensor:
        """Maps (B * U, C, side, side) of the units of a dense map (B, C, h * side, w * side)."""
        side = dense.shape[2] // self.grid[0]
        tokens = PackedLayout.of_units(self.index, self.grid, side).gather(dense)
        return tokens.reshape(-1, side, side, dense.shape[1]).permute(0, 3, 1, 2)

    def with_border(self, maps: Tensor) -> Tensor:
        """(B * U, C, side, side) -> (B * U, C, side + 2, side + 2)."""
        side = maps.shape[-1]
        rows = F.pad(maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]), (0, 0, 0, 1))
        if side not in self._borders:
            self._borders[side] = self._border_rows(side)
        windows = rows.index_select(0, self._borders[side])
        return windows.view(-1, side + 2, side + 2, maps.shape[1]).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _border_rows(self, side: int) -> Tensor:
        """Row of every position of the bordered maps; the last row, which is zero, where absent."""
        layout = PackedLayout.of_units(self.index, self.grid, side)
        count = layout.rows.numel()
        batch, height, width = layout.size
        row = torch.full((batch * height * width,), count, device=layout.rows.device)
        row = row.index_copy(0, layout.rows, torch.arange(count, device=row.device))
        padded = F.pad(row.view(batch, height, width), (1, 1, 1, 1), value=count)
        windows = padded.unfold(1, side + 2, side).unfold(2, side + 2, side).flatten(1, 2)
        chosen = self.index[..., None, None].expand(-1, -1, side + 2, side + 2)
        return windows.gather(1, chosen).flatten()


def conv3x3(conv: nn.Conv2d, maps: Tensor, units: Units) -> Tensor:
    """3x3 convolution of stride 1: (B * U, C, s, s) -> (B * U, C_out, s, s)."""
    return F.conv2d(units.with_border(maps), conv.weight, conv.bias)


def upsample2x(conv: nn.ConvTranspose2d, maps: Tensor, units: Units) -> Tensor:
    """4x4 transposed convolution of stride 2: (B * U, C, s, s) -> (B * U, C_out, 2s, 2s).

    Every output position reads 2 x 2 inputs, which 2 x 2 of the 16 weights depends on whether its
    row and column are even or odd: four convolutions, no output is computed to be cropped.
    """
    side = maps.shape[-1]
    bordered = units.with_border(maps)
    parts = []
    for top in (0, 1):  # an even row reads the row above and its own, an odd one its own and below
        for left in (0, 1):
            weight = conv.weight[:, :, 1 - top :: 2, 1 - left :: 2].flip(2, 3).transpose(0, 1)
            window = bordered[..., top : top + side + 1, left : left + side + 1]
            parts.append(F.conv2d(window, weight, conv.bias))
    return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)
