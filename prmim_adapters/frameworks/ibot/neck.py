# SPDX-License-Identifier: Apache-2.0
"""iBOT's projection head, which mmpretrain would call a neck: MLP, unit length, prototypes.

Source: arXiv 2104.14294 (DINO), section 3.1, which iBOT shares between class and patch tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows have the length ``weight_g``.

    A module of its own: torch's weight normalisation makes models that cannot be pickled.
    """

    def __init__(self, in_channels: int, out_channels: int, learn_length: bool) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_channels, in_channels))
        self.weight_g = nn.Parameter(torch.ones(out_channels, 1), requires_grad=learn_length)
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


@MODELS.register_module()
class IBOTNeck(BaseModule):
    """Three-layer MLP to a bottleneck of unit length, then one prototype per output channel.

    Args:
        in_channels: width of the backbone.
        hidden_channels: width of the MLP.
        bottleneck_channels: width of the normalised bottleneck.
        out_channels: number of prototypes K.
        norm_last_layer: keep the prototypes at length 1. The original does so for ViT-B and
            larger; for ViT-S learnt lengths are better.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 2048,
        bottleneck_channels: int = 256,
        out_channels: int = 8192,
        norm_last_layer: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = {'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02}
        super().__init__(init_cfg)
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, bottleneck_channels),
        )
        self.last_layer = WeightNormLinear(
            bottleneck_channels, out_channels, learn_length=not norm_last_layer
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., C) to logits (..., K)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))
