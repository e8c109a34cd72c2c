# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's SwinTransformer, and SimMIM's Swin derived from it, to timm."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ..openmmlab.models import input_channels
from .converter import Converter

_RENAMES = (
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^stages\.', 'layers.'),
    (r'\.attn\.w_msa\.', '.attn.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
)
_DROPPED = ('mask_token', 'relative_position_index', 'attn_mask')


def swin_keys(state_dict: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """timm's names, its place for patch merging (next stage) and order of merged channels."""
    final_norm = f'norm{backbone.num_layers - 1}.'
    renamed = {}
    for key, value in state_dict.items():
        if any(part in key for part in _DROPPED):
            continue
        if re.match(r'norm\d+\.', key):
            if key.startswith(final_norm):
                renamed[key.replace(final_norm, 'norm.')] = value
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        if '.downsample.' in key:
            stage, rest = re.fullmatch(r'layers\.(\d+)\.(.*)', key).groups()  # type: ignore[union-attr]
            key, value = f'layers.{int(stage) + 1}.{rest}', _merged_order(value)
        renamed[key] = value
    return renamed


def _merged_order(value: Tensor) -> Tensor:
    """Last axis: (channel, row, column) of the 2 x 2 patches, as nn.Unfold, to timm's reverse."""
    channels = value.shape[-1] // 4
    split = value.unflatten(-1, (channels, 2, 2))
    return split.transpose(-1, -3).flatten(-3)


def build_swin(backbone: Any) -> nn.Module:
    """timm's SwinTransformer of the same sizes, without a classifier.

    Raises:
        ValueError: absolute positions, or small maps padded to a window; timm has neither.
    """
    from timm.models.swin_transformer import SwinTransformer

    block = backbone.stages[0].blocks[0]
    if backbone.use_abs_pos_embed or block.attn.pad_small_map:
        raise ValueError("timm's Swin has no use_abs_pos_embed and no pad_small_map")
    patch = backbone.patch_embed.projection.kernel_size
    return SwinTransformer(
        in_chans=input_channels(backbone),
        img_size=tuple(n * p for n, p in zip(backbone.patch_resolution, patch, strict=True)),
        patch_size=patch[0],
        embed_dim=backbone.embed_dims,
        depths=tuple(backbone.depths),
        num_heads=tuple(backbone.num_heads),
        window_size=block.attn.window_size,
        mlp_ratio=block.ffn.feedforward_channels / backbone.embed_dims,
        num_classes=0,
    )


def last_map(backbone: Any, images: Tensor) -> Tensor:
    """(B, H / 32, W / 32, C) normalised features of whole images."""
    from mmpretrain.models import SwinTransformer

    return SwinTransformer.forward(backbone, images)[-1].permute(0, 2, 3, 1)


SWIN = Converter(build_swin, swin_keys, last_map)
