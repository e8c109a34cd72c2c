# SPDX-License-Identifier: Apache-2.0
"""What a converter from an mmpretrain backbone to timm is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Converter:
    """One family of backbones.

    Attributes:
        build: backbone -> timm model of its sizes, any weights.
        convert: (state dict of the backbone, backbone) -> timm's state dict.
        features: (backbone, images (B, C, H, W)) -> what timm's ``forward_features`` gives.
        untrained: prefixes of timm's weights that pre-training does not have.
    """

    build: Callable[[Any], nn.Module]
    convert: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    features: Callable[[Any, Tensor], Tensor]
    untrained: tuple[str, ...] = ()
