# SPDX-License-Identifier: Apache-2.0
"""FCMAE, the masked autoencoder of ConvNeXt V2 (``prmim_adapters.frameworks.fcmae``).

Modifications:
* ``FCMAEPretrainDecoder.forward`` projects the visible units only, runs its blocks on visible and
  kept units, its prediction layer on supervised units, and returns those rows only.
* Thrown units are zeros to the depthwise convolution, as masked units are to the encoder, and do
  not enter GRN, whose norm runs over the present units of each image.
* The head hands target and mask at the same rows to the framework's own loss module.

Saves: the decoder's share only, 42 % of 0.2 GMACs for tiny, whose encoder has 4.5 dense or 1.8
packed. Packing the encoder (``execution='packed'``, the default) needs no adapter.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models import MAEPretrainHead
from torch import Tensor

from ...core import PartialReconstruction
from ...frameworks.fcmae import FCMAE, FCMAEPretrainDecoder, masked_units
from ...frameworks.packed_convnext import packed_convnext_block
from ...packed.convolution import packed_pointwise
from ..mae_decoder import decode_units
from ..registry import ADAPTERS
from ..seams import Seams
from .mae import PRMAEPretrainHead
from .pixels import check_patches


class PRFCMAEPretrainDecoder(FCMAEPretrainDecoder):
    """FCMAE decoder on present units only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Predict the masked units.

        Args:
            x: (B, C_encoder, H, W), features of the encoder.
            visible: (B, V) int64, visible units.

        Returns:
            (B, n, D) predictions at the supervised positions: kept, then thrown.
        """
        length = x.shape[2] * x.shape[3]
        partition = self.partial(masked_units(visible, length), length - visible.shape[1])
        rows = decode_units(self, packed_convnext_block, self.partial, partition, x)
        return packed_pointwise(self.pred, rows)


@ADAPTERS.register_module(framework=f'{FCMAE.__module__}.{FCMAE.__qualname__}')
def fcmae(model: Any) -> Seams:
    """Seam: the decoder, which mmpretrain calls the neck.

    Raises:
        ValueError: encoder, decoder and head disagree about the pixels of a unit.
    """
    height, width = model.backbone.grid
    side = model.backbone.unit_size
    check_patches(model, (side, side), model.neck.pred.out_channels)
    return Seams(
        host='neck',
        guests=('head',),
        classes={
            FCMAEPretrainDecoder: PRFCMAEPretrainDecoder,
            MAEPretrainHead: PRMAEPretrainHead,
        },
        grid=(height, width),
        width=model.neck.pred.in_channels,
        num_masked=height * width - model.backbone.num_visible,
        absolute_positions=False,
    )
