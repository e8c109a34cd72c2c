# SPDX-License-Identifier: Apache-2.0
"""What adapters share whose frameworks expect features at every grid position.

Torch only: the original repositories are used without mmpretrain.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import PartialReconstruction, TokenPartition, scatter_tokens, sincos_positions
from ..core.partition import Grid


def dense_features(
    partial: PartialReconstruction, partition: TokenPartition, features: Tensor, queries: Tensor
) -> Tensor:
    """Reconstruct the thrown features and put all of them in grid order.

    Args:
        partial: the shared part.
        partition: of the batch.
        features: (B, V + K, C) at ``partition.present``.
        queries: (L, C), mask token + position of every grid position.

    Returns:
        (B, L, C); zeros at thrown positions in plain partial reconstruction.
    """
    num_visible = partition.visible.shape[1]
    rows = partial.reconstruct(partition, features, queries)
    rows = torch.cat((features[:, :num_visible], rows), dim=1)
    index = torch.cat((partition.visible, partial.supervised(partition)), dim=1)
    return scatter_tokens(rows, index, partition.length)


def feature_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def weighted_l1(
    partial: PartialReconstruction,
    partition: TokenPartition,
    image: Tensor,
    reconstruction: Tensor,
    mask: Tensor,
) -> Tensor:
    """SimMIM's loss, mean absolute error over masked pixels, with the weights of thrown tokens.

    Args:
        partial: the shared part.
        partition: of the batch.
        image: (B, C, H, W), the target.
        reconstruction: of the same shape.
        mask: (B, h, w), 1 = masked, a multiple of the grid of tokens.
    """
    grid = partial.grid
    scale = mask.shape[1] // grid[0], mask.shape[2] // grid[1]
    tokens = mask[:, :: scale[0], :: scale[1]].flatten(1)
    weights = partial.loss_mask(tokens, partition).unflatten(1, grid)
    weights = F.interpolate(weights[:, None].to(image.dtype), size=image.shape[2:])
    error = (image - reconstruction).abs()
    return (error * weights).sum() / (weights.sum() + 1e-5) / image.shape[1]


@lru_cache(maxsize=16)
def fixed_positions(grid: Grid, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cached :func:`~prmim_adapters.core.sincos_positions`, (H * W, width)."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        return sincos_positions(grid, width).to(device, dtype)
