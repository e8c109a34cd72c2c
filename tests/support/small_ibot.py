# SPDX-License-Identifier: Apache-2.0
"""A small iBOT far from its start, its batches, and its teacher kept where it is."""

import small_models
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from mmpretrain.utils import register_all_modules

import prmim_adapters.frameworks.ibot  # noqa: F401, registers

register_all_modules()

IMAGES, GLOBAL, LOCAL, PROTOTYPES = 3, 2, 2, 24
GRID = (4, 6)


def build(**changes):
    torch.manual_seed(0)
    config = small_models.ibot(prototypes=PROTOTYPES, base_momentum=0.1)
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    model = MODELS.build(config).train()
    with torch.no_grad():  # far from the symmetric start: every term of the formulas matters
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for network in (model.backbone, model.neck):
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.head.center.normal_()
        model.head.patch_center.normal_()
    model.teacher.steps += 1  # past the first update, which copies the student
    return model


def batch(seed=0, ratios=(0.5, 0.0, 0.8)):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(len(ratios), 3, 32, 48, generator=generator) for _ in range(GLOBAL)]
    crops += [torch.randn(len(ratios), 3, 16, 24, generator=generator) for _ in range(LOCAL)]
    masks = [torch.rand(GLOBAL, *GRID, generator=generator) < ratio for ratio in ratios]
    return crops, [DataSample().set_mask(mask) for mask in masks]


def still(model):
    """Keep the teacher where it is, so that a test can look at the losses alone."""
    model.teacher.interval = 10**9
    return model
