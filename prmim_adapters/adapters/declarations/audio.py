# SPDX-License-Identifier: Apache-2.0
"""Audio: AudioMAE, https://github.com/facebookresearch/AudioMAE, file models_mae.py.

Its decoder with global attention (``decoder_mode=0``); the windows of its default, Swin blocks, would
have to be packed.
"""

from __future__ import annotations

from typing import Any

from ...core.partition import Grid
from ..declared import register
from ..masks import Restore


def _spectrogram_grid(model: Any) -> Grid:
    """(time, frequency) from image, kernel and stride: ``patch_hw`` has them the other way round."""
    if model.decoder_mode != 0:
        raise ValueError(
            f'decoder_mode={model.decoder_mode}: the decoder has windows, whose tokens cannot be '
            'left out one by one; train with decoder_mode=0 (--decoder_mode 0), which has none'
        )
    embed = model.patch_embed
    sizes = zip(embed.img_size, embed.proj.kernel_size, embed.proj.stride, strict=True)
    height, width = ((size - kernel) // stride + 1 for size, kernel, stride in sizes)
    return height, width


def _is_audio(cls: Any) -> bool:
    return hasattr(cls, 'random_masking_2d')


register(
    'models_mae.MaskedAutoencoderViT (AudioMAE)',
    method='forward_decoder',
    arguments=('x', 'ids_restore'),
    blocks='decoder_blocks',
    mask=Restore(),
    prefix=1,
    grid=_spectrogram_grid,
    loss=('forward_loss', 'mask'),
    meant=_is_audio,
)
