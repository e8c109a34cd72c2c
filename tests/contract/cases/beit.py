# SPDX-License-Identifier: Apache-2.0
"""BEiT; the DALL-E tokenizer, whose weights cannot be fetched, is a fixed random one."""

import torch
from contract_case import Case, images
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

WIDTH, DEPTH, HIDDEN, VOCABULARY = 24, 3, 48, 64
MASKED, THROWN = 26, 16  # of 8 x 8


class RandomLogits(BaseModule):
    """Stand-in for DALL-E: (B, 3, 32, 32) -> (B, vocabulary, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Conv2d(3, VOCABULARY, 4, 4)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x)


def backbone(**options):
    return dict(
        type='BEiTPretrainViT',
        arch=dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=2, feedforward_channels=HIDDEN),
        img_size=64,
        patch_size=8,
        layer_scale_init_value=0.5,
        **options,
    )


def finish(model, target_generator):
    model.init_weights()
    # The position bias starts at zero; a trained one shows whether the right rows are gathered.
    torch.nn.init.normal_(model.backbone.rel_pos_bias.relative_position_bias_table)
    model.target_generator = target_generator
    return model


def build():
    head = dict(
        type='BEiTV1Head',
        embed_dims=WIDTH,
        num_embed=VOCABULARY,
        loss=dict(type='CrossEntropyLoss'),
    )
    return finish(
        MODELS.build(dict(type='BEiT', backbone=backbone(out_indices=[-1]), neck=None, head=head)),
        RandomLogits(),
    )


def batch():
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(3, 64, generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :MASKED], 1).view(3, 8, 8)
    return dict(
        inputs=[images(size=64), images(size=32)],
        data_samples=[DataSample().set_mask(m) for m in mask],
    )


def encoder_saving(layers: int = DEPTH) -> float:
    """65 tokens before, 49 after."""
    linear = THROWN * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    attention = 2 * (65**2 - (65 - THROWN) ** 2) * WIDTH
    return layers * (linear + attention)


def features(model, tokens):
    """The encoder's layers and norm; attention, to which the relative bias belongs, is silent."""
    return model.backbone.norm1(through(model.backbone.layers, tokens))


def through(layers, tokens):
    """Tokens (L, C) that do not see each other, after these layers."""
    tokens = tokens[None]
    for layer in layers:
        tokens = layer(tokens, rel_pos_bias=None)
    return tokens[0]


CASES = [
    Case(
        name='beit',
        build=build,
        batch=batch,
        ratio=0.25,
        invalid_ratio=MASKED / 64,
        heavy=lambda model: model.backbone.layers[0],
        saving=encoder_saving(),
        features=features,
        entering_last=lambda model, tokens: through(model.backbone.layers[:-1], tokens),
    )
]
