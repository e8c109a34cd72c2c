# SPDX-License-Identifier: Apache-2.0
"""Small models of three kinds whose features KNNHook takes."""

import small_models
import torch
from mmpretrain.registry import MODELS

import prmim_adapters.openmmlab  # noqa: F401, registers InMemoryImages
from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone

TINY = small_models.arch(32, 2)


def algorithm(name):
    if name == 'MAE':
        model = small_models.mae(width=32, depth=2, neck=dict(decoder_embed_dim=16))
    elif name == 'MaskFeat':
        model = dict(
            type='MaskFeat',
            backbone=dict(type='MaskFeatViT', arch=TINY, patch_size=8, img_size=32),
            neck=dict(type='LinearNeck', in_channels=32, out_channels=8, gap_dim=0),
            head=dict(type='MIMHead', loss=small_models.pixel_loss()),
            target_generator=dict(type='HOGGenerator'),
        )
    else:
        swin = dict(
            type='SimMIMSwinTransformer',
            img_size=32,
            stage_cfgs=dict(block_cfgs=dict(window_size=4)),
            arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2]),
            out_indices=(1,),
        )
        model = small_models.simmim(swin, 32, stride=8, cell=4)
    preprocessor = dict(
        type='SelfSupDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True
    )
    torch.manual_seed(0)
    return MODELS.build({**model, 'data_preprocessor': preprocessor})
