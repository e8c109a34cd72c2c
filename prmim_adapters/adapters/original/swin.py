# SPDX-License-Identifier: Apache-2.0
"""The Swin of the original SimMIM on present units only; see ``packed/swin.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...core.partition import Grid
from ...packed import swin as swin_units
from ...packed.swin import Stage, SwinBlock, microsoft_merging
from ...packed.units import Units, unit_mask
from ...packed.window_attention import WindowAttention
from ..dense import dense_features, feature_map, fixed_positions


def unit_grid(encoder: Any) -> Grid:
    """Units (height, width); raises ValueError if the image cannot be divided into units."""
    height, width = encoder.patches_resolution
    return swin_units.unit_grid(
        height, width, encoder.num_layers, encoder.patch_size, 'DATA.IMG_SIZE'
    )


def encode_units(encoder: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Feature map (B, C, h, w) with thrown units reconstructed.

    Args:
        encoder: upstream's ``SwinTransformerForSimMIM`` with ``partial``.
        images: (B, 3, H, W).
        mask: (B, H / patch, W / patch), 1 = masked, constant inside every unit.
    """
    grid, token = encoder.partial.grid, encoder.mask_token
    reads = encoder.partial.changes_loss
    partition = encoder.partial(unit_mask(mask, grid), loss_reads=reads)
    x = _mask_tokens(encoder.patch_embed(images), mask, token)
    if encoder.ape:
        x = x + encoder.absolute_pos_embed
    units = Units(partition.present, grid)
    x = units.gather(feature_map(encoder.pos_drop(x), encoder.patches_resolution))
    x = swin_units.encode_units(x, _stages(encoder), units)
    queries = fixed_positions(grid, x.shape[-1], token.dtype, token.device)
    return feature_map(dense_features(encoder.partial, partition, encoder.norm(x), queries), grid)


def _stages(encoder: Any) -> Iterator[Stage]:
    for layer in encoder.layers:
        blocks = [_describe(block, layer.use_checkpoint) for block in layer.blocks]
        yield blocks, microsoft_merging(layer.downsample)


def _describe(block: Any, recompute: bool) -> SwinBlock:
    attention = block.attn

    def update(x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.drop_path(attention.proj_drop(attention.proj(attended)))
        return x + block.drop_path(block.mlp(block.norm2(x)))

    return SwinBlock(
        qkv=lambda x: attention.qkv(block.norm1(x)),
        attention=WindowAttention.of(attention),
        update=update,
        window=block.window_size,
        shift=block.shift_size,
        recompute=recompute,
    )


def _mask_tokens(x: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """x (B, h * w, C) with ``token`` (1, 1, C) where mask (B, h, w) is 1."""
    return torch.where(mask.flatten(1)[..., None].bool(), token.to(x.dtype), x)
