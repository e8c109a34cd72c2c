# SPDX-License-Identifier: Apache-2.0
"""SparK in mmpretrain: sparse encoder (ConvNeXt V2, ConvNeXt, ResNet), U-Net decoder.

Modifications:
* The mask is split into kept and thrown units of 32 x 32 pixels. The projections and the decoder
  run on visible and kept units only, each as a small map with a border of one position; thrown
  units are zero to the convolutions, and no batch norm counts them.
* The pixels of thrown units are aggregated from the predicted pixels of the present units: the
  decoder's last layer is linear in each position, so its outputs are taken as its features.
* The head compares supervised units only, by the framework's own loss.

Saves: 43 to 49 % of the decoder and the projections, 23 % of ConvNeXt V2 tiny in all. The encoder
is untouched: ``PackedSparseConvNeXt`` makes it sparse, with or without this adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models import SparK, SparKLightDecoder, SparKPretrainHead
from torch import Tensor, nn

from ...core import PartialReconstruction
from ...packed.convolution import conv3x3, upsample2x
from ...packed.units import Units
from ..dense import fixed_positions
from ..registry import ADAPTERS
from ..seams import Seams
from .pixels import check_channels

_SCALES = 4


class PRSparK(SparK):
    """SparK that splits its mask into kept and thrown units."""

    partial: PartialReconstruction

    def mask(
        self,
        shape: torch.Size,
        device: torch.device | str,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Upstream's active mask (B, 1, f, f), after splitting it."""
        active = super().mask(shape, device, generator)
        length = self.feature_map_size**2
        self.partial(~active.flatten(1), length - self.len_keep)
        return active


class _Present:
    """Access to the split of the step that is running."""

    partial: PartialReconstruction

    def _units(self) -> Units:
        partition = self.partial.current()
        return Units(partition.present, partition.grid)


class PRConvProjector(_Present, nn.Conv2d):
    """Projection of present units: dense map (B, C, H, W) -> unit maps (B * U, C_out, s, s)."""

    def forward(self, input: Tensor) -> Tensor:
        """Project (B, C, H, W) -> (B * U, C_out, s, s)."""
        units = self._units()
        maps = units.cut(input)
        return super().forward(maps) if self.kernel_size[0] == 1 else conv3x3(self, maps, units)


class PRIdentityProjector(_Present, nn.Identity):
    """The same where the widths are equal and nothing is projected."""

    def forward(self, input: Tensor) -> Tensor:
        """Cut (B, C, H, W) -> (B * U, C, s, s)."""
        return self._units().cut(input)


class PRSparKLightDecoder(_Present, SparKLightDecoder):
    """U-Net decoder of present units."""

    def forward(self, to_dec: Sequence[Tensor | None]) -> Tensor:
        """Predict the masked units.

        Args:
            to_dec: unit maps (B * U, C, s, s) of the projections, smallest scale first.

        Returns:
            (B, n, D) pixels at the supervised positions: kept, then thrown.
        """
        partition, units = self.partial.current(), self._units()
        x: Any = 0
        for i, module in enumerate(self.decoder):
            if i < len(to_dec) and to_dec[i] is not None:
                x = x + to_dec[i]
            x = upsample2x(module.upsample, x, units)
            for block in module.conv_blocks:
                x = block.activate1(block.norm1(conv3x3(block.conv1, x, units)))
                x = block.activate2(block.norm2(conv3x3(block.conv2, x, units)))
        pixels = self.proj(x).permute(0, 2, 3, 1).reshape(*partition.present.shape, -1)
        queries = fixed_positions(partition.grid, pixels.shape[-1], pixels.dtype, pixels.device)
        return self.partial.reconstruct(partition, pixels, queries)


class PRSparKPretrainHead(SparKPretrainHead):
    """SparK head that compares supervised units only."""

    partial: PartialReconstruction

    def forward(self, pred: Tensor, target: Tensor, active_mask: Tensor) -> Tensor:
        """Upstream's loss: pred (B, n, D), target (B, C, H, W) image, active_mask (B, 1, f, f)."""
        partition = self.partial.take(len(pred))
        mask = self.partial.loss_mask(~active_mask.flatten(1), partition)
        target = self.partial.at_supervised(self.construct_target(target), partition)
        return self.loss(pred, target, self.partial.at_supervised(mask, partition))


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.spark.SparK')
def spark(model: Any) -> Seams:
    """Seams: the mask, the projections and the decoder, which mmpretrain calls the neck.

    Raises:
        ValueError: a decoder that units or the images do not fit.
    """
    _check_decoder(model)
    size = model.feature_map_size
    return Seams(
        host='neck',
        guests=('', 'head', *(f'enc_dec_projectors.{i}' for i in range(_SCALES))),
        classes={
            SparK: PRSparK,
            nn.Conv2d: PRConvProjector,
            nn.Identity: PRIdentityProjector,
            SparKLightDecoder: PRSparKLightDecoder,
            SparKPretrainHead: PRSparKPretrainHead,
        },
        grid=(size, size),
        width=model.neck.proj.out_channels * model.downsample_raito**2,
        num_masked=size**2 - model.len_keep,
        absolute_positions=False,
    )


def _check_decoder(model: Any) -> None:
    if len(model.enc_dec_projectors) != _SCALES:
        raise ValueError(
            f'SparK with {len(model.enc_dec_projectors)} scales: set '
            f'backbone.out_indices=(0, 1, 2, 3), {_SCALES} scales'
        )
    if 2 ** len(model.neck.decoder) != model.downsample_raito:
        raise ValueError(
            f'the decoder upsamples by {2 ** len(model.neck.decoder)}, but a masked unit has '
            f'{model.downsample_raito} pixels: set neck.upsample_ratio={model.downsample_raito}'
        )
    kernels = {module.upsample.kernel_size[0] for module in model.neck.decoder}
    if kernels != {4}:
        raise ValueError(
            f'neck.kernel_size={sorted(kernels)}: partial reconstruction needs the default, 4'
        )
    if type(model.head).construct_target is SparKPretrainHead.construct_target:
        if model.head.patch_size != model.downsample_raito:
            raise ValueError(
                f'head.patch_size={model.head.patch_size}, but a masked unit has '
                f'{model.downsample_raito} pixels: set head.patch_size={model.downsample_raito}'
            )
        check_channels(
            model,
            model.neck.proj.out_channels,
            'SparKLightDecoder always predicts 3; give it another last layer (neck.proj) in a '
            'subclass, or set backbone.in_channels=3',
        )
