# SPDX-License-Identifier: Apache-2.0
"""Video, by the original repositories; time is folded into rows, (T * H, W).

* VideoMAE, https://github.com/MCG-NJU/VideoMAE, and MAE-pytorch,
  https://github.com/pengzhiliang/MAE-pytorch: modeling_pretrain.py. The loss is the script's.
* VideoMAE V2, https://github.com/OpenGVLab/VideoMAEv2: models/modeling_pretrain.py. Its decoder mask
  is plain partial reconstruction of its own, so it is refused beside this one.
* MAE-ST, https://github.com/facebookresearch/mae_st: models_mae.py.
* Hiera, https://github.com/facebookresearch/hiera: hiera_mae.py, images and video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.partition import Grid
from ..declared import register
from ..masks import Argument, Restore, Units
from ..seams import patch_grid


def _tubelets(model: Any) -> Grid:
    """Frames are known by the number of tokens alone."""
    embed = model.encoder.patch_embed
    _, width = patch_grid(embed.img_size, embed.patch_size, 'img_size')
    return embed.num_patches // width, width


def _encoder_mask(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Raises where the decoder is to see other tokens than all masked ones."""
    mask, decoded = arguments['mask'], arguments.get('decode_mask')
    if decoded is not None and not torch.equal(~decoded.bool(), mask.bool()):
        raise ValueError(
            'decode_mask leaves masked tokens out of the decoder and of the loss, which is plain '
            'partial reconstruction: let PR-MIM choose them, with decode_mask=None '
            '(--decoder_mask_ratio 0)'
        )
    return mask.flatten(1).bool()


def _frames_in_rows(model: Any) -> Grid:
    frames, height, width = model.patch_embed.input_size
    return frames * height, width


def _cls_rows(model: Any) -> int:
    return int(model.cls_embed)


def _hiera_unit(model: Any) -> Any:
    return model.mask_unit_spatial_shape_final


def _hiera_shape(model: Any) -> Any:
    return model.tokens_spatial_shape_final


def _hiera_grid(model: Any) -> Grid:
    *frames, height, width = _hiera_shape(model)
    return height * (frames[0] if frames else 1), width


register(
    'modeling_pretrain.PretrainVisionTransformer',
    arguments=('x', 'mask'),
    blocks='decoder.blocks',
    mask=Argument('mask'),
    order='visible_first',
    grid=_tubelets,
)
register(
    'models.modeling_pretrain.PretrainVisionTransformer',
    arguments=('x', 'mask', 'decode_mask'),
    blocks='decoder.blocks',
    mask=_encoder_mask,
    order='visible_first',
    grid=_tubelets,
)
register(
    'mae_st.models_mae.MaskedAutoencoderViT',
    method='forward_decoder',
    arguments=('x', 'ids_restore'),
    blocks='decoder_blocks',
    mask=Restore(prefix=0),  # the encoder takes its cls token off
    prefix=_cls_rows,
    grid=_frames_in_rows,
    loss=('forward_loss', 'mask'),
)
register(
    'hiera.hiera_mae.MaskedAutoencoderHiera',
    method='forward_decoder',
    arguments=('x', 'mask'),
    blocks='decoder_blocks',
    mask=Units('mask', _hiera_unit, _hiera_shape, masked=False),
    grid=_hiera_grid,
)
