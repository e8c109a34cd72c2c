# SPDX-License-Identifier: Apache-2.0
"""transformers: VideoMAE, Hiera (images), and DeiT's masked image model."""

from __future__ import annotations

from typing import Any

from ...core.partition import Grid
from ..declared import register
from ..huggingface.sizes import check_hiera, check_stride
from ..masks import Argument, Units
from ..seams import patch_grid


def _video_grid(model: Any) -> Grid:
    """Time folded into rows: (T * H, W)."""
    patches, frames = model.videomae.embeddings.patch_embeddings, model.config.num_frames
    if frames % patches.tubelet_size:
        raise ValueError(
            f'config.num_frames={frames} is not divisible by tubelet_size={patches.tubelet_size}: '
            'choose a multiple of it'
        )
    if model.config.num_channels != 3 and not model.config.norm_pix_loss:
        raise ValueError(
            f'config.num_channels={model.config.num_channels}: VideoMAE has unnormalised pixels as '
            'its target for 3 channels only; set config.norm_pix_loss=True'
        )
    height, width = patch_grid(patches.image_size, patches.patch_size, 'config.image_size')
    return frames // patches.tubelet_size * height, width


def _hiera_grid(decoder: Any) -> Grid:
    height, width = decoder.tokens_spatial_shape_final
    return height, width


def _hiera_unit(decoder: Any) -> Grid:
    height, width = decoder.mask_unit_spatial_shape_final
    return height, width


def _hiera_model_grid(model: Any) -> Grid:
    check_hiera(model)
    return _hiera_grid(model.decoder)


def _deit_grid(model: Any) -> Grid:
    check_stride(model, model.config.patch_size)
    patches = model.deit.embeddings.patch_embeddings
    return patch_grid(patches.image_size, patches.patch_size, 'config.image_size')


register(
    'transformers.models.videomae.modeling_videomae.VideoMAEForPreTraining',
    arguments=('pixel_values', 'bool_masked_pos', '**kwargs'),
    blocks='decoder.decoder_layers',
    mask=Argument('bool_masked_pos'),
    order='visible_first',
    grid=_video_grid,
)
register(
    'transformers.models.hiera.modeling_hiera.HieraForPreTraining',
    host='decoder',
    arguments=('encoder_hidden_states', 'bool_masked_pos', 'output_attentions'),
    blocks='decoder_block.layers',
    mask=Units('bool_masked_pos', _hiera_unit, _hiera_grid, masked=False),
    grid=_hiera_model_grid,
)
register(
    'transformers.models.deit.modeling_deit.DeiTForMaskedImageModeling',
    arguments=(
        'pixel_values',
        'bool_masked_pos',
        'interpolate_pos_encoding',
        'attention_mask',
        '**kwargs',
    ),
    blocks='deit.layers',
    mask=Argument('bool_masked_pos'),
    prefix=2,  # cls and distillation token
    grid=_deit_grid,
)
