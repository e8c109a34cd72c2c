# SPDX-License-Identifier: Apache-2.0
"""FCMAE, with a packed and with a dense encoder."""

from functools import partial

import torch
from contract_case import Case, images
from mmpretrain.registry import MODELS

from prmim_adapters.frameworks import fcmae  # noqa: F401, registers the framework

ENCODER, DECODER, UNIT = 32, 16, 32
LENGTH, MASKED, THROWN = 16, 10, 8  # of 4 x 4 units; 6 visible, 2 kept


def build(execution, scope):
    model = MODELS.build(
        dict(
            type='FCMAE',
            backbone=dict(
                type='FCMAEConvNeXt',
                arch=dict(depths=[1, 1, 2, 1], channels=[4, 8, 16, ENCODER]),
                img_size=128,
                execution=execution,
                grn_scope=scope,
            ),
            neck=dict(
                type='FCMAEPretrainDecoder',
                embed_dim=ENCODER,
                decoder_embed_dim=DECODER,
                decoder_depth=2,
            ),
            head=dict(
                type='MAEPretrainHead',
                norm_pix=True,
                patch_size=UNIT,
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
        )
    )
    model.init_weights()
    for module in model.modules():  # zero at the start; a trained GRN shows which units it sees
        if hasattr(module, 'beta'):
            torch.nn.init.normal_(module.gamma, std=0.5)
            torch.nn.init.normal_(module.beta, std=0.5)
    return model


def features(model, tokens):
    """The decoder's blocks on maps of one position."""
    return model.neck.decoder(tokens[..., None, None]).flatten(1)


def decoder_saving(depth: int = 2) -> float:
    """The projection skips masked units, the blocks thrown ones, the prediction visible ones."""
    projection = MASKED * ENCODER * DECODER
    block = THROWN * 2 * 4 * DECODER**2  # pointwise layers
    prediction = (LENGTH - MASKED) * DECODER * UNIT**2 * 3
    return projection + depth * block + prediction


CASES = [
    Case(
        name=name,
        build=partial(build, execution, scope),
        batch=lambda: dict(inputs=images(size=128), data_samples=None),
        ratio=THROWN / LENGTH,
        invalid_ratio=MASKED / LENGTH,
        heavy=lambda model: model.neck.decoder[0].pointwise_conv1,
        saving=decoder_saving(),
        features=features,
        checkpointing=(('backbone.stages.0.0.with_cp', True), ('neck.decoder.0.with_cp', True)),
    )
    for name, execution, scope in (
        ('fcmae', 'packed', 'batch'),
        ('fcmae-dense', 'dense', 'batch'),
        ('fcmae-image-grn', 'packed', 'image'),
    )
]
