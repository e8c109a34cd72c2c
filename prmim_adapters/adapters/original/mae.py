# SPDX-License-Identifier: Apache-2.0
"""The original MAE, https://github.com/facebookresearch/mae, file models_mae.py.

Modifications:
* ``forward_decoder`` runs the decoder blocks on cls + visible + kept tokens and the prediction
  layer on supervised tokens. It returns what it always did, (N, L, p * p * 3), with zeros at
  positions that carry no loss, so ``forward``, ``unpatchify`` and the training script see no
  difference. At ratio 0 it is upstream's.
* ``forward_loss`` weighs thrown tokens; at the default weight 1 the mask is upstream's.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from torch import Tensor

from ...core import PartialReconstruction
from ...core.partition import Grid
from ..base import Adapter
from ..mae_decoder import decode_in_place
from ..registry import ADAPTERS
from .classes import UpstreamClasses


class MaskedAutoencoderSeam:
    """MAE whose decoder sees present tokens only."""

    partial: PartialReconstruction

    def forward_decoder(self: Any, x: Tensor, ids_restore: Tensor) -> Tensor:
        """x (N, 1 + V, C), ids_restore (N, L) int64 -> predictions (N, L, p * p * 3)."""
        if self.partial.num_thrown == 0:
            return super().forward_decoder(x, ids_restore)  # type: ignore[misc]
        return decode_in_place(self, self.decoder_blocks, self.partial, x, ids_restore)

    def forward_loss(self: Any, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: imgs (N, 3, H, W), pred (N, L, D), mask (N, L), 1 = masked."""
        mask = self.partial.loss_mask(mask)
        return super().forward_loss(imgs, pred, mask)  # type: ignore[misc]


CLASSES = UpstreamClasses(__name__, {'models_mae.MaskedAutoencoderViT': MaskedAutoencoderSeam})
__getattr__ = CLASSES.find


@ADAPTERS.register_module(framework='models_mae.MaskedAutoencoderViT')
class OriginalMAEAdapter(Adapter):
    """Seam: the decoder. The mask ratio is an argument of ``forward``, so it is checked there."""

    classes = CLASSES
    host = ''

    @classmethod
    def grid(cls, model: Any) -> Grid:
        """Square, as upstream's position embedding."""
        side = isqrt(model.patch_embed.num_patches)
        return side, side

    @classmethod
    def width(cls, model: Any) -> int:
        """Decoder width."""
        return model.decoder_embed.out_features

    @classmethod
    def num_prefix(cls, model: Any) -> int:
        """The cls token."""
        return 1
