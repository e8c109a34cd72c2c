# SPDX-License-Identifier: Apache-2.0
"""Square units of dense maps, which are masked and thrown as a whole, as packed tokens.

The grid of units is the same at every stage of a network; a unit covers ``side`` x ``side``
positions of that stage's map. Packed tokens (B, U * side * side, C) are ordered unit by unit, row
by row inside a unit. Images of a batch have equally many units, so every shape is known without
looking at the mask.
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cuda_graph import is_capturing
from ..core.partition import Grid


class Units:
    """Some units of every image, and where their tokens lie on the maps of any stage.

    Args:
        index: (B, U) int64, flat positions on the grid, each at most once per image.
        grid: units in (height, width).
    """

    def __init__(self, index: Tensor, grid: Grid) -> None:
        self.index = index
        self.grid = grid
        self._rows: dict[int, Tensor] = {}
        self._borders: dict[int, Tensor] = {}

    @classmethod
    def all(cls, batch: int, grid: Grid, device: torch.device | None = None) -> Units:
        """Every unit of ``batch`` images, in row-major order."""
        return cls(torch.arange(grid[0] * grid[1], device=device).expand(batch, -1), grid)

    def side(self, tokens: Tensor) -> int:
        """Positions on a side of a unit: of packed tokens (B, N, C).

        Raises:
            ValueError: there is no unit.
        """
        if not self.index.shape[1]:
            raise ValueError('no unit is left to compute: choose a mask ratio below 1')
        return isqrt(tokens.shape[1] // self.index.shape[1])

    def num_absent(self, tokens: Tensor) -> int:
        """Positions of an image's map that packed tokens (B, N, C) leave empty."""
        return self.grid[0] * self.grid[1] * self.side(tokens) ** 2 - tokens.shape[1]

    def gather(self, dense: Tensor) -> Tensor:
        """Packed tokens (B, U * side * side, C) of a dense map (B, C, h * side, w * side).

        Raises:
            ValueError: the grid does not cut the map into square units.
        """
        batch, channels, height, width = dense.shape
        side = height // self.grid[0]
        if (side * self.grid[0], side * self.grid[1]) != (height, width):
            raise ValueError(
                f'{height} x {width} positions cannot be cut into {self.grid[0]} x {self.grid[1]} '
                'square units; resize the images or change the mask'
            )
        lines = dense.permute(0, 2, 3, 1).reshape(-1, side * channels)
        return lines.index_select(0, self._lines(side)).view(batch, -1, channels)

    def cut(self, dense: Tensor) -> Tensor:
        """:meth:`gather` as one small map for each unit: (B * U, C, side, side)."""
        side = dense.shape[2] // self.grid[0]
        return self.gather(dense).view(-1, side, side, dense.shape[1]).permute(0, 3, 1, 2)

    def scatter(self, tokens: Tensor) -> Tensor:
        """Dense map (B, C, h * side, w * side), channels last in memory, zero between units."""
        side, channels = self.side(tokens), tokens.shape[-1]
        batch, rows = len(tokens), self.grid[0] * side
        dense = tokens.new_zeros(batch * rows * self.grid[1], side * channels)
        dense = dense.index_copy(0, self._lines(side), tokens.reshape(-1, side * channels))
        return dense.view(batch, rows, -1, channels).permute(0, 3, 1, 2)

    def find_lines(self, tokens: Tensor) -> None:
        """Compute now, and keep, what gathering and scattering tokens (B, N, C) needs."""
        self._lines(self.side(tokens))

    def _lines(self, side: int) -> Tensor:
        """(B * U * side,) int64: rows of units among all rows (B * h * side * w, side * C)."""
        if side not in self._rows:
            columns = self.grid[1]
            first = self.index + self.index // columns * (columns * (side - 1))
            image = torch.arange(len(self.index), device=self.index.device)
            first = first + image[:, None] * (self.grid[0] * side * columns)
            row = torch.arange(side, device=self.index.device) * columns
            self._rows[side] = (first[..., None] + row).flatten()
        return self._rows[side]

    def with_border(self, maps: Tensor) -> Tensor:
        """Maps of units with a border of one position from the units around, zero where absent.

        (B * U, C, side, side) -> (B * U, C, side + 2, side + 2).
        """
        side = maps.shape[-1]
        rows = F.pad(maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]), (0, 0, 1, 0))
        if side not in self._borders:
            self._borders[side] = self._border_rows(side)
        windows = rows.index_select(0, self._borders[side])
        return windows.view(-1, side + 2, side + 2, maps.shape[1]).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _border_rows(self, side: int) -> Tensor:
        """Row, from 1, of every position of the bordered maps; 0, a row of zeros, where absent."""
        count = self.index.numel() * side**2
        row = torch.arange(1, count + 1, device=self.index.device)
        dense = self.scatter(row.view(len(self.index), -1, 1))[:, 0]
        dense = F.pad(dense, (1, 1, 1, 1))
        windows = dense.unfold(1, side + 2, side).unfold(2, side + 2, side).flatten(1, 2)
        chosen = self.index[..., None, None].expand(-1, -1, side + 2, side + 2)
        return windows.gather(1, chosen).flatten()


def active_units(active: Tensor) -> Tensor:
    """Flat positions (B, U), ascending, of the active units of a bool mask (B, ...).

    Raises:
        ValueError: images of the batch differ in their number of active units.
    """
    flat = active.flatten(1)
    fewest, most = torch.stack(flat.sum(dim=1).aminmax()).tolist()  # one wait for the device
    if fewest != most:
        raise ValueError(
            f'packed execution needs equally many active units in every image, found {fewest} to '
            f'{most} of {flat.shape[1]}: mask as many in each, or compute densely where the encoder '
            "has the option, execution='dense'"
        )
    return flat.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :fewest]


def unit_mask(mask: Tensor, grid: Grid, check: bool = True) -> Tensor:
    """(B, L) bool, the mask of every token or unit of the grid.

    Args:
        mask: (B, h, w), 1 = masked, h and w multiples of the grid's height and width.
        grid: (H, W).
        check: look at the mask, which waits for the device; not needed a second time.

    Raises:
        ValueError: the mask changes inside a unit.
    """
    parts = Units.all(len(mask), grid, mask.device).cut(mask[:, None]).flatten(1)
    # a compiled or captured graph cannot raise; the eager batch before it has been looked at
    in_graph = torch.compiler.is_compiling() or is_capturing(mask)
    if check and not in_graph and (parts != parts[:, :1]).any():
        raise ValueError(
            f'the {mask.shape[1]}x{mask.shape[2]} mask is not constant inside the '
            f'{grid[0]}x{grid[1]} units that are thrown as a whole: set mask_patch_size of the '
            'mask generator to the side of a unit (32 pixels for Swin with four stages)'
        )
    return parts[:, 0].bool().view(len(mask), -1)
