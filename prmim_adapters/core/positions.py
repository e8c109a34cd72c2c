# SPDX-License-Identifier: Apache-2.0
"""Positions of a grid as fixed embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from .partition import Grid


def sincos_positions(grid: Grid, width: int) -> Tensor:
    """(H * W, width) float32 fixed 2-D sine-cosine positions, half the channels per axis.

    For frameworks whose tokens carry no absolute position embedding.
    """
    quarter = -(-width // 4)
    omega = 10000.0 ** -(torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(float(grid[0])), torch.arange(float(grid[1])), indexing='ij'
    )
    phase = torch.stack((rows, columns), -1).reshape(-1, 2, 1) * omega
    return torch.cat((phase.sin(), phase.cos()), -1).flatten(1)[:, :width].contiguous()
