# SPDX-License-Identifier: Apache-2.0
"""The original MAE, https://github.com/facebookresearch/mae, file models_mae.py.

Modifications:
* ``forward_decoder`` runs the decoder blocks on cls + visible + kept tokens and the prediction
  layer on supervised tokens. It returns what it always did, (N, L, p * p * 3), with zeros at
  positions that carry no loss, so ``forward``, ``unpatchify`` and the training script see no
  difference.
* ``forward_loss`` weighs thrown tokens; at the default weight 1 the mask is upstream's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core import PartialReconstruction
from ..mae_decoder import decode_in_place
from ..registry import ADAPTERS
from ..seams import Seams
from .classes import UpstreamClasses
from .geometry import embedded_grid


class MaskedAutoencoderSeam:
    """MAE whose decoder sees present tokens only."""

    partial: PartialReconstruction

    def forward_decoder(self: Any, x: Tensor, ids_restore: Tensor) -> Tensor:
        """x (N, 1 + V, C), ids_restore (N, L) int64 -> predictions (N, L, p * p * 3)."""
        return decode_in_place(self, self.decoder_blocks, self.partial, x, ids_restore)

    def forward_loss(self: Any, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: imgs (N, 3, H, W), pred (N, L, D), mask (N, L), 1 = masked."""
        if self.partial.changes_loss:
            mask = self.partial.loss_mask(mask, self.partial.take(len(pred)))
        return super().forward_loss(imgs, pred, mask)  # type: ignore[misc]


CLASSES = UpstreamClasses(__name__, {'models_mae.MaskedAutoencoderViT': MaskedAutoencoderSeam})
__getattr__ = CLASSES.find


@ADAPTERS.register_module(framework='models_mae.MaskedAutoencoderViT')
def mae(model: Any) -> Seams:
    """Seam: the decoder. The mask ratio is an argument of ``forward``, so it is checked there."""
    length = model.decoder_pos_embed.shape[1] - 1
    return Seams(
        host='',
        classes=CLASSES,
        grid=embedded_grid(model.patch_embed, length, 'decoder_pos_embed'),
        width=model.decoder_embed.out_features,
        num_prefix=1,
    )
