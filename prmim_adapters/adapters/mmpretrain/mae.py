# SPDX-License-Identifier: Apache-2.0
"""MAE and its relatives in mmpretrain: MAE (ViT, HiViT), MFF, EVA.

Modifications:
* ``MAEPretrainDecoder.forward`` runs its blocks on prefix + visible + kept tokens, its prediction
  layer on supervised tokens, and returns those rows only.
* The heads hand target and mask at the same rows to the framework's own loss module.
* Images need not be square (see ``frameworks/rectangles.py``).
* With a backbone that emits no cls token (HiViT) no prefix is assumed. Upstream takes the first
  visible token for the cls token there, which shifts every visible token by one position; while
  tokens are thrown, each is put at its own position.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models import HiViT, MAEPretrainDecoder, MAEPretrainHead, MIMHead
from torch import Tensor

from ...core import PartialReconstruction
from ...core.partition import Grid
from ...frameworks.rectangles import allow_rectangles
from ..mae_decoder import decode_supervised
from ..registry import ADAPTERS
from ..seams import Seams, patch_grid
from .pixels import check_num_patches, check_patches

allow_rectangles()


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
        rows, _ = decode_supervised(self, self.decoder_blocks, self.partial, x, ids_restore)
        return rows


class PRMAEPretrainHead(MAEPretrainHead):
    """MAE head that compares supervised tokens only."""

    partial: PartialReconstruction

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: pred (B, n, D), target (B, C, H, W) image, mask (B, L)."""
        partition = self.partial.take(len(pred))
        target = self.partial.at_supervised(self.construct_target(target), partition)
        mask = self.partial.loss_mask(mask, partition)
        return self.loss_module(pred, target, self.partial.at_supervised(mask, partition))


class PRMIMHead(MIMHead):
    """The same for feature targets (EVA)."""

    partial: PartialReconstruction

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Upstream's loss: pred (B, n, D), target (B, L, D), mask (B, L)."""
        assert mask is not None, 'EVA always hands its mask on'
        partition = self.partial.take(len(pred))
        target = self.partial.at_supervised(target, partition)
        mask = self.partial.loss_mask(mask, partition)
        return super().loss(pred, target, self.partial.at_supervised(mask, partition))


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.mae.MAE')
@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.eva.EVA')
def mae(model: Any) -> Seams:
    """Seam: the decoder, which mmpretrain calls the neck. MFF is a subclass of MAE.

    Raises:
        ValueError: encoder, decoder and head disagree about the patches.
    """
    backbone, decoder = model.backbone, model.neck
    image_size, patch_size = _sizes(backbone)
    grid = patch_grid(image_size, patch_size, where='backbone.img_size')
    length = grid[0] * grid[1]
    check_num_patches(grid, decoder.num_patches)
    check_patches(model, patch_size, decoder.decoder_pred.out_features)
    return Seams(
        host='neck',
        guests=('head',),
        classes={
            MAEPretrainDecoder: PRMAEPretrainDecoder,
            MAEPretrainHead: PRMAEPretrainHead,
            MIMHead: PRMIMHead,
        },
        grid=grid,
        width=decoder.decoder_pred.in_features,
        # as MAEViT.random_masking counts them
        num_masked=length - int(length * (1 - backbone.mask_ratio)),
        num_prefix=0 if isinstance(backbone, HiViT) else 1,
    )


def _sizes(backbone: Any) -> tuple[Grid, Grid]:
    """Image and patch size in pixels, (H, W) each."""
    embed = backbone.patch_embed
    if isinstance(backbone, HiViT):
        return embed.img_size, embed.patch_size
    return backbone.img_size, embed.projection.kernel_size
