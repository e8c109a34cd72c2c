# SPDX-License-Identifier: Apache-2.0
"""The patch grid of the original repositories' models, which keep it in their patch embedding."""

from __future__ import annotations

from typing import Any

from ...core.partition import Grid
from ..seams import patch_grid


def embedded_grid(embed: Any, length: int, where: str) -> Grid:
    """(H, W) in tokens, as a patch embedding says it.

    Args:
        embed: has ``grid_size`` (timm), ``patch_hw`` (AudioMAE's), or ``img_size`` and
            ``patch_size``, each a number or (height, width).
        length: L, number of positions that the model has an embedding for.
        where: what that embedding is called.

    Raises:
        TypeError: the patch embedding does not say its grid.
        ValueError: it has another number of tokens than ``length``.
    """
    for name in ('grid_size', 'patch_hw'):
        if hasattr(embed, name):
            grid = _pair(getattr(embed, name))
            break
    else:
        if not (hasattr(embed, 'img_size') and hasattr(embed, 'patch_size')):
            raise TypeError(
                f'{type(embed).__name__} says no grid_size, nor img_size and patch_size: give the '
                'patch embedding grid_size=(rows, columns) in tokens'
            )
        grid = patch_grid(_pair(embed.img_size), _pair(embed.patch_size), 'img_size')
    if grid[0] * grid[1] != length:
        raise ValueError(
            f'the patch embedding makes {grid[0]}x{grid[1]} = {grid[0] * grid[1]} tokens, but '
            f'{where} has {length} positions: give both the same image and patch size'
        )
    return grid


def _pair(size: Any) -> Grid:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
