# SPDX-License-Identifier: Apache-2.0
"""Images, by the original repositories and packages.

* Hard Patches Mining, https://github.com/Haochen-Wang409/HPM: models_mae_learn_loss.py and
  models_mae_learn_feature_loss.py. The first decoder; the predictor of losses, which ranks all
  tokens, stays whole. The loss is the script's.
* BootMAE, https://github.com/LightDXY/BootMAE: models/modeling_pretrain_bootmae.py. The pixel decoder;
  the decoder of features stays whole. The loss is the script's.
* solo-learn's MAE, https://github.com/vturrisi/solo-learn: solo/methods/mae.py. The loss is a function
  outside of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.partition import Grid
from ..declared import register
from ..masks import Argument, Restore

_BOOTMAE_MASKED = 150
"""Masked tokens where ``forward`` is not told how many."""


def _grid(model: Any) -> Grid:
    height, width = model.patch_embed.grid_size
    return height, width


def _backbone_grid(model: Any) -> Grid:
    return _grid(model.backbone)


def _shape(model: Any) -> Grid:
    height, width = model.patch_embed.patch_shape
    return height, width


def _shuffled(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The last ``mask_len`` of ``idx_shuffle`` (B, L) are masked."""
    order, masked = arguments['idx_shuffle'].long(), arguments.get('mask_len', _BOOTMAE_MASKED)
    hidden = order[:, order.shape[1] - masked :]
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter(1, hidden, torch.ones_like(hidden, dtype=torch.bool))


for _framework in (
    'models_mae_learn_loss.MaskedAutoencoderViT',
    'models_mae_learn_feature_loss.MaskedAutoencoderViT',
):
    register(
        _framework,
        method='forward_decoder',
        arguments=('x', 'mask'),
        blocks='decoder_blocks',
        mask=Argument('mask'),
        prefix=1,
        order='visible_first',
        grid=_grid,
    )
register(
    'models.modeling_pretrain_bootmae.VisionTransformerForMaskedImageModeling',
    arguments=('x', 'mask_len', 'idx_shuffle', 'sparse_shuffle'),
    blocks='decode_blocks',
    mask=_shuffled,
    prefix=1,
    grid=_shape,
)
register(
    'solo.methods.mae.MAE',
    host='decoder',
    arguments=('x', 'ids_restore'),
    blocks='decoder_blocks',
    mask=Restore(),
    prefix=1,
    grid=_backbone_grid,
)
