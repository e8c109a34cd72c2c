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

from typing import Any

from mmpretrain.models import HiViT, MAEPretrainDecoder, MAEPretrainHead, MIMHead
from torch import Tensor

from ...core import PartialReconstruction
from ...core.partition import Grid
from ..base import Adapter, patch_grid
from ..mae_decoder import decode_supervised
from ..registry import ADAPTERS


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
        return decode_supervised(self, self.decoder_blocks, self.partial, x, ids_restore)


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
