# SPDX-License-Identifier: Apache-2.0
"""Images on which two encoders are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..openmmlab.models import input_channels


def noise_images(backbone: Any) -> Tensor:
    """(2, C, H, W) standard normal noise of the backbone's size; the same every time."""
    height, width = _image_size(backbone)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, input_channels(backbone), height, width, generator=generator)


def _image_size(backbone: Any) -> tuple[int, int]:
    if not hasattr(backbone, 'img_size'):  # Swin
        patch = backbone.patch_embed.projection.kernel_size
        height, width = (n * p for n, p in zip(backbone.patch_resolution, patch, strict=True))
        return height, width
    size = backbone.img_size
    return (size, size) if isinstance(size, int) else tuple(size)
