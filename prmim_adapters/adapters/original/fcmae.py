# SPDX-License-Identifier: Apache-2.0
"""FCMAE of the original ConvNeXt V2, https://github.com/facebookresearch/ConvNeXt-V2.

Modifications of ``FCMAE`` in models/fcmae.py:
* ``forward_decoder`` projects the visible units only, runs its blocks on visible and kept units, and
  its prediction layer on supervised units. It returns (N, L, p * p * 3), which ``forward_loss``
  takes as well as upstream's map, with zeros at positions that carry no loss.
* Thrown units are zeros to the depthwise convolution, as masked units are to the encoder, and do
  not enter GRN, whose norm runs over the present units of each image.
* Reconstructed features are scaled to the magnitude of the kept ones. Upstream has no norm before
  its prediction layer and draws that layer's weights from a normal of 1, so features of another
  magnitude would start with a loss 20 times upstream's.
* ``forward_loss`` weighs thrown tokens; at the default weight 1 the mask is upstream's.

The encoder never sees masked units, so only the decoder can become cheaper: 1.4 % of the base
model, 20 % of atto.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core import PartialReconstruction, scatter_tokens
from ...packed.convolution import packed_convnext, packed_pointwise
from ...packed.units import Units
from ..mae_decoder import decode_units
from ..registry import ADAPTERS
from ..seams import Seams
from .classes import UpstreamClasses
from .geometry import embedded_grid


class FCMAESeam:
    """FCMAE whose decoder sees present units only."""

    partial: PartialReconstruction

    def forward_decoder(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        """x (N, C, h, w), mask (N, h * w), 1 = masked -> predictions (N, L, p * p * 3)."""
        partition = self.partial(mask.bool(), loss_reads=self.partial.changes_loss)
        rows = decode_units(self, _block, self.partial, partition, x)
        predictions = packed_pointwise(self.pred, _same_magnitude(rows, partition.kept.shape[1]))
        return scatter_tokens(predictions, self.partial.supervised(partition), partition.length)

    def forward_loss(self: Any, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: imgs (N, 3, H, W), pred (N, L, D), mask (N, L), 1 = masked."""
        if self.partial.changes_loss:
            mask = self.partial.loss_mask(mask, self.partial.take(len(pred)))
        return super().forward_loss(imgs, pred, mask)  # type: ignore[misc]


def _same_magnitude(rows: Tensor, num_kept: int) -> Tensor:
    """Rows (B, n, C), kept then thrown, the latter scaled to the root mean square of the former."""
    kept, thrown = rows[:, :num_kept], rows[:, num_kept:]
    if not thrown.shape[1]:
        return rows
    with torch.no_grad():
        scale = kept.float().square().mean().sqrt() / thrown.float().square().mean().sqrt()
    return torch.cat((kept, thrown * scale.to(thrown.dtype)), dim=1)


def _block(block: Any, tokens: Tensor, units: Units) -> Tensor:
    """A dense ConvNeXt V2 block on tokens (B, N, C)."""

    def mlp(x: Tensor) -> Tensor:
        x = block.act(block.pwconv1(x))
        x = block.grn(x[:, None])[:, 0]  # upstream's norm runs over rows and columns: one row
        return block.drop_path(block.pwconv2(x))

    return packed_convnext(tokens, units, block.dwconv, block.norm, mlp)


CLASSES = UpstreamClasses(__name__, {'models.fcmae.FCMAE': FCMAESeam})
__getattr__ = CLASSES.find


@ADAPTERS.register_module(framework='models.fcmae.FCMAE')
def fcmae(model: Any) -> Seams:
    """Seam: the decoder. The mask ratio is an argument of ``forward``, so it is checked there."""
    return Seams(
        host='',
        classes=CLASSES,
        grid=embedded_grid(model, model.num_patches, 'num_patches'),
        width=model.decoder_embed_dim,
        absolute_positions=False,
    )
