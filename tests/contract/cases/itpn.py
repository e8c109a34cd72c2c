# SPDX-License-Identifier: Apache-2.0
"""iTPN with pixels, and with the features of CLIP, which is a fixed random one."""

from functools import partial

import torch
from cases.beit import MASKED as BLOCKS_MASKED
from cases.beit import batch as two_views
from cases.mae import RandomFeatures, batch
from contract_case import Case
from mmpretrain.registry import MODELS

WIDTH, DEPTH, PYRAMID, DECODER_WIDTH, DECODER_DEPTH, TARGET = 32, 2, 16, 48, 2, 16
THROWN = 32  # of 8 x 8
CLIP_THROWN = 16


def backbone(kind, depth=DEPTH, **options):
    return dict(
        type='iTPNHiViT',
        arch=dict(embed_dims=WIDTH, depths=[1, 1, depth], num_heads=2),
        img_size=64,
        patch_size=8,
        reconstruction_type=kind,
        out_indices=[1],  # a fresh list each time: upstream writes into its default one
        **options,
    )


def neck(kind, width):
    return dict(
        type='iTPNPretrainDecoder',
        num_patches=64,
        patch_size=8,
        embed_dim=WIDTH,
        fpn_dim=PYRAMID,
        fpn_depth=1,
        decoder_embed_dim=width,
        decoder_depth=DECODER_DEPTH,
        decoder_num_heads=2,
        reconstruction_type=kind,
    )


def pixel_settings(**options):
    return dict(
        type='iTPN',
        backbone=backbone('pixel', **options),
        neck=neck('pixel', DECODER_WIDTH),
        head=dict(
            type='MAEPretrainHead',
            norm_pix=True,
            patch_size=8,
            loss=dict(type='PixelReconstructionLoss', criterion='L2'),
        ),
    )


def build_pixel(**options):
    model = MODELS.build(pixel_settings(**options))
    model.init_weights()
    return model


def build_clip(**options):
    options = {'rpe': True, 'layer_scale_init_value': 0.5, **options}
    model = MODELS.build(
        dict(
            type='iTPN',
            backbone=backbone('clip', **options),
            neck=neck('clip', WIDTH),
            head=dict(
                type='iTPNClipHead',
                embed_dims=WIDTH,
                num_embed=TARGET,
                loss=dict(type='CosineSimilarityLoss', shift_factor=1.0),
            ),
        )
    )
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'bias_table' in name:
            torch.nn.init.normal_(parameter)
    model.target_generator = RandomFeatures(patch_size=4, width=TARGET)  # of the second view
    return model


def run(blocks, model, tokens):
    """Tokens (L, C) through blocks whose attention is silent."""
    tokens = tokens[None]
    for block in blocks(model):
        tokens = block(tokens)
    return tokens[0]


def decoder_blocks(model):
    return model.neck.decoder_blocks.children()  # not by the list's iterator, which a pass follows


def main_blocks(model):
    return model.backbone.blocks[-DEPTH:]


def block_saving(width, depth, thrown):
    return depth * (thrown * 12 * width**2 + 2 * (64**2 - (64 - thrown) ** 2) * width)


def pyramid_macs() -> int:
    """One token through the pyramid: 1 position of the last level, 4 and 16 of the finer ones."""
    mlp, halves = 8 * PYRAMID**2, (1, 4, 16)
    align = WIDTH * PYRAMID + 4 * (WIDTH // 2) * PYRAMID + 16 * (WIDTH // 4) * PYRAMID
    split = WIDTH * 4 * PYRAMID + 4 * PYRAMID * 4 * PYRAMID
    merge = sum(PYRAMID * (WIDTH // n) * n for n in halves)
    return align + split + merge + mlp * (sum(halves) + sum(halves[1:]))


CASES = [
    Case(
        name='itpn-pixel',
        build=build_pixel,
        batch=partial(batch, 64),
        ratio=THROWN / 64,
        invalid_ratio=48 / 64,
        heavy=lambda model: model.neck.decoder_blocks[0],
        features=partial(run, decoder_blocks),
        saving=block_saving(DECODER_WIDTH, DECODER_DEPTH, THROWN),
    ),
    Case(
        name='itpn-clip',
        build=build_clip,
        batch=two_views,
        ratio=CLIP_THROWN / 64,
        invalid_ratio=BLOCKS_MASKED / 64,
        heavy=lambda model: main_blocks(model)[0],
        features=partial(run, main_blocks),
        saving=block_saving(WIDTH, DEPTH, CLIP_THROWN) + (64 - BLOCKS_MASKED) * pyramid_macs(),
    ),
]
