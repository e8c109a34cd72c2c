# SPDX-License-Identifier: Apache-2.0
"""SimMIM on targets without the local mean and contrast, which mmpretrain's SimMIM lacks.

``NORM_TARGET`` of microsoft/Swin-Transformer's ``models/simmim.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import SimMIMHead
from mmpretrain.registry import MODELS
from torch import Tensor

from ..core.options import check_whole


@MODELS.register_module()
class NormTargetSimMIMHead(SimMIMHead):
    """SimMIM's head on images normalised about every pixel.

    Args:
        norm_window: side in pixels of the window about a pixel whose mean and variance are taken out
            of it; odd. The original has 47 for units of 32 px.
        **kwargs: those of ``SimMIMHead``.

    Raises:
        TypeError, ValueError: ``norm_window`` is no odd number from 3 on.
    """

    def __init__(self, norm_window: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm_window = check_whole('norm_window', norm_window, 3)
        if not norm_window % 2:
            raise ValueError(f'norm_window={norm_window} must be odd: a pixel is in its middle')

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """``SimMIMHead.loss``, with images (B, C, H, W) as the target."""
        mean, deviation = self.statistics(target)
        return super().loss(pred, (target - mean) / deviation, mask)

    def statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation about every pixel, each (B, C, H, W); windows end at the border."""
        count = _sum(torch.ones_like(images[:1, :1]), self.norm_window)
        mean = _sum(images, self.norm_window) / count
        square = _sum(images**2, self.norm_window) / count
        variance = (square - mean**2) * count / (count - 1)
        return mean, (variance.clamp(min=0) + 1e-6).sqrt()


def _sum(images: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(images, side, stride=1, padding=side // 2, divisor_override=1)
