# SPDX-License-Identifier: Apache-2.0
"""Heads that compare pixels: as many channels must be predicted as the images have."""

from __future__ import annotations

from typing import Any

from mmpretrain.models import PixelReconstructionLoss
from torch import nn


def compares_pixels(head: Any) -> bool:
    """Whether the loss is mmpretrain's on pixels; others may compare what they like."""
    loss = getattr(head, 'loss_module', None) or getattr(head, 'loss', None)
    return getattr(type(loss), 'forward', None) is PixelReconstructionLoss.forward


def check_channels(model: Any, predicted: int, remedy: str) -> None:
    """Refuse at attach what the loss would fail on at the first batch.

    Args:
        model: with a ``backbone`` and a ``head``; nothing is refused unless that compares pixels.
        predicted: channels of the predicted image.
        remedy: what predicts them, and how to change it.

    Raises:
        ValueError: the images have other channels.
    """
    if not compares_pixels(model.head):
        return
    channels = next(m.in_channels for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    if channels != predicted:
        raise ValueError(
            f'the backbone takes images of {channels} channels, and {predicted} are predicted: '
            f'{remedy}'
        )
