# SPDX-License-Identifier: Apache-2.0
"""Samplers: which masked tokens the heavy network keeps.

A sampler is a function ``(mask, num_kept, grid, noise) -> kept``:

* mask: (B, L) bool, True = masked, L = H * W in row-major order;
* num_kept: tokens to keep per image, an int or a (B,) int64 tensor (ragged masks);
* grid: (H, W);
* noise: (B, L) int64, random integers from 0 to 2**20 - 1, drawn anew for every batch and all the
  randomness there is; None draws them from torch's global generator;
* kept: (B, L) bool, a subset of ``mask`` with exactly ``num_kept`` True per image.

Distances are squared Euclidean distances on the grid, so they are integers and every comparison
is exact on every device. Ties are broken by the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import check_choice
from .partition import Grid
from .randomness import BITS


@torch.no_grad()
def farthest(
    mask: Tensor,
    num_kept: int | Tensor,
    grid: Grid,
    noise: Tensor | None = None,
    seeds: str = 'visible',
) -> Tensor:
    """Farthest point sampling [0]: each next kept token is the farthest from all present ones.

    O(B * L * max(num_kept)) time, on a CPU a few times O(B * L); O(B * L * W) memory for the
    distances to start with.

    [0] Eldar et al., The Farthest Point Strategy for Progressive Image Sampling, 1997.

    Args:
        mask: as in the module docstring, as are the next three.
        num_kept: tokens to keep per image.
        grid: (H, W).
        noise: breaks ties.
        seeds: which tokens count as present from the start: 'visible', all visible ones; 'none',
            no token, and the first kept one is drawn at random.

    Raises:
        ValueError: ``seeds`` is neither 'visible' nor 'none'.
    """
    check_choice('seeds', seeds, ('visible', 'none'))
    count, steps = _counts(mask, num_kept)
    noise = _drawn(noise, mask)
    start = ~mask if seeds == 'visible' else torch.zeros_like(mask)
    return torch.ops.prmim_adapters.farthest(mask, start, count, noise, list(grid), steps)


@torch.no_grad()
def random(mask: Tensor, num_kept: int | Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
    """Uniformly random kept tokens, as in plain partial reconstruction."""
    return _lowest(_drawn(noise, mask), mask, num_kept)


@torch.no_grad()
def lattice(
    mask: Tensor, num_kept: int | Tensor, grid: Grid, noise: Tensor | None = None
) -> Tensor:
    """Kept tokens on an ordered-dither lattice, shifted at random per image.

    Positions are ranked by the Bayer matrix [0], whose every prefix is spread evenly over the
    grid; the masked ones of lowest rank are kept.

    [0] Bayer, An optimum method for two-level rendition of continuous-tone pictures, 1973.
    """
    height, width = grid
    bits = max(height - 1, width - 1, 1).bit_length()
    rank = _bayer(bits, mask.device)
    side = rank.shape[0]
    noise = _drawn(noise, mask).reshape(len(mask), -1)
    shift = torch.stack((noise[:, :1], noise[:, -1:])) % side
    rows = (torch.arange(height, device=mask.device) + shift[0]) % side
    columns = (torch.arange(width, device=mask.device) + shift[1]) % side
    return _lowest(rank[rows[:, :, None], columns[:, None, :]].flatten(1), mask, num_kept)


def squared_distance_to(points: Tensor, grid: Grid) -> Tensor:
    """Exact squared distance of every position to the nearest of ``points``.

    Separable: along columns, then along rows, O(B * L * W).

    Args:
        points: (B, L) bool.
        grid: (H, W).

    Returns:
        (B, L) int64; H * H + W * W, more than any distance, where an image has no point.
    """
    height, width = grid
    far = height * height + width * width
    occupied = points.reshape(-1, height, width)
    row = torch.arange(height, device=points.device, dtype=torch.int32)[:, None]
    above = torch.where(occupied, row, -far).cummax(dim=1).values
    below = torch.where(occupied, row, far).flip(1).cummin(dim=1).values.flip(1)
    column = torch.minimum(row - above, below - row).clamp_(max=height + width) ** 2
    along = _axis_distance(width, points.device).to(torch.int32)
    return (column[:, :, None, :] + along).amin(dim=3).clamp_(max=far).flatten(1).long()


@torch.library.custom_op('prmim_adapters::farthest', mutates_args=())
def _farthest(
    mask: Tensor, start: Tensor, count: Tensor, noise: Tensor, grid: list[int], steps: int
) -> Tensor:
    """One opaque operator, so that torch.compile does not unroll it; see :func:`_reference`."""
    return _reference(mask, start, count, noise, grid, steps)


@_farthest.register_kernel('cpu')
def _(
    mask: Tensor, start: Tensor, count: Tensor, noise: Tensor, grid: list[int], steps: int
) -> Tensor:
    """A few rounds for each distance in place of a step for every kept token; the same result."""
    try:
        from .farthest_numpy import farthest as by_distance
    except ModuleNotFoundError:  # torch alone does without numpy
        return _reference(mask, start, count, noise, grid, steps)
    nearest = squared_distance_to(start, (grid[0], grid[1]))
    return by_distance(mask, nearest, count, noise, (grid[0], grid[1]))


@_farthest.register_kernel('cuda')
def _(
    mask: Tensor, start: Tensor, count: Tensor, noise: Tensor, grid: list[int], steps: int
) -> Tensor:
    """One kernel in place of a few small ones for every kept token; the same result."""
    try:
        from .farthest_triton import farthest as fused
    except ImportError:
        return _reference(mask, start, count, noise, grid, steps)
    nearest = squared_distance_to(start, (grid[0], grid[1]))
    return fused(mask, nearest, count, noise, grid[1], BITS)


@_farthest.register_fake
def _(
    mask: Tensor, start: Tensor, count: Tensor, noise: Tensor, grid: list[int], steps: int
) -> Tensor:
    return mask.new_empty(mask.shape)  # contiguous, whatever the mask is


def _reference(
    mask: Tensor, start: Tensor, count: Tensor, noise: Tensor, grid: list[int], steps: int
) -> Tensor:
    """Farthest points, (B, L) bool; of equally far ones with equal noise, the first.

    Args:
        mask: (B, L) bool, candidates.
        start: (B, L) bool, points there are already.
        count: (B, 1) int64, points to choose; ``steps`` is the largest of them.
        noise: (B, L) int64, breaks ties; squared distances stand ``BITS`` above it.
        grid: [H, W].
        steps: as above.
    """
    height, width = grid
    down = _axis_distance(height, mask.device).repeat_interleave(width, 1) << BITS  # (H, L)
    right = _axis_distance(width, mask.device).repeat(1, height) << BITS  # (W, L)
    score = (squared_distance_to(start, (height, width)) << BITS) + noise
    score = torch.where(mask, score, -1)
    reach, sideways = torch.empty_like(score), torch.empty_like(score)
    chosen = torch.empty(mask.shape[0], steps, dtype=torch.int64, device=mask.device)
    for step in range(steps):
        place = score.argmax(dim=1)
        chosen[:, step] = place
        torch.index_select(down, 0, place // width, out=reach)
        torch.index_select(right, 0, place % width, out=sideways)
        torch.minimum(score, reach.add_(sideways).add_(noise), out=score)
        score.scatter_(1, place[:, None], -1)
    length = mask.shape[1]
    chosen = chosen.where(torch.arange(steps, device=mask.device) < count, length)  # a spare column
    kept = mask.new_zeros(mask.shape[0], length + 1).scatter_(1, chosen, True)
    return kept[:, :length].contiguous()


def _counts(mask: Tensor, num_kept: int | Tensor) -> tuple[Tensor, int]:
    """(B, 1) counts and the largest one as a Python int."""
    if isinstance(num_kept, int):
        return torch.full((mask.shape[0], 1), num_kept, device=mask.device), num_kept
    return num_kept.to(mask.device)[:, None], int(num_kept.max()) if len(num_kept) else 0


def _drawn(noise: Tensor | None, mask: Tensor) -> Tensor:
    if noise is None:
        return torch.randint(1 << BITS, mask.shape, device=mask.device)
    return noise


def _lowest(rank: Tensor, mask: Tensor, num_kept: int | Tensor) -> Tensor:
    """The ``num_kept`` masked positions of lowest rank (B, L) int64."""
    count, _ = _counts(mask, num_kept)
    order = torch.where(mask, rank, torch.iinfo(rank.dtype).max).argsort(dim=1, stable=True)
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(order)
    return (place < count).new_zeros(mask.shape).scatter(1, order, place < count)


def _axis_distance(size: int, device: torch.device) -> Tensor:
    """(size, size) int64 squared distances along one axis."""
    line = torch.arange(size, device=device)
    return (line[:, None] - line) ** 2


def _bayer(bits: int, device: torch.device) -> Tensor:
    """(2**bits, 2**bits) int64 Bayer ranks."""
    rank = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for _ in range(bits):
        rank = 4 * rank
        rank = torch.cat((torch.cat((rank, rank + 2), 1), torch.cat((rank + 3, rank + 1), 1)), 0)
    return rank
