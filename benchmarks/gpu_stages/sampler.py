# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of farthest point sampling against the reference, bit for bit."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from prmim_adapters.core import sampling
from prmim_adapters.core.randomness import BITS
from prmim_adapters.core.sampling import squared_distance_to

from .context import Context

GRIDS = ((14, 14), (8, 8), (7, 9), (1, 17), (24, 24), (32, 32), (112, 14), (64, 64))
IMAGES = (1, 3, 64, 512)
NOISE_LEVELS = (1, 3, 1 << BITS)
"""With one level of noise every choice among equally far tokens is a tie."""


def compare(context: Context) -> dict[str, Any]:
    """Equal choices on grids, batches, ragged masks and ties.

    A dry run has no device that compiles the kernel, so small cases run in Triton's interpreter.

    Raises:
        AssertionError: a choice differs; the message names the first case.
    """
    try:
        from prmim_adapters.core.farthest_triton import farthest
    except ImportError as error:
        return {'cases': 0, 'note': f'no kernel to compare: {error}'}
    grids, images = (GRIDS[2:4], IMAGES[:2]) if context.dry else (GRIDS, IMAGES)
    found: dict[str, Any] = {'cases': 0, 'differing': []}
    for grid, batch, levels, seeded in product(grids, images, NOISE_LEVELS, (True, False)):
        case = _case(grid, batch, levels, seeded, torch.device(context.device))
        mask, start, count, noise = case
        expected = sampling._reference(*case, list(grid), int(count.max()))
        nearest = squared_distance_to(start, grid)
        try:
            actual = farthest(mask, nearest, count, noise, grid[1], BITS)
        except Exception as error:
            if context.dry and type(error).__name__ == 'InterpreterError':
                return {'cases': 0, 'note': f"no kernel to compare: Triton's interpreter: {error}"}
            raise
        found['cases'] += 1
        if not torch.equal(actual, expected) or not torch.equal(actual.sum(1), count[:, 0]):
            found['differing'].append(
                {'grid': grid, 'images': batch, 'noise_levels': levels, 'visible_seeds': seeded}
            )
        context.keep(found)
    assert not found['differing'], f'the kernel chooses other tokens: {found["differing"][0]}'
    return found


def _case(
    grid: tuple[int, int], images: int, levels: int, seeded: bool, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Ragged masks, one image wholly masked where there are three; how many tokens to keep."""
    generator = torch.Generator().manual_seed(hash((grid, images, levels, seeded)) % 2**31)
    shares = torch.rand(images, 1, generator=generator)
    shares[1:2] = 1.0
    mask = torch.rand(images, grid[0] * grid[1], generator=generator) < shares
    room = mask.sum(1, keepdim=True)
    count = (room * torch.rand(images, 1, generator=generator)).long()
    noise = torch.randint(levels, mask.shape, generator=generator)
    start = ~mask if seeded else torch.zeros_like(mask)
    return tuple(tensor.to(device) for tensor in (mask, start, count, noise))
