# SPDX-License-Identifier: Apache-2.0
"""BEiTv2; the VQ-KD tokenizer, whose weights cannot be fetched, is a fixed random one."""

import torch
from cases.beit import (
    DEPTH,
    HIDDEN,
    MASKED,
    VOCABULARY,
    WIDTH,
    RandomLogits,
    backbone,
    batch,
    encoder_saving,
    finish,
)
from contract_case import Case
from mmpretrain.registry import MODELS

NECK_DEPTH = 2


class RandomTokens(RandomLogits):
    """(B, L) classes from (B, V, h, w) logits, as VQ-KD gives them."""

    def forward(self, x):
        return super().forward(x).argmax(dim=1).flatten(1)


def build():
    model = MODELS.build(
        dict(
            type='BEiT',
            backbone=backbone(out_indices=[1, 2], final_norm=False),
            neck=dict(
                type='BEiTV2Neck',
                num_layers=NECK_DEPTH,
                early_layers=2,
                backbone_arch=dict(
                    embed_dims=WIDTH,
                    depth=DEPTH,
                    num_layers=DEPTH,
                    num_heads=2,
                    feedforward_channels=HIDDEN,
                ),
                layer_scale_init_value=0.5,
            ),
            head=dict(
                type='BEiTV2Head',
                embed_dims=WIDTH,
                num_embed=VOCABULARY,
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
    )
    return finish(model, RandomTokens())


def features(model, tokens):
    """The neck's two outputs: of all layers, and of early ones with its own aggregation."""
    states, tokens = [], tokens[None]
    for layer in model.backbone.layers:
        tokens = layer(tokens, rel_pos_bias=None)
        states.append(tokens)
    cls = torch.zeros_like(tokens[:, :1])
    outputs = model.neck([torch.cat((cls, states[i]), 1) for i in (1, 2)], rel_pos_bias=None)
    return tuple(output[0] for output in outputs)


CASES = [
    Case(
        name='beitv2',
        build=build,
        batch=batch,
        ratio=0.25,
        invalid_ratio=MASKED / 64,
        heavy=lambda model: model.neck.patch_aggregation[0],
        features=features,
        saving=encoder_saving(DEPTH + NECK_DEPTH),
    )
]
