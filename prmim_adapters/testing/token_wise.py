# SPDX-License-Identifier: Apache-2.0
"""Networks whose tokens do not see each other: dropping some leaves the others as they were."""

from __future__ import annotations

import torch
from torch import nn

_OUTPUTS = ('proj', 'out_proj', 'o_proj')


@torch.no_grad()
def make_token_wise(model: nn.Module) -> None:
    """Change the weights, in place, so that every token depends on its own patch alone.

    Attention adds nothing (its output projection is zero), convolutions keep as many weights in
    the middle of their kernels as their stride has positions, global response norms add their
    bias only, and batch norms use their running statistics.
    """
    for module in model.modules():
        kind = type(module).__name__.lower()
        if 'attention' in kind or 'msa' in kind:
            for name in _OUTPUTS:
                for parameter in getattr(module, name, nn.Identity()).parameters():
                    parameter.zero_()
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            _keep_middle(module.weight, module.stride)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        elif 'grn' in kind or kind == 'globalresponsenorm':
            module.gamma.zero_()


@torch.no_grad()
def shake(model: nn.Module, scale: float = 0.2) -> None:
    """Add noise to every parameter, also to those that start as zeros or are not trained.

    A mask token or a position embedding of zeros hides where it was forgotten.
    """
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn_like(parameter))


def _keep_middle(weight: torch.Tensor, size: tuple[int, ...]) -> None:
    """Zero a kernel (.., k, k) but for the ``size`` weights in its middle, along each axis."""
    middle = torch.zeros_like(weight)
    border = [(k - s) // 2 for k, s in zip(weight.shape[2:], size, strict=True)]
    rows, columns = (slice(b, b + s) for b, s in zip(border, size, strict=True))
    middle[..., rows, columns] = weight[..., rows, columns]
    weight.copy_(middle)
