# SPDX-License-Identifier: Apache-2.0
"""MAE and its relatives in mmpretrain: MAE (ViT, HiViT), MFF, EVA.

Modifications:
* ``MAEPretrainDecoder.forward`` runs its blocks on prefix + visible + kept tokens, its prediction
  layer on supervised tokens, and returns those rows only.
* The heads hand target and mask at the same rows to the framework's own loss module.
* With a backbone that emits no cls token (HiViT) no prefix is assumed. Upstream takes the first
  visible token for the cls token there, which shifts every visible token by one position; this
  adapter puts each token at its own position, so ratio 0 does not reproduce upstream for HiViT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mmpretrain.models import HiViT, MAEPretrainDecoder, MAEPretrainHead, MIMHead
from torch import Tensor

from ..core import PartialReconstruction, table_rows
from ..core.partition import Grid
from .base import Adapter, patch_grid
from .registry import ADAPTERS


class PRMAEPretrainDecoder(MAEPretrainDecoder):
    """MAE decoder on present tokens only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict the masked patches.

        Args:
            x: (B, prefix + V, C_encoder), latent of the visible tokens in shuffled order.
            ids_restore: (B, L) int64, rank of each position in that order; ranks from V on are
                masked.

        Returns:
            (B, n, D) predictions at the supervised positions: kept, then thrown.
        """
        prefix, length = self.partial.num_prefix, ids_restore.shape[1]
        num_visible = x.shape[1] - prefix
        partition = self.partial.split(ids_restore >= num_visible, length - num_visible)
        partition = replace(partition, visible=ids_restore.argsort(dim=1)[:, :num_visible])
        positions = self.decoder_pos_embed[0, 1:]
        queries = self.mask_token[0] + positions

        x = self.decoder_embed(x)
        visible = x[:, prefix:] + table_rows(positions, partition.visible)
        present = [visible, table_rows(queries, partition.kept).to(visible.dtype)]
        if prefix:
            present.insert(0, x[:, :prefix] + self.decoder_pos_embed[:, :prefix])
        x = torch.cat(present, dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        features = self.decoder_norm(x)[:, prefix:]
        masked = self.partial.reconstruct(partition, features, queries)
        return self.decoder_pred(masked)


class PRMAEPretrainHead(MAEPretrainHead):
    """MAE head that compares supervised tokens only."""

    partial: PartialReconstruction

    def construct_target(self, target: Tensor) -> Tensor:
        """Patches (B, n, D) at the supervised positions."""
        return self.partial.at_supervised(super().construct_target(target))

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: pred (B, n, D), target (B, C, H, W) image, mask (B, L)."""
        mask = self.partial.at_supervised(self.partial.loss_mask(mask))
        return super().loss(pred, target, mask)


class PRMIMHead(MIMHead):
    """The same for feature targets (EVA)."""

    partial: PartialReconstruction

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Upstream's loss: pred (B, n, D), target (B, L, D), mask (B, L)."""
        assert mask is not None, 'EVA always hands its mask on'
        mask = self.partial.at_supervised(self.partial.loss_mask(mask))
        return super().loss(pred, self.partial.at_supervised(target), mask)


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.mae.MAE')
@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.eva.EVA')
class MAEAdapter(Adapter):
    """Seam: the decoder, which mmpretrain calls the neck. MFF is a subclass of MAE."""

    classes = {
        MAEPretrainDecoder: PRMAEPretrainDecoder,
        MAEPretrainHead: PRMAEPretrainHead,
        MIMHead: PRMIMHead,
    }
    host = 'neck'
    guests = ('head',)

    @classmethod
    def grid(cls, model: Any) -> Grid:
        """The patch grid of the encoder, checked against the decoder's."""
        backbone, decoder = model.backbone, model.neck
        height, width = patch_grid(*_sizes(backbone), where='backbone.img_size')
        if height * width != decoder.num_patches:
            raise ValueError(
                f'backbone makes {height}x{width} = {height * width} patches, but '
                f'neck.num_patches={decoder.num_patches}: set neck.num_patches={height * width}'
            )
        return height, width

    @classmethod
    def width(cls, model: Any) -> int:
        """Decoder width."""
        return model.neck.decoder_pred.in_features

    @classmethod
    def num_masked(cls, model: Any) -> int:
        """As ``MAEViT.random_masking`` counts them."""
        length = model.neck.num_patches
        return length - int(length * (1 - model.backbone.mask_ratio))

    @classmethod
    def num_prefix(cls, model: Any) -> int:
        """One cls token; none from HiViT."""
        return 0 if isinstance(model.backbone, HiViT) else 1


def _sizes(backbone: Any) -> tuple[Grid, Grid]:
    """Image and patch size in pixels, (H, W) each."""
    embed = backbone.patch_embed
    if isinstance(backbone, HiViT):
        return embed.img_size, embed.patch_size
    return backbone.img_size, embed.projection.kernel_size
