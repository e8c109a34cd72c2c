# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's MAE, EVA, MILAN and iTPN on images that are not square.

Their encoder and decoder take any patch grid, but the head cuts squares only, and the initial
positions are those of a square with as many patches: of 4 x 16 patches those of 8 x 8. HiViT takes
them for those of a square in every forward pass too. Training
without partial reconstruction gains rectangles too, so that it can be compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmpretrain.models import EVA, MAE, MILAN, HiViT, MAEPretrainHead, SparKPretrainHead, iTPN
from mmpretrain.models.necks import itpn_neck, mae_neck
from mmpretrain.models.selfsup import itpn, mae
from mmpretrain.models.utils import build_2d_sincos_position_embedding

_ASKING = (mae, mae_neck, itpn, itpn_neck)
"""Modules that make initial positions."""


def allow_rectangles() -> None:
    """Let mmpretrain's own classes take rectangles; calling it again changes nothing.

    A user's subclass with a ``patchify`` or an ``init_weights`` of its own keeps that.
    """
    if MAEPretrainHead.patchify is SparKPretrainHead.patchify:
        return
    MAEPretrainHead.patchify = SparKPretrainHead.patchify  # the same layout, of any shape
    HiViT.interpolate_pos_encoding = _kept_as_they_are(HiViT.interpolate_pos_encoding)
    for framework in (MAE, EVA, MILAN, iTPN):
        framework.init_weights = _with_positions_of_the_grid(framework.init_weights)


def _kept_as_they_are(interpolate: Callable[..., Any]) -> Callable[..., Any]:
    """Positions of images of the model's own size need no interpolation."""

    @functools.wraps(interpolate)
    def positions(self: Any, x: Any, h: int, w: int) -> Any:
        own = (h // self.patch_size, w // self.patch_size) == _grid(self)
        return self.pos_embed if own else interpolate(self, x, h, w)

    return positions


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

    for module in _ASKING:
        module.build_2d_sincos_position_embedding = positions
    try:
        yield
    finally:
        for module in _ASKING:
            module.build_2d_sincos_position_embedding = build_2d_sincos_position_embedding
