# SPDX-License-Identifier: Apache-2.0
"""Split of the patch grid into visible, kept and thrown tokens, and moves between the parts.

All index work is integer work outside autograd; features are only gathered and scattered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]
Sampler = Callable[..., Tensor]


@dataclass(frozen=True)
class TokenPartition:
    """Disjoint index sets that cover the patch grid of every image of a batch.

    Attributes:
        visible: (B, V) int64, positions in row-major order of the grid, not masked.
        kept: (B, K) int64, masked positions that the heavy network processes.
        thrown: (B, T) int64, masked positions that it does not process.
        grid: height and width in tokens; V + K + T = height * width.
        filled: (B, V + K) bool, False at present positions that only fill up their row, which an
            aggregator with ``takes_padding`` leaves out; None where none does.
    """

    visible: Tensor
    kept: Tensor
    thrown: Tensor
    grid: Grid
    filled: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """(B, V + K) int64: all positions that the heavy network sees, visible ones first."""
        return torch.cat((self.visible, self.kept), dim=1)

    @property
    def masked(self) -> Tensor:
        """(B, K + T) int64: all positions that the loss covers, kept ones first."""
        return torch.cat((self.kept, self.thrown), dim=1)

    @property
    def length(self) -> int:
        """Number of grid positions L."""
        return self.grid[0] * self.grid[1]


@torch.no_grad()
def partition_tokens(
    mask: Tensor,
    num_thrown: int,
    grid: Grid,
    sampler: Sampler,
    num_masked: int | None = None,
    noise: Tensor | None = None,
) -> TokenPartition:
    """Partition a batch whose images all have the same number of masked tokens.

    Args:
        mask: (B, L) bool, True = masked.
        num_thrown: masked tokens to throw per image, T.
        grid: height and width in tokens, H * W = L.
        sampler: chooses the kept tokens, see :mod:`prmim_adapters.core.sampling`.
        num_masked: M, masked tokens per image. ``None`` reads it from the mask, which waits
            for the device.
        noise: (B, L) int64, the sampler's randomness; None draws it from torch's global generator.

    Returns:
        The partition; each part ascending, with V = L - M, K = M - T.

    Raises:
        ValueError: grid and mask disagree, images have different numbers of masked tokens
            (only looked at when ``num_masked`` is None), or an image has too few of them.
    """
    check_mask(mask, grid)
    if num_masked is None:
        num_masked = count_masked(mask)
    if not 0 <= num_thrown < max(num_masked, 1):
        raise ValueError(
            f'cannot throw {num_thrown} tokens per image: the mask has {num_masked} masked tokens '
            f'of {mask.shape[1]}, so 0 to {max(num_masked - 1, 0)} can be thrown; lower '
            'throw_ratio or raise the mask ratio'
        )
    num_kept = num_masked - num_thrown
    kept = mask if num_thrown == 0 else sampler(mask, num_kept, grid, noise)
    sizes = [mask.shape[1] - num_masked, num_kept, num_thrown]
    visible, kept_index, thrown = by_part(mask, kept).split(sizes, dim=1)
    return TokenPartition(visible, kept_index, thrown, grid)


def check_mask(mask: Tensor, grid: Grid) -> None:
    """Refuse a mask that is not on the grid.

    Raises:
        TypeError: it is not of bool.
        ValueError: it is not (B, H * W).
    """
    if mask.dtype != torch.bool:
        raise TypeError(f'mask of {mask.dtype}: expected torch.bool, where True is masked')
    if mask.dim() != 2 or mask.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f'mask of shape {tuple(mask.shape)} does not fit the {grid[0]}x{grid[1]} patch grid: '
            f'expected (B, {grid[0] * grid[1]}). Images of another size than that of the model '
            '(interpolate_pos_encoding=True in transformers) cannot be thrown from: build it with '
            'theirs'
        )


def by_part(mask: Tensor, kept: Tensor) -> Tensor:
    """(B, L) int64 positions: visible, kept, thrown, every part in ascending order."""
    label = mask.to(torch.uint8) + (mask & ~kept).to(torch.uint8)
    return torch.argsort(label, dim=1, stable=True)


def count_masked(mask: Tensor) -> int:
    """The number of masked tokens that all images of ``mask`` (B, L) bool share.

    Raises:
        ValueError: the images differ in it.
    """
    low, high = torch.stack(mask.sum(dim=1).aminmax()).tolist()  # one wait for the device
    if low != high:
        raise ValueError(
            f'images of one batch have between {low} and {high} masked tokens: this framework '
            'needs masks of one size; use a mask generator with a fixed count'
        )
    return low


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: x (B, L, C), index (B, n) int64 -> (B, n, C)."""
    # One index a row: on a CPU faster than one for each element.
    first = torch.arange(len(x), device=x.device) * x.shape[1]
    rows = x.flatten(0, 1).index_select(0, (index + first[:, None]).flatten())
    return rows.unflatten(0, index.shape)


def table_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table that all images share: table (L, C), index (B, n) int64 -> (B, n, C)."""
    return torch.nn.functional.embedding(index, table)


def scatter_tokens(values: Tensor, index: Tensor, length: int) -> Tensor:
    """Put values (B, n, C) at positions index (B, n) of (B, length, C), zeros elsewhere."""
    out = values.new_zeros(values.shape[0], length, values.shape[-1])
    return out.scatter(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]), values)
