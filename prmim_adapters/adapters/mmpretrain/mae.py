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
from .channels import check_channels, compares_pixels

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
    height, width = patch_grid(*_sizes(backbone), where='backbone.img_size')
    length = height * width
    if length != decoder.num_patches:
        raise ValueError(
            f'backbone makes {height}x{width} = {length} patches, but '
            f'neck.num_patches={decoder.num_patches}: set neck.num_patches={length}'
        )
    _check_pixels(model)
    return Seams(
        host='neck',
        guests=('head',),
        classes={
            MAEPretrainDecoder: PRMAEPretrainDecoder,
            MAEPretrainHead: PRMAEPretrainHead,
            MIMHead: PRMIMHead,
        },
        grid=(height, width),
        width=decoder.decoder_pred.in_features,
        # as MAEViT.random_masking counts them
        num_masked=length - int(length * (1 - backbone.mask_ratio)),
        num_prefix=0 if isinstance(backbone, HiViT) else 1,
    )


def _check_pixels(model: Any) -> None:
    """As many values must be predicted of a patch as the head, if it is mmpretrain's, compares."""
    head, methods = model.head, ('construct_target', 'patchify')
    if not compares_pixels(head) or not all(_is_upstreams(head, method) for method in methods):
        return
    side = head.patch_size
    predicted, rest = divmod(model.neck.decoder_pred.out_features, side**2)
    if rest or tuple(_sizes(model.backbone)[1]) != (side, side):
        raise ValueError(
            f'head.patch_size={side}, the backbone has patches of {_sizes(model.backbone)[1]}, and '
            f'the neck predicts {model.neck.decoder_pred.out_features} values of each: set '
            'backbone.patch_size, neck.patch_size and head.patch_size to one number'
        )
    check_channels(model, predicted, 'set neck.in_chans, head.in_channels and the backbone alike')


def _is_upstreams(head: Any, method: str) -> bool:
    return getattr(type(head), method, None) is getattr(MAEPretrainHead, method)


def _sizes(backbone: Any) -> tuple[Grid, Grid]:
    """Image and patch size in pixels, (H, W) each."""
    embed = backbone.patch_embed
    if isinstance(backbone, HiViT):
        return embed.img_size, embed.patch_size
    return backbone.img_size, embed.projection.kernel_size
