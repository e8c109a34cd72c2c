# SPDX-License-Identifier: Apache-2.0
"""The Swin of the original SimMIM on present units only; see ``packed/swin.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...core.partition import Grid
from ...packed import swin as swin_units
from ...packed import windows
from ...packed.swin import QKVBias, Stage, SwinBlock, WindowAttention
from ...packed.windows import unit_mask
from ..dense import dense_features, feature_map, fixed_positions


def unit_grid(encoder: Any) -> Grid:
    """Units (height, width); raises ValueError if the image cannot be divided into units."""
    height, width = encoder.patches_resolution
    return windows.unit_grid(height, width, encoder.num_layers, encoder.patch_size, 'DATA.IMG_SIZE')


def encode_units(encoder: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Feature map (B, C, h, w) with thrown units reconstructed.

    Args:
        encoder: upstream's ``SwinTransformerForSimMIM`` with ``partial``.
        images: (B, 3, H, W).
        mask: (B, H / patch, W / patch), 1 = masked, constant inside every unit.
    """
    grid, token = encoder.partial.grid, encoder.mask_token
    partition = encoder.partial.split(unit_mask(mask, grid))
    x = swin_units.mask_tokens(encoder.patch_embed(images), mask, token)
    if encoder.ape:
        x = x + encoder.absolute_pos_embed
    x = swin_units.gather_units(encoder.pos_drop(x), partition.present, grid)
    x = swin_units.encode_units(x, _stages(encoder), partition.present, grid)
    queries = fixed_positions(grid, x.shape[-1], token.dtype, token.device)
    return feature_map(dense_features(encoder.partial, partition, encoder.norm(x), queries), grid)


def _stages(encoder: Any) -> Iterator[Stage]:
    for layer in encoder.layers:
        blocks = [_describe(block, layer.use_checkpoint) for block in layer.blocks]
        yield blocks, layer.downsample


def _describe(block: Any, recompute: bool) -> SwinBlock:
    attention = block.attn
    return SwinBlock(
        norm1=block.norm1,
        qkv=attention.qkv,
        attention=WindowAttention(
            num_heads=attention.num_heads,
            embed_dims=attention.dim,
            scale=attention.scale,
            relative_position_bias_table=attention.relative_position_bias_table,
            relative_position_index=attention.relative_position_index,
            attn_drop=attention.attn_drop,
            softmax=attention.softmax,
            qkv=QKVBias(attention.qkv.bias),
        ),
        random=attention.training and attention.attn_drop.p > 0,
        project=lambda x: attention.proj_drop(attention.proj(x)),
        drop_path=block.drop_path,
        norm2=block.norm2,
        mlp=block.mlp,
        window=block.window_size,
        shift=block.shift_size,
        recompute=recompute,
    )
