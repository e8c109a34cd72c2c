# SPDX-License-Identifier: Apache-2.0
"""SparK of mmpretrain, with its own sparse ConvNeXt V2 and with the packed one."""

from functools import partial

from contract_case import Case, images
from mmpretrain.models import SparKLightDecoder
from mmpretrain.registry import MODELS

from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone

ENCODER, DECODER, UNIT = 32, 32, 32
LENGTH, MASKED, THROWN = 16, 10, 8  # of 4 x 4 units; 6 visible, 2 kept


def build(backbone, encoder=ENCODER, **neck):
    model = MODELS.build(
        dict(
            type='SparK',
            input_size=128,
            enc_dec_norm_cfg=dict(type='SparseLN2d', eps=1e-6),
            enc_dec_norm_dim=encoder,
            backbone=dict(
                type=backbone,
                arch=dict(depths=[1, 1, 2, 1], channels=[encoder // 2**i for i in (3, 2, 1, 0)]),
                out_indices=[0, 1, 2, 3],
                gap_before_output=False,
                layer_scale_init_value=0.0,
                use_grn=True,
            ),
            neck=dict(
                type='SparKLightDecoder',
                feature_dim=DECODER,
                upsample_ratio=UNIT,
                norm_cfg=dict(type='BN'),
                **neck,
            ),
            head=dict(
                type='SparKPretrainHead',
                loss=dict(type='PixelReconstructionLoss', criterion='L2'),
            ),
        )
    )
    model.init_weights()
    return model


def saving(encoder=ENCODER) -> float:
    """Projections and decoder are convolutions: a thrown unit saves its share."""
    per_unit = 1 * encoder * DECODER if encoder != DECODER else 0
    per_unit += sum(2 ** (2 * i) * 9 * (encoder >> i) * (DECODER >> i) for i in (1, 2, 3))
    for i in range(5):
        before, after, positions = DECODER >> i, DECODER >> (i + 1), 2 ** (2 * i + 2)
        per_unit += positions * (4 * before**2 + 9 * before**2 + 9 * before * after)
    return THROWN * (per_unit + UNIT**2 * (DECODER >> 5) * 3)


def features(model, tokens):
    """The pixels of a unit of mask tokens; ``tokens``, queries without their positions, are zeros."""
    maps = []
    for i, (project, token) in enumerate(
        zip(model.enc_dec_projectors, model.mask_tokens, strict=True)
    ):
        upstream = type(project).__bases__[-1]
        maps.append(upstream.forward(project, token.expand(1, -1, 2**i, 2**i)))
    pixels = SparKLightDecoder.forward(model.neck, maps)
    return pixels.permute(0, 2, 3, 1).flatten(1) + tokens


CASES = [
    Case(
        name=name,
        build=partial(build, backbone, encoder, **neck),
        batch=lambda: dict(inputs=images(size=128), data_samples=None),
        ratio=THROWN / LENGTH,
        invalid_ratio=MASKED / LENGTH,
        heavy=lambda model: model.neck.decoder[0].conv_blocks[0].norm1,
        tokens_seen=lambda args: len(args[0]),
        saving=saving(encoder),
        features=features,
        compiles_whole=False,  # mmpretrain's SparseLN2d looks up active positions by value
        checkpointing=(('backbone.stages.0.0.with_cp', True),),
    )
    for name, backbone, encoder, neck in (
        ('spark', 'SparseConvNeXt', 64, {}),
        # the first projection is an identity; a unit of one channel would be dead with ReLU6
        ('spark-packed-encoder', 'PackedSparseConvNeXt', ENCODER, dict(act_cfg=dict(type='GELU'))),
    )
]
