# SPDX-License-Identifier: Apache-2.0
"""SimMIM with mmpretrain's Swin backbone: tokens are 32-px units."""

import small_models
import torch
from cases.simmim_vit import masks, samples
from contract_case import Case, images
from mmpretrain.models.selfsup.simmim import SimMIMSwinTransformer
from mmpretrain.registry import MODELS

WIDTHS, DEPTHS, UNITS = (8, 16, 32, 64), (2, 1, 1, 1), 4


def build(**options):
    backbone = dict(
        type='SimMIMSwinTransformer',
        arch=dict(embed_dims=8, depths=list(DEPTHS), num_heads=[1, 2, 2, 4]),
        img_size=32 * UNITS,
        drop_path_rate=0.0,
        **options,
    )
    model = MODELS.build(small_models.simmim(backbone, WIDTHS[-1], stride=32, cell=4))
    model.init_weights()
    # An untrained Swin is nearly linear: wider weights make every path count.
    for parameter in model.backbone.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def build_window4():
    return build(stage_cfgs=dict(block_cfgs=dict(window_size=4)))


def build_padded():
    """As SimMIM Swin-L: the window is larger than the last map, which is padded."""
    return build(stage_cfgs=dict(block_cfgs=dict(window_size=8)), pad_small_map=True)


def batch():
    return dict(
        inputs=images(size=32 * UNITS), data_samples=samples(masks((UNITS, UNITS), 10, scale=8))
    )


def features(model, tokens):
    """The backbone's own features of images that are masked everywhere.

    Queries of units are positions alone, which the backbone's tokens do not have: ``tokens`` are
    zeros.
    """
    backbone = model.backbone
    side = 32 * UNITS
    everywhere = torch.ones(1, 8 * UNITS, 8 * UNITS)
    (features,) = SimMIMSwinTransformer.forward(backbone, torch.zeros(1, 3, side, side), everywhere)
    return features[0].flatten(1).T + tokens


def saving() -> float:
    """16 units, 10 masked, 8 thrown. Embedding sees 6 units, the stages 8, the neck 10."""
    area, thrown = 64, 8
    total = (16 - 6) * area * WIDTHS[0] * 3 * 4 * 4
    for width, depth in zip(WIDTHS, DEPTHS, strict=True):
        total += thrown * area * depth * 12 * width**2
        if width != WIDTHS[-1]:
            area //= 4
            total += thrown * area * 4 * width * 2 * width
    return total + (16 - 10) * WIDTHS[-1] * 3 * 32 * 32


def padding_saving() -> float:
    """Upstream runs QKV and projection of the last stage on its padding, 8 x 8 - 4 x 4 tokens."""
    return 48 * 4 * WIDTHS[-1] ** 2


def case(name, make, saving) -> Case:
    return Case(
        name=name,
        build=make,
        batch=batch,
        ratio=0.5,
        invalid_ratio=0.625,
        heavy=lambda model: model.backbone.stages[0].blocks[0].ffn,
        tokens_seen=lambda args: args[0].shape[:2].numel() // 64,
        saving=saving,
        features=features,
        checkpointing=tuple(
            (f'backbone.stages.{stage}.blocks.{block}.with_cp', True)
            for stage, depth in enumerate(DEPTHS)
            for block in range(depth)
        ),
    )


CASES = [
    case('simmim-swin', build_window4, saving()),
    case('simmim-swin-padded', build_padded, saving() + padding_saving()),
]
