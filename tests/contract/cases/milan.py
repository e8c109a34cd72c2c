# SPDX-License-Identifier: Apache-2.0
"""MILAN; CLIP, whose weights cannot be fetched, is a fixed random one."""

import torch
from cases.mae import ENCODER, RandomFeatures, batch
from contract_case import Case
from mmpretrain.registry import MODELS

WIDTH, DEPTH, OUT = 32, 2, 16
MASKED, THROWN = 48, 32  # of 8 x 8


class RandomAttention(RandomFeatures):
    """Features, and an attention that says how important each token is."""

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, _ = super().forward(x)
        return features, (features @ features.transpose(1, 2)).softmax(-1) + 0.01


def build(img_size=32, num_patches=64):
    model = MODELS.build(
        dict(
            type='MILAN',
            backbone={**ENCODER, 'type': 'MILANViT', 'img_size': img_size},
            neck=dict(
                type='MILANPretrainDecoder',
                num_patches=num_patches,
                patch_size=4,
                embed_dim=24,
                decoder_embed_dim=WIDTH,
                decoder_depth=DEPTH,
                decoder_num_heads=2,
                predict_feature_dim=OUT,
            ),
            head=dict(
                type='MIMHead',
                loss=dict(type='CosineSimilarityLoss', shift_factor=2.0, scale_factor=2.0),
            ),
        )
    )
    model.init_weights()
    model.target_generator = RandomAttention()
    return model


def features(model, tokens):
    """The decoder's blocks and norm; attention is silent, so that keys do not matter."""
    tokens = tokens[None]
    for block in model.neck.decoder_blocks:
        tokens = block(tokens, tokens[:, :1], torch.arange(tokens.shape[1])[None])
    return model.neck.decoder_norm(tokens)[0]


def saving() -> float:
    """16 instead of 48 queries, 33 instead of 65 keys."""
    linear = THROWN * 12 * WIDTH**2
    attention = 2 * (48 * 65 - 16 * 33) * WIDTH
    return DEPTH * (linear + attention)


CASES = [
    Case(
        name='milan',
        build=build,
        batch=batch,
        ratio=THROWN / 64,
        invalid_ratio=MASKED / 64,
        heavy=lambda model: model.neck.decoder_blocks[0],
        tokens_seen=lambda args: sum(tokens.shape[:-1].numel() for tokens in args[:2]),
        features=features,
        saving=saving(),
        visible_weight=17 / 16,  # of 16 visible tokens, and as much for cls
    )
]
