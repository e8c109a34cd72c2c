# SPDX-License-Identifier: Apache-2.0
"""iBOT: masks of one size, and ragged ones."""

from functools import partial

import small_models
import torch
from contract_case import Case
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import prmim_adapters.frameworks.ibot  # noqa: F401, registers

LENGTH, IMAGES, GLOBAL, LOCAL = 24, 3, 2, 2
WIDTH, DEPTH, HIDDEN, NECK, BOTTLENECK, PROTOTYPES = 32, 2, 64, 48, 16, 20
RAGGED = [[12, 0], [18, 6], [6, 1]]


def build():
    model = MODELS.build(
        small_models.ibot(
            width=WIDTH, depth=DEPTH, hidden=NECK, bottleneck=BOTTLENECK, prototypes=PROTOTYPES
        )
    )
    model.init_weights()
    with torch.no_grad():  # a start at which teacher and student differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # In training mode every call moves the teacher and the centres; the matrix compares calls.
    return model.eval()


def batch(counts, local=LOCAL):
    generator = torch.Generator().manual_seed(5)
    crops = [torch.randn(IMAGES, 3, 32, 48, generator=generator) for _ in range(GLOBAL)]
    crops += [torch.randn(IMAGES, 3, 16, 24, generator=generator) for _ in range(local)]
    masks = [
        torch.stack(
            [torch.randperm(LENGTH, generator=generator).view(4, 6) < count for count in image]
        )
        for image in counts
    ]
    return dict(inputs=crops, data_samples=[DataSample().set_mask(mask) for mask in masks])


PADDED = {17: 24, 15: 24}
"""Sequences of the ragged batch to their width in a call of attention: lengths within an eighth of
the longest share one, padded to a multiple of 8."""


def encoder(tokens: int, width: int) -> int:
    """MACs of all layers for one sequence."""
    linear = tokens * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    attention = 2 * width**2 * WIDTH
    return DEPTH * (linear + attention)


def saving(counts, ratio, share=2 / 3) -> float:
    """Per image; the projection head runs on all masked tokens, as in the framework."""
    thrown = [min(round(ratio * LENGTH), int(m * share + 1e-6)) for image in counts for m in image]
    lengths = [1 + LENGTH - t for t in thrown]
    ours = sum(encoder(length, PADDED.get(length, length)) for length in lengths)
    return (len(lengths) * encoder(1 + LENGTH, 1 + LENGTH) - ours) / IMAGES


def features(model, tokens):
    """The student's layers and norm."""
    return model.backbone.encode(tokens[None])[0]


def global_crops(batch):
    return batch['inputs'][:GLOBAL]


ONE_SIZE = [[18, 18]] * IMAGES  # 0.75 of 24

CASES = [
    Case(
        name='ibot',
        build=build,
        batch=partial(batch, ONE_SIZE),
        ratio=0.5,
        heavy=lambda model: model.backbone.layers[0],
        saving=saving(ONE_SIZE, 0.5),
        features=features,
        images=global_crops,
        compiles_whole=False,  # how many tokens are masked decides the shapes
    ),
    Case(
        name='ibot-ragged',
        build=build,
        batch=partial(batch, RAGGED, local=0),
        ratio=10 / 24,
        # the packed tokens of all crops; the layer as a whole is not called on them
        heavy=lambda model: model.backbone.layers[0].ln1,
        saving=saving(RAGGED, 10 / 24),
        features=features,
        images=global_crops,
        compiles_whole=False,  # how many tokens are masked decides the shapes
    ),
]
