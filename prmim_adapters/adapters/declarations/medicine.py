# SPDX-License-Identifier: Apache-2.0
"""Medicine: MONAI's MAE, for volumes and slices. Depth is folded into rows, (D * H, W)."""

from __future__ import annotations

import math
from typing import Any

from ...core.partition import Grid
from ..declared import register
from ..masks import Result


def _volume_grid(model: Any) -> Grid:
    sides = [size // patch for size, patch in zip(model.img_size, model.patch_size, strict=True)]
    return math.prod(sides[:-1]), sides[-1]


def _num_masked(model: Any) -> int:
    """Of the ratio that the model was built with; ``forward`` may be called with another."""
    length = model.patch_embedding.n_patches
    return length - int((1 - model.masking_ratio) * length)


register(
    'monai.networks.nets.masked_autoencoder_vit.MaskedAutoEncoderViT',
    arguments=('x', 'masking_ratio'),
    blocks='decoder_blocks',
    mask=Result('_masking', 2),
    prefix=1,
    grid=_volume_grid,
    num_masked=_num_masked,
)
