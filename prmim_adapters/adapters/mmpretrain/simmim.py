# SPDX-License-Identifier: Apache-2.0
"""SimMIM in mmpretrain: the Swin backbone, and this package's ViT.

Modifications:
* ``SimMIMViT.forward`` encodes cls + visible + kept 16-px tokens (see ``beit.py``). Thrown ones can
  come back before its last layers.
* ``SimMIMSwinTransformer.forward`` embeds visible 32-px units and runs all four stages on visible
  and kept units (see ``packed/swin.py``). Thrown units are absent as keys: that is the method; with
  none thrown the backbone is upstream's.
* Both reconstruct thrown tokens from their last features and return the supervised tokens as a
  feature map one token wide, (B, C, n, 1). The neck is linear per token (1x1 convolution and pixel
  shuffle), so it is unchanged and turns them into a column of patches.
* The head hands the same column of patches of image and mask to the framework's own loss module.
"""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models import SimMIMHead, SimMIMLinearDecoder
from mmpretrain.models.selfsup.simmim import SimMIMSwinTransformer
from torch import Tensor

from ...core import PartialReconstruction, TokenPartition
from ...frameworks.norm_target import NormTargetSimMIMHead
from ...frameworks.simmim_vit import SimMIMViT
from ...packed.swin import encode_units, unit_grid, unit_side
from ...packed.units import Units, unit_mask
from ..dense import feature_map, fixed_positions
from ..registry import ADAPTERS
from ..seams import Seams
from .beit import check_relative_bias, encode_present, num_blocks
from .pixels import check_channels
from .swin import check_packable, embed_units, stages


class PRSimMIMViT(SimMIMViT):
    """SimMIM's ViT on present tokens only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Encode masked images; (B, C, n, 1), the supervised tokens as a column.

        Args:
            x: images (B, 3, H, W).
            mask: (B, H / patch, W / patch), 1 = masked.
        """
        if mask is None:
            return super().forward(x, mask)
        encoded = encode_present(self, x, mask)
        tokens = encoded.features[-1][:, 1:]
        return (_column(self.partial.reconstruct(encoded.seen, tokens, encoded.queries)),)


class PRSimMIMSwinTransformer(SimMIMSwinTransformer):
    """SimMIM's Swin on present units only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Encode masked images; (B, C, n, 1), the supervised units as a column.

        Args:
            x: images (B, 3, H, W).
            mask: (B, H / 4, W / 4), 1 = masked, constant inside every unit.
        """
        if mask is None:
            return super().forward(x, mask)
        grid = self.partial.grid
        partition = self.partial(unit_mask(mask, grid))
        tokens = self.drop_after_pos(self._present_tokens(x, partition))
        features = encode_units(tokens, stages(self, grid), Units(partition.present, grid))
        features = getattr(self, f'norm{self.num_layers - 1}')(features)
        queries = fixed_positions(grid, features.shape[-1], self.mask_token.dtype, x.device)
        return (_column(self.partial.reconstruct(partition, features, queries)),)

    def _present_tokens(self, x: Tensor, partition: TokenPartition) -> Tensor:
        """(B, N * side * side, C) packed tokens of visible and kept units."""
        visible = embed_units(self, x, Units(partition.visible, partition.grid))
        count = partition.kept.shape[1] * unit_side(self.num_layers) ** 2
        kept = self.mask_token.expand(x.shape[0], count, -1)
        tokens = torch.cat((visible.to(kept.dtype), kept), dim=1)
        if self.use_abs_pos_embed:
            positions = self.absolute_pos_embed.expand(x.shape[0], -1, -1)
            positions = feature_map(positions, self.patch_resolution)
            tokens = tokens + Units(partition.present, partition.grid).gather(positions)
        return tokens


class PRSimMIMHead(SimMIMHead):
    """SimMIM head that compares the patches of supervised tokens only."""

    partial: PartialReconstruction

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss.

        Args:
            pred: (B, 3, n * s, s), a column of s x s patches.
            target: images (B, 3, H, W).
            mask: (B, H / patch, W / patch), 1 = masked.
        """
        grid, side = self.partial.grid, pred.shape[-1] // self.patch_size
        partition = self.partial.take(len(pred))
        patches = Units(self.partial.supervised(partition), grid).cut(target)
        patches = patches.unflatten(0, (len(target), -1)).transpose(1, 2).flatten(2, 3)
        weights = self.partial.loss_mask(unit_mask(mask, grid, check=False), partition)
        weights = self.partial.at_supervised(weights, partition).repeat_interleave(side, dim=1)
        return super().loss(pred, patches, weights[..., None].expand(-1, -1, side))


class PRNormTargetSimMIMHead(NormTargetSimMIMHead, PRSimMIMHead):
    """The same on normalised images: they are normalised whole, and then cut."""


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.simmim.SimMIM')
def simmim(model: Any) -> Seams:
    """Seams: the backbone, and the head's view of image and mask.

    Raises:
        ValueError: an encoder that cannot run on present tokens or units, or another size or other
            channels than those of the images are predicted.
    """
    backbone = model.backbone
    height, width = backbone.patch_resolution
    is_swin = isinstance(backbone, SimMIMSwinTransformer)
    if is_swin:
        check_packable(backbone)
        height, width = unit_grid(height, width, backbone.num_layers, 4, 'an img_size')
        list(stages(backbone, (height, width)))  # refuses windows that are larger than their map
    else:
        check_relative_bias(backbone)
    _check_predicted(model, backbone.patch_resolution[0] // height)
    return Seams(
        host='backbone',
        guests=('head',),
        classes={
            SimMIMViT: PRSimMIMViT,
            SimMIMSwinTransformer: PRSimMIMSwinTransformer,
            SimMIMHead: PRSimMIMHead,
            NormTargetSimMIMHead: PRNormTargetSimMIMHead,
        },
        grid=(height, width),
        width=model.neck.decoder[0].in_channels,
        num_prefix=0 if is_swin else 1,
        absolute_positions=False,
        num_blocks=0 if is_swin else num_blocks(backbone),
    )


def _check_predicted(model: Any, side: int) -> None:
    """What mmpretrain's neck predicts for a unit of ``side`` tokens is what its head compares.

    One channel on either side is compared with all of the other, as upstream does.
    """
    if not isinstance(model.neck, SimMIMLinearDecoder):
        return
    layer, shuffle = model.neck.decoder
    embed = model.backbone.patch_embed.projection
    patch = embed.stride[0]
    if type(model.head).loss is SimMIMHead.loss:
        for option, found, expected in (
            ('neck.encoder_stride', shuffle.upscale_factor, side * patch),
            ('head.patch_size', model.head.patch_size, patch),
        ):
            if found != expected:
                raise ValueError(
                    f'{option}={found}, but the backbone has patches of {patch} pixels and puts '
                    f'{side}x{side} of them into a token: set {option}={expected}'
                )
    predicted = layer.out_channels // shuffle.upscale_factor**2
    if 1 in (predicted, embed.in_channels):
        return
    check_channels(
        model,
        predicted,
        'SimMIMLinearDecoder always predicts 3; use a neck of your own, or set '
        'backbone.in_channels=3',
    )


def _column(tokens: Tensor) -> Tensor:
    """(B, n, C) -> (B, C, n, 1)."""
    return tokens.transpose(1, 2)[..., None]
