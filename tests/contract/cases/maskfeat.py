# SPDX-License-Identifier: Apache-2.0
"""MaskFeat with its parameter-free HOG target."""

import random

import numpy as np
import torch
from contract_case import Case, images
from mmpretrain.datasets.transforms import BEiTMaskGenerator
from mmpretrain.models.selfsup.maskfeat import HOGGenerator
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

WIDTH, DEPTH = 16, 2
MASKED, THROWN = 78, 49  # of 14 x 14, which the HOG target fixes


class FullPrecisionHOG(HOGGenerator):
    """Upstream's HOG fails under autocast on a CPU (not on CUDA): a scatter of mixed types."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast('cpu', enabled=False):
            return super().forward(x)


def build():
    model = MODELS.build(
        dict(
            type='MaskFeat',
            backbone=dict(
                type='MaskFeatViT',
                arch=dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=2, feedforward_channels=32),
                img_size=112,
                patch_size=8,
            ),
            neck=dict(type='LinearNeck', in_channels=WIDTH, out_channels=27, norm_cfg=None),
            head=dict(type='MIMHead', loss=dict(type='PixelReconstructionLoss', criterion='L2')),
            target_generator=dict(type='HOGGenerator', nbins=9, pool=8, gaussian_window=16),
        )
    )
    model.init_weights()
    model.target_generator.__class__ = FullPrecisionHOG
    return model


def batch():
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    generate = BEiTMaskGenerator(14, MASKED, min_num_patches=15)
    masks = [generate.transform({})['mask'] for _ in range(3)]
    random.setstate(states[0])
    np.random.set_state(states[1])
    return dict(
        inputs=images(size=112), data_samples=[DataSample().set_mask(mask) for mask in masks]
    )


def saving() -> float:
    """196 tokens, 78 masked, 49 thrown: the blocks see 148 of 197 tokens, the neck 79."""
    before, after = 197, 197 - THROWN
    linear = THROWN * (4 * WIDTH**2 + 2 * WIDTH * 32)
    attention = 2 * (before**2 - after**2) * WIDTH
    return DEPTH * (linear + attention) + (196 - MASKED) * WIDTH * 27


def features(model, tokens):
    """The encoder's layers and norm."""
    return model.backbone.norm1(through(model.backbone.layers, tokens))


def through(layers, tokens):
    """Tokens (L, C) that do not see each other, after these layers."""
    tokens = tokens[None]
    for layer in layers:
        tokens = layer(tokens)
    return tokens[0]


CASES = [
    Case(
        name='maskfeat',
        build=build,
        batch=batch,
        ratio=0.25,
        invalid_ratio=MASKED / 196,
        heavy=lambda model: model.backbone.layers[0],
        saving=saving(),
        features=features,
        entering_last=lambda model, tokens: through(model.backbone.layers[:-1], tokens),
    )
]
