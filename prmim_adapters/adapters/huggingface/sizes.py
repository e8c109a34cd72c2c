# SPDX-License-Identifier: Apache-2.0
"""Sizes that a model of transformers fails on, by the names of its config, before the first batch."""

from __future__ import annotations

from typing import Any

from ...core import PartialReconstruction


def check_size(partial: PartialReconstruction, length: int) -> None:
    """Refuse images of another size than the config's.

    Raises:
        ValueError: ``length`` is not the number of tokens that the model was attached with.
    """
    height, width = partial.grid
    if length != height * width:
        raise ValueError(
            f'{length} tokens, but the model was attached with {height}x{width}: images of another '
            'size (interpolate_pos_encoding=True) cannot be thrown from; set config.image_size to '
            'that of the images'
        )


def refuse_rectangles(model: Any) -> None:
    """For a model whose own loss fails on such images.

    Raises:
        ValueError: names the setting.
    """
    raise ValueError(
        f'config.image_size={model.config.image_size!r}: the loss of {type(model).__name__} in '
        'transformers takes square images only; set config.image_size to one number'
    )


def check_stride(model: Any, side: int) -> None:
    """Refuse a masked image model whose reconstruction has another size than the images.

    Args:
        model: with ``config.image_size`` and ``config.encoder_stride``.
        side: pixels that a token of the last layer stands for, in either direction.

    Raises:
        ValueError: an image size in two numbers, which upstream's loss divides as one, or a stride
            that is not ``side``.
    """
    if not isinstance(model.config.image_size, int):
        refuse_rectangles(model)
    stride = model.config.encoder_stride
    if stride != side:
        raise ValueError(
            f'config.encoder_stride={stride}, but a token of {type(model).__name__} stands for '
            f'{side}x{side} pixels: set config.encoder_stride={side}'
        )


def check_hiera(model: Any) -> None:
    """Refuse sizes that the Hiera of transformers fails on.

    Raises:
        ValueError: names the setting, and what it must be.
    """
    config = model.config
    for option in ('patch_stride', 'query_stride'):
        rows, columns = getattr(config, option)
        if rows != columns:
            raise ValueError(
                f'config.{option}={[rows, columns]}: Hiera predicts squares; set two equal numbers'
            )
    pooled = [stride ** (len(config.depths) - 1) for stride in config.query_stride]
    if list(config.masked_unit_size) != pooled:
        raise ValueError(
            f'config.masked_unit_size={list(config.masked_unit_size)}, but {len(config.depths)} '
            f'stages of query_stride={list(config.query_stride)} pool {pooled[0]}x{pooled[1]} '
            f'tokens: set config.masked_unit_size={pooled}'
        )
    unit = config.patch_stride[0] * pooled[0]
    if any(size % unit for size in config.image_size):
        raise ValueError(
            f'config.image_size={list(config.image_size)} is not divisible into mask units of '
            f'{unit} pixels (patch_stride times masked_unit_size): choose a multiple of them'
        )
    for kernel, padding in zip(config.patch_size, config.patch_padding, strict=True):
        if not 0 < kernel - 2 * padding <= config.patch_stride[0]:
            raise ValueError(
                f'config.patch_padding={list(config.patch_padding)} gives another number of tokens '
                f'than image_size / patch_stride: patch_size={list(config.patch_size)} without the '
                f'padding on both sides must be 1 to {config.patch_stride[0]}'
            )
