# SPDX-License-Identifier: Apache-2.0
"""FCMAE's ConvNeXt V2 encoder to timm."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ..openmmlab.models import input_channels
from .converter import Converter

_RENAMES = (
    (r'^downsample_layers\.0\.', 'stem.'),
    (r'^downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
    (r'^stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'\.depthwise_conv\.', '.conv_dw.'),
    (r'\.pointwise_conv1\.', '.mlp.fc1.'),
    (r'\.pointwise_conv2\.', '.mlp.fc2.'),
    (r'\.grn\.gamma$', '.mlp.grn.weight'),
    (r'\.grn\.beta$', '.mlp.grn.bias'),
)


def convnext_keys(state_dict: dict[str, Tensor], backbone: Any) -> dict[str, Tensor]:
    """timm's names for mmpretrain's weights."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def build_convnext(backbone: Any) -> nn.Module:
    """timm's ConvNeXt of the same sizes, without a classifier."""
    from timm.models.convnext import ConvNeXt

    block = backbone.stages[0][0]
    return ConvNeXt(
        in_chans=input_channels(backbone),
        depths=tuple(backbone.depths),
        dims=tuple(backbone.channels),
        patch_size=backbone.downsample_layers[0][0].kernel_size[0],
        ls_init_value=None if block.gamma is None else 1.0,
        use_grn=block.grn is not None,
        num_classes=0,
    )


def unmasked_map(backbone: Any, images: Tensor) -> Tensor:
    """(B, C, H / 32, W / 32) features of whole images, before any final norm."""
    return backbone(images, mask=None)[-1]


#: Pre-training has no final norm; timm's stays at its initial value.
CONVNEXT = Converter(build_convnext, convnext_keys, unmasked_map, untrained=('head.norm.',))
