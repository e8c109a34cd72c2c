# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's MAE, EVA and MILAN on images that are not square.

Their encoder and decoder take any patch grid, but the head cuts squares only, and the initial
positions are those of a square with as many patches: of 4 x 16 patches those of 8 x 8. Training
without partial reconstruction gains rectangles too, so that it can be compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmpretrain.models import EVA, MAE, MILAN, MAEPretrainHead, SparKPretrainHead
from mmpretrain.models.necks import mae_neck
from mmpretrain.models.selfsup import mae
from mmpretrain.models.utils import build_2d_sincos_position_embedding


def allow_rectangles() -> None:
    """Let mmpretrain's own classes take rectangles; calling it again changes nothing.

    A user's subclass with a ``patchify`` or an ``init_weights`` of its own keeps that.
    """
    if MAEPretrainHead.patchify is SparKPretrainHead.patchify:
        return
    MAEPretrainHead.patchify = SparKPretrainHead.patchify  # the same layout, of any shape
    for framework in (MAE, EVA, MILAN):
        framework.init_weights = _with_positions_of_the_grid(framework.init_weights)


def _with_positions_of_the_grid(init_weights: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(init_weights)
    def initialize(self: Any) -> None:
        with _positions_of(_grid(self.backbone)):
            init_weights(self)

    return initialize


def _grid(backbone: Any) -> tuple[int, int]:
    """(H, W) in patches; HiViT keeps it in its patch embedding."""
    if hasattr(backbone, 'patch_resolution'):
        return tuple(backbone.patch_resolution)
    return tuple(backbone.patch_embed.patches_resolution)


@contextmanager
def _positions_of(grid: tuple[int, int]) -> Iterator[None]:
    """Encoder and decoder, which ask for the positions of a square, get those of the grid."""
    height, width = grid
    if height == width:
        yield
        return

    def positions(side: int, *args: Any, **kwargs: Any) -> Any:
        # Upstream lays them out column by column, which shows where height and width differ.
        return build_2d_sincos_position_embedding((width, height), *args, **kwargs)

    for module in (mae, mae_neck):
        module.build_2d_sincos_position_embedding = positions
    try:
        yield
    finally:
        for module in (mae, mae_neck):
            module.build_2d_sincos_position_embedding = build_2d_sincos_position_embedding
