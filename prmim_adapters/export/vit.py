# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's VisionTransformer and BEiTViT, and the MIM backbones derived from them, to timm."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ..openmmlab.models import input_channels
from .converter import Converter

_RENAMES = (
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^layers\.(\d+)\.', r'blocks.\1.'),
    (r'^(blocks\.\d+)\.ln(\d)\.', r'\1.norm\2.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
    (r'\.attn\.gamma1\.weight$', '.ls1.gamma'),
    (r'\.ffn\.gamma2\.weight$', '.ls2.gamma'),
    (r'^ln1\.', 'norm.'),
)
#: Of pre-training only.
_DROPPED = ('mask_token', 'proj_layers.', 'proj_weights', 'relative_position_index')


def vit_keys(state_dict: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """timm's names for mmpretrain's weights; the mask token and what only training uses go."""
    renamed = {}
    for key, value in state_dict.items():
        if any(part in key for part in _DROPPED):
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def build_vit(backbone: Any) -> nn.Module:
    """timm's VisionTransformer of the same sizes, without a classifier."""
    from timm.models.vision_transformer import VisionTransformer

    scale = getattr(backbone.layers[0].attn.gamma1, 'weight', None)
    return VisionTransformer(
        init_values=None if scale is None else 1.0,
        qkv_bias=backbone.layers[0].attn.qkv.bias is not None,
        class_token=backbone.cls_token is not None,
        global_pool='token' if backbone.cls_token is not None else 'avg',
        fc_norm=False,
        **_sizes(backbone),
    )


def build_beit(backbone: Any) -> nn.Module:
    """timm's Beit of the same sizes, without a classifier."""
    from timm.models.beit import Beit

    layer = backbone.layers[0]
    return Beit(
        global_pool='token',
        init_values=None if layer.gamma_1 is None else 1.0,
        use_abs_pos_emb=backbone.pos_embed is not None,
        use_rel_pos_bias=backbone.use_rel_pos_bias,
        use_shared_rel_pos_bias=backbone.rel_pos_bias is not None,
        **_sizes(backbone),
    )


def _sizes(backbone: Any) -> dict[str, Any]:
    layer = backbone.layers[0]
    return dict(
        in_chans=input_channels(backbone),
        img_size=tuple(backbone.img_size),
        patch_size=tuple(backbone.patch_embed.projection.kernel_size),
        embed_dim=backbone.embed_dims,
        depth=backbone.num_layers,
        num_heads=layer.attn.num_heads,
        mlp_ratio=layer.ffn.feedforward_channels / backbone.embed_dims,
        num_classes=0,
    )


def all_tokens(backbone: Any, images: Tensor) -> Tensor:
    """(B, prefix + L, C) normalised output tokens of whole images."""
    from mmpretrain.models import BEiTViT, VisionTransformer

    out_type, backbone.out_type = backbone.out_type, 'raw'
    try:
        parent = BEiTViT if isinstance(backbone, BEiTViT) else VisionTransformer
        return parent.forward(backbone, images)[-1]
    finally:
        backbone.out_type = out_type


VIT = Converter(build_vit, vit_keys, all_tokens)
BEIT = Converter(build_beit, vit_keys, all_tokens)
