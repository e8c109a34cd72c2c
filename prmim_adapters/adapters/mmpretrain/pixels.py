# SPDX-License-Identifier: Apache-2.0
"""Heads that compare pixels: as many must be predicted of a patch as the images have in it.

The framework itself would fail at the first batch, with a message about sizes of tensors. What is
wrong shows at ``attach`` instead, by the names of the settings.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models import MAEPretrainHead, PixelReconstructionLoss
from torch import nn

from ...core.partition import Grid


def compares_pixels(head: Any) -> bool:
    """Whether the loss is mmpretrain's on pixels; others may compare what they like."""
    loss = getattr(head, 'loss_module', None) or getattr(head, 'loss', None)
    return getattr(type(loss), 'forward', None) is PixelReconstructionLoss.forward


def check_channels(model: Any, predicted: int, remedy: str) -> None:
    """Refuse images of other channels than are predicted.

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


def check_patches(model: Any, patch_size: Grid, predicted: int) -> None:
    """Refuse a decoder that predicts other patches than mmpretrain's ``MAEPretrainHead`` compares.

    Args:
        model: nothing is refused of a head with a target of its own.
        patch_size: (H, W) in pixels of the backbone's patches.
        predicted: values that are predicted of each.

    Raises:
        ValueError: backbone, neck and head disagree about size or channels of a patch.
    """
    head, methods = model.head, ('construct_target', 'patchify')
    if not compares_pixels(head) or not all(_is_upstreams(head, method) for method in methods):
        return
    side = head.patch_size
    channels, rest = divmod(predicted, side**2)
    if rest or tuple(patch_size) != (side, side):
        raise ValueError(
            f'head.patch_size={side}, the backbone has patches of {tuple(patch_size)}, and the '
            f'neck predicts {predicted} values of each: set the patch sizes of backbone, neck and '
            'head to one number'
        )
    check_channels(model, channels, 'set neck.in_chans, head.in_channels and the backbone alike')


def _is_upstreams(head: Any, method: str) -> bool:
    return getattr(type(head), method, None) is getattr(MAEPretrainHead, method)


def check_num_patches(grid: Grid, num_patches: int) -> None:
    """Refuse a decoder with positions for another number of patches than the backbone makes.

    Raises:
        ValueError: names both.
    """
    height, width = grid
    if height * width != num_patches:
        raise ValueError(
            f'backbone makes {height}x{width} = {height * width} patches, but '
            f'neck.num_patches={num_patches}: set neck.num_patches={height * width}'
        )
