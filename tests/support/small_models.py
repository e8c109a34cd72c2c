# SPDX-License-Identifier: Apache-2.0
"""Settings of small models of mmpretrain, for tests in which little depends on their sizes.

Each part takes further settings: ``mae(backbone=dict(mask_ratio=0.5))``.
"""

from __future__ import annotations

from typing import Any

PREPROCESSOR = dict(type='SelfSupDataPreprocessor', mean=[0] * 3, std=[1] * 3)


def arch(width: int = 16, depth: int = 1, heads: int = 2) -> dict[str, int]:
    """Of a ViT."""
    return dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=2 * width)


def pixel_loss(criterion: str = 'L2', **options: Any) -> dict[str, Any]:
    return dict(type='PixelReconstructionLoss', criterion=criterion, **options)


def mae(
    img_size: int | tuple[int, int] = 32,
    patch_size: int = 8,
    *,
    width: int = 16,
    depth: int = 1,
    heads: int = 2,
    backbone: dict[str, Any] | None = None,
    neck: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """MAE; its decoder is of the encoder's width and heads, one block deep."""
    height, across = (img_size, img_size) if isinstance(img_size, int) else img_size
    return (
        dict(
            type='MAE',
            backbone=dict(
                type='MAEViT',
                arch=arch(width, depth, heads),
                img_size=img_size,
                patch_size=patch_size,
            )
            | (backbone or {}),
            neck=dict(
                type='MAEPretrainDecoder',
                num_patches=height // patch_size * (across // patch_size),
                patch_size=patch_size,
                embed_dim=width,
                decoder_embed_dim=width,
                decoder_depth=1,
                decoder_num_heads=heads,
            )
            | (neck or {}),
            head=dict(type='MAEPretrainHead', patch_size=patch_size, loss=pixel_loss())
            | (head or {}),
        )
        | options
    )


def simmim(backbone: dict[str, Any], width: int, stride: int, cell: int) -> dict[str, Any]:
    """SimMIM of an encoder of ``width`` channels at the end.

    Args:
        backbone: its settings.
        width: channels of its last feature map.
        stride: pixels of the image for a position of that map.
        cell: pixels of the image for an entry of the mask.
    """
    return dict(
        type='SimMIM',
        backbone=backbone,
        neck=dict(type='SimMIMLinearDecoder', in_channels=width, encoder_stride=stride),
        head=dict(type='SimMIMHead', patch_size=cell, loss=pixel_loss('L1', channel=3)),
    )


def ibot(
    img_size: int | tuple[int, int] = (32, 48),
    patch_size: int = 8,
    *,
    width: int = 32,
    depth: int = 2,
    hidden: int = 48,
    bottleneck: int = 16,
    prototypes: int = 20,
    backbone: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """iBOT, with prototypes of learnt length."""
    return (
        dict(
            type='IBOT',
            backbone=dict(
                type='IBOTViT', arch=arch(width, depth), img_size=img_size, patch_size=patch_size
            )
            | (backbone or {}),
            neck=dict(
                type='IBOTNeck',
                in_channels=width,
                hidden_channels=hidden,
                bottleneck_channels=bottleneck,
                out_channels=prototypes,
                norm_last_layer=False,
            ),
            head=dict(type='IBOTHead', out_channels=prototypes),
        )
        | options
    )
