# SPDX-License-Identifier: Apache-2.0
"""Satellite images: groups of bands, and dates, are folded into rows.

* SatMAE, https://github.com/sustainlab-group/SatMAE: models_mae_group_channels.py (G groups of bands,
  (G * H, W)) and models_mae_temporal.py (three dates, (3 * H, W)). Its models_mae.py is MAE's.
* SatMAE++, https://github.com/techmn/satmae_pp: the same, and models_mae.py, with losses at larger
  scales that read the predictions of all tokens, so that none may be left out.
* Prithvi in terratorch, https://github.com/IBM/terratorch: backbones/prithvi_mae.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core.partition import Grid
from ..declared import register
from ..masks import Restore

_DATES = 3


def _grid(model: Any) -> Grid:
    height, width = model.patch_embed.grid_size
    return height, width


def _groups_in_rows(model: Any) -> Grid:
    height, width = model.patch_embed[0].grid_size
    return len(model.channel_groups) * height, width


def _dates_in_rows(model: Any) -> Grid:
    height, width = _grid(model)
    return _DATES * height, width


def _grouped(model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """One mask for each group of bands; with ``spatial_mask`` the same for all."""
    restore, groups = arguments['ids_restore'], len(model.channel_groups)
    visible = arguments['x'].shape[1] - 1
    if not model.spatial_mask:
        return restore >= visible
    return (restore >= visible // groups).repeat(1, groups)


def _has_scales(cls: Any) -> bool:
    return hasattr(cls, 'forward_multiscale')


def _prithvi_grid(model: Any) -> Grid:
    frames, height, width = model.encoder.patch_embed.grid_size
    return frames * height, width


register(
    'models_mae_group_channels.MaskedAutoencoderGroupChannelViT',
    method='forward_decoder',
    arguments=('x', 'ids_restore'),
    blocks='decoder_blocks',
    mask=_grouped,
    prefix=1,
    grid=_groups_in_rows,
    loss=('forward_loss', 'mask'),
)
for _name, _tokens, _mask in (
    ('models_mae.MaskedAutoencoderViT', _grid, Restore()),
    ('models_mae_group_channels.MaskedAutoencoderGroupChannelViT', _groups_in_rows, _grouped),
):
    register(
        f'{_name} (SatMAE++)',
        method='forward_decoder',
        arguments=('x', 'ids_restore'),
        blocks='decoder_blocks',
        mask=_mask,
        prefix=1,
        grid=_tokens,
        meant=_has_scales,
    )
register(
    'models_mae_temporal.MaskedAutoencoderViT',
    method='forward_decoder',
    arguments=('x', 'timestamps', 'ids_restore'),
    blocks='decoder_blocks',
    mask=Restore(),
    prefix=1,
    grid=_dates_in_rows,
    per_image=True,  # dates
    loss=('forward_loss', 'mask'),
)
register(
    'terratorch.models.backbones.prithvi_mae.PrithviMAE',
    host='decoder',
    arguments=(
        'hidden_states',
        'ids_restore',
        'temporal_coords',
        'location_coords',
        'input_size',
    ),
    blocks='decoder_blocks',
    mask=Restore(tokens='hidden_states'),
    prefix=1,
    grid=_prithvi_grid,
    per_image=True,  # dates and places, if it is given any
    loss=('forward_loss', 'mask'),
)
