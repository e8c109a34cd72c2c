# SPDX-License-Identifier: Apache-2.0
"""CAE; the DALL-E tokenizer, whose weights cannot be fetched, is a fixed random one."""

from cases.beit import HIDDEN, MASKED, THROWN, VOCABULARY, WIDTH, RandomLogits, batch
from contract_case import Case
from mmpretrain.registry import MODELS

REGRESSORS, DECODERS = 2, 1


def build(momentum=0.0):
    model = MODELS.build(
        dict(
            type='CAE',
            backbone=dict(
                type='CAEPretrainViT',
                arch=dict(embed_dims=WIDTH, num_layers=2, num_heads=2, feedforward_channels=HIDDEN),
                img_size=64,
                patch_size=8,
                layer_scale_init_value=0.5,
            ),
            neck=dict(
                type='CAENeck',
                num_classes=VOCABULARY,
                embed_dims=WIDTH,
                regressor_depth=REGRESSORS,
                decoder_depth=DECODERS,
                num_heads=2,
                mlp_ratio=2,
                layer_scale_init_value=0.5,
                mask_tokens_num=MASKED,
            ),
            head=dict(type='CAEHead', loss=dict(type='CAELoss', lambd=2)),
            base_momentum=momentum,
        )
    )
    model.init_weights()
    model.target_generator = RandomLogits()
    return model


def features(model, tokens):
    """Of mask token + position, what enters the decoder; of what enters it, what it makes of it."""
    neck, positions = model.neck, tokens - model.neck.mask_token[0]
    distance = (positions[:, None] - model.backbone.pos_embed[0, 1:]).abs().amax(dim=2)
    if distance.amin(dim=1).max() < 1e-4:
        x = neck.mask_token.expand(1, len(tokens), -1)
        for regressor in neck.regressors:  # attention is silent
            x = regressor(x, x, positions[None], positions[None])
        return neck.norm_regressor(x)[0] + positions
    x = tokens[None]
    for decoder in neck.decoders:
        x = decoder(x, rel_pos_bias=None)
    return neck.norm_decoder(x)[0]


def saving() -> float:
    """26 masked of 64: 10 instead of 26 queries, 48 instead of 64 keys; then 10 instead of 26."""
    kept, layer = MASKED - THROWN, 4 * WIDTH**2 + 2 * WIDTH * HIDDEN
    regressor = THROWN * layer + 2 * (MASKED * 64 - kept * (64 - THROWN)) * WIDTH
    decoder = THROWN * layer + 2 * (MASKED**2 - kept**2) * WIDTH
    return REGRESSORS * regressor + DECODERS * decoder


CASES = [
    Case(
        name='cae',
        build=build,
        batch=batch,
        losses=lambda model, batch: model.loss(**batch)['loss'],
        ratio=THROWN / 64,
        invalid_ratio=MASKED / 64,
        heavy=lambda model: model.neck.regressors[0],
        tokens_seen=lambda args: args[1].shape[:-1].numel(),
        features=features,
        saving=saving(),
        compiles_whole=False,  # upstream indexes by its mask
    )
]
