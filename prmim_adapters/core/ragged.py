# SPDX-License-Identifier: Apache-2.0
"""Partitions of images that differ in their number of masked tokens, as iBOT's do.

Sizes are known on the host, and indices of padded or packed tokens are made there: the device is
waited for once a batch, in :func:`partition_ragged`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .partition import Grid, Sampler, TokenPartition, by_part, check_mask


@dataclass(frozen=True)
class RaggedPartition:
    """Partitions of a batch whose images differ in their number of masked tokens.

    Attributes:
        images: (B,) int64, indices into the batch, those with equally many masked tokens together.
        positions: (B, L) int64, of each of these images its visible, kept and thrown positions.
        sizes: of each group, its number of images, V and K.
        grid: height and width in tokens, H * W = L.
    """

    images: Tensor
    positions: Tensor
    sizes: tuple[tuple[int, int, int], ...]
    grid: Grid

    @cached_property
    def groups(self) -> tuple[tuple[Tensor, TokenPartition], ...]:
        """Indices (n,) into the batch and the partition of those images, for each group."""
        counts = [count for count, _, _ in self.sizes]
        rows = zip(self.images.split(counts), self.positions.split(counts), strict=True)
        found = []
        for (index, positions), (_, visible, kept) in zip(rows, self.sizes, strict=True):
            parts = [visible, kept, positions.shape[1] - visible - kept]
            seen, keeping, thrown = positions.split(parts, dim=1)
            found.append((index, TokenPartition(seen, keeping, thrown, self.grid)))
        return tuple(found)

    def __iter__(self) -> Iterator[tuple[Tensor, TokenPartition]]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_thrown(self) -> int:
        """Thrown tokens of all images together."""
        length = self.grid[0] * self.grid[1]
        return sum(count * (length - visible - kept) for count, visible, kept in self.sizes)

    @property
    def order(self) -> Tensor:
        """(B,) int64: puts rows that stand group after group back into the batch's order."""
        return self.images.argsort()

    @property
    def num_visible(self) -> list[int]:
        """V of every image, group after group."""
        return [visible for count, visible, _ in self.sizes for _ in range(count)]

    @property
    def num_present(self) -> list[int]:
        """V + K of every image, group after group."""
        return [visible + kept for count, visible, kept in self.sizes for _ in range(count)]

    def rows(self, first: list[int] | int, last: list[int] | int) -> Tensor:
        """Rows, image * L + position, of every image's ``positions`` from ``first`` to ``last``.

        Args:
            first: of each image, or of all.
            last: likewise, itself not taken.

        Returns:
            (n,) int64, image after image, in the order of ``images``.
        """
        length = self.positions.shape[1]
        places = ragged_places(first, last, length, self.images.device)
        return (self.images[:, None] * length + self.positions).flatten().index_select(0, places)


@torch.no_grad()
def partition_ragged(
    mask: Tensor,
    num_kept: Tensor,
    grid: Grid,
    sampler: Sampler,
    noise: Tensor | None = None,
) -> RaggedPartition:
    """Partition a batch whose images differ in their number of masked tokens.

    Kept tokens are sampled once for the whole batch, and the images grouped afterwards.

    Args:
        mask: (B, L) bool, True = masked.
        num_kept: (B,) int64, masked tokens to keep per image, the same for equally many masked.
        grid: (H, W) in tokens.
        sampler: chooses the kept tokens of all images at once.
        noise: as in :func:`partition_tokens`.

    Returns:
        One partition for all images with equally many masked tokens, ascending in that number.
    """
    check_mask(mask, grid)
    kept = sampler(mask, num_kept, grid, noise)
    order = by_part(mask, kept)
    counts = torch.stack((mask.sum(dim=1), num_kept)).tolist()
    images: dict[tuple[int, int], list[int]] = {}
    for image, pair in enumerate(zip(*counts, strict=True)):
        images.setdefault(pair, []).append(image)
    groups = sorted(images.items())
    # One copy to the device for all groups: each would wait for it.
    index = torch.tensor([image for _, group in groups for image in group], device=mask.device)
    length = mask.shape[1]
    sizes = tuple((len(group), length - masked, keeping) for (masked, keeping), group in groups)
    return RaggedPartition(index, order[index], sizes, grid)


def ragged_places(
    first: Sequence[int] | int, last: Sequence[int] | int, width: int, device: torch.device
) -> Tensor:
    """Places row * width + column of a matrix, from column ``first`` of each row to ``last``.

    Found on the host, which knows the sizes: the device is not waited for.

    Args:
        first: of each row, or of all.
        last: likewise, itself not taken; one of the two says how many rows there are.
        width: of the matrix.
        device: of the result.

    Returns:
        (n,) int64, row after row.
    """
    start, stop = (torch.tensor(x).view(-1, 1) for x in (first, last))
    column = torch.arange(width)
    inside = (column >= start) & (column < stop)
    return inside.flatten().nonzero().flatten().to(device, non_blocking=True)


def padded_rows(lengths: Sequence[int], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of packed sequences that fill a matrix.

    Returns:
        (b, width) int64, the row of every place, 0 beyond a sequence; and (b, width) bool, whether a
        place is inside of it.
    """
    inside = torch.arange(width) < torch.tensor(lengths)[:, None]
    rows = (inside.flatten().cumsum(0) - 1).where(inside.flatten(), 0).view_as(inside)
    return rows.to(device, non_blocking=True), inside.to(device, non_blocking=True)
