# SPDX-License-Identifier: Apache-2.0
"""SimMIM with the ViT backbone of this package, on a rectangle."""

from dataclasses import replace
from functools import partial

import small_models
import torch
from cases.beit import through
from contract_case import Case, images
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from prmim_adapters.frameworks import norm_target, simmim_vit  # noqa: F401  registers them

WIDTH, DEPTH, HEADS, PATCH = 24, 2, 2, 8
SIZE = (4 * PATCH, 16 * PATCH)


def build(head=None, **options):
    backbone = dict(
        type='SimMIMViT',
        arch=small_models.arch(WIDTH, DEPTH, HEADS),
        img_size=SIZE,
        patch_size=PATCH,
        **options,
    )
    settings = small_models.simmim(backbone, WIDTH, stride=PATCH, cell=PATCH)
    settings['head'].update(head or {})
    model = MODELS.build(settings)
    model.init_weights()
    # The position bias starts at zero; a trained one shows whether the right rows are gathered.
    torch.nn.init.normal_(model.backbone.rel_pos_bias.relative_position_bias_table)
    return model


def masks(grid: tuple[int, int], masked: int, scale: int, batch_size: int = 3) -> torch.Tensor:
    """(B, H * scale, W * scale) int64, ``masked`` units of scale x scale tokens each."""
    generator = torch.Generator().manual_seed(7)
    order = torch.rand(batch_size, grid[0] * grid[1], generator=generator).argsort(dim=1)
    mask = torch.zeros_like(order).scatter(1, order[:, :masked], 1).view(-1, *grid)
    return mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def samples(mask: torch.Tensor) -> list[DataSample]:
    return [DataSample().set_mask(m) for m in mask]


def batch():
    return dict(inputs=images(size=SIZE), data_samples=samples(masks((2, 8), 10, scale=2)))


def features(model, tokens):
    """The encoder's layers and norm; attention, to which the relative bias belongs, is silent."""
    return model.backbone.norm1(through(model.backbone.layers, tokens))


def saving() -> float:
    """64 tokens, 40 masked, 32 thrown: the blocks see 33 tokens, the neck 40."""
    before, after = 65, 33
    linear = (before - after) * (4 * WIDTH**2 + 2 * WIDTH * 48)
    attention = 2 * (before**2 - after**2) * WIDTH
    return DEPTH * (linear + attention) + (64 - 40) * WIDTH * 3 * PATCH**2


VIT = Case(
    name='simmim-vit',
    build=build,
    batch=batch,
    ratio=0.5,
    invalid_ratio=0.625,
    heavy=lambda model: model.backbone.layers[0],
    saving=saving(),
    features=features,
    entering_last=lambda model, tokens: through(model.backbone.layers[:-1], tokens),
)
CASES = [
    VIT,
    replace(
        VIT,
        name='simmim-vit-norm-target',
        build=partial(
            build,
            head=dict(type='NormTargetSimMIMHead', norm_window=11),
            use_abs_pos_emb=True,
            layer_scale_init_value=0.0,
        ),
    ),
]
