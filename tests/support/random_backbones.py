# SPDX-License-Identifier: Apache-2.0
"""Small encoders of every kind that is exported, with weights that show where each of them goes."""

from __future__ import annotations

from typing import Any

import small_models
import torch
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules

import prmim_adapters.openmmlab  # noqa: F401, registers

register_all_modules()

VIT_ARCH = small_models.arch(48, 2, 3)
VIT = dict(arch=VIT_ARCH, img_size=64, patch_size=16)
SWIN_ARCH = dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
BACKBONES: dict[str, dict[str, Any]] = {
    'mae': dict(type='MAEViT', **VIT),
    'mae, not square': dict(type='MAEViT', arch=VIT_ARCH, img_size=(32, 64), patch_size=16),
    'mff': dict(type='MFFViT', out_indices=[0, 1], **VIT),
    'maskfeat': dict(type='MaskFeatViT', **VIT),
    'beit': dict(type='BEiTPretrainViT', **VIT),
    'milan': dict(type='MILANViT', **VIT),
    'cae': dict(type='CAEPretrainViT', layer_scale_init_value=0.1, **VIT),
    'simmim vit': dict(type='SimMIMViT', **VIT),
    'ibot': dict(type='IBOTViT', layer_scale_init_value=0.1, **VIT),
    'simmim swin': dict(
        type='SimMIMSwinTransformer',
        arch=SWIN_ARCH,
        img_size=192,
        stage_cfgs=dict(block_cfgs=dict(window_size=6)),
    ),
    'fcmae': dict(
        type='FCMAEConvNeXt',
        img_size=64,
        arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64]),
    ),
}


def random_backbone(config: dict[str, Any]) -> torch.nn.Module:
    """Every weight at random: nothing is equal because it is still zero or one."""
    torch.manual_seed(0)
    backbone = MODELS.build(config)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone
