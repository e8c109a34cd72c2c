# SPDX-License-Identifier: Apache-2.0
"""iTPN in mmpretrain, with pixels as target and with features of CLIP.

Modifications, pixels:
* The decoder's blocks run on visible and kept tokens, by the means of a declaration (see
  :mod:`..declared`): everything before and after them stays upstream's, so masked rows enter with
  three times the mask token, once for each level of the pyramid, and thrown ones pass the final norm.
* Images need not be square (see ``frameworks/rectangles.py``).
* The head weighs thrown tokens by its mask.

Modifications, CLIP:
* ``iTPNHiViT.forward_clip`` runs its main blocks on visible and kept tokens. The blocks' relative
  position bias is gathered for each image, from each block's own table.
* It hands the pyramid supervised tokens only. No layer of the pyramid mixes tokens and the head reads
  masked ones only, so that is exact, and saves the pyramid of visible tokens.
* The head compares those rows. Its loss averages over tokens, so another weight for thrown ones is an
  average of its losses over kept and over thrown tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import MAEPretrainHead, iTPNClipHead, iTPNPretrainDecoder
from mmpretrain.models.backbones.hivit import Attention, PatchMerge
from mmpretrain.models.selfsup.itpn import iTPNHiViT
from torch import Tensor, nn

from ...core import PartialReconstruction, TokenPartition, gather_tokens, table_rows
from ...frameworks.rectangles import allow_rectangles
from ..averages import supervised_mean
from ..blocks import Pass, PRModuleList
from ..declared import Declaration
from ..masks import Restore
from ..registry import ADAPTERS
from ..seams import Seams
from ..vit_encoder import Pairs, pair_bias
from .pixels import check_num_patches, check_patches

allow_rectangles()

_FRAMEWORK = 'mmpretrain.models.selfsup.itpn.iTPN'
_PIXEL_DECODER = Declaration(
    framework=_FRAMEWORK,
    host='neck',
    arguments=('x', 'ids_restore'),
    blocks='decoder_blocks',
    mask=Restore(prefix=0),
    grid=lambda model: tuple(model.backbone.patch_embed.patches_resolution),
    loss=('loss', 'mask'),  # of the head
)


class PRiTPNPretrainDecoder(iTPNPretrainDecoder):
    """iTPN's decoder of pixels, with its blocks on present tokens only."""

    partial: PartialReconstruction

    def forward(self, x: tuple[Tensor, ...], ids_restore: Tensor) -> Tensor:
        """Upstream's: features of visible tokens at three levels -> (B, L, D), grid order."""
        mask = _PIXEL_DECODER.mask(self, {'x': x[-1], 'ids_restore': ids_restore})
        with self.decoder_blocks.following(Pass(self.partial, _PIXEL_DECODER, mask)):
            return super().forward(x, ids_restore)


class PRiTPNPixelHead(MAEPretrainHead):
    """iTPN's loss of pixels, thrown tokens at their weight."""

    partial: PartialReconstruction

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: pred (B, L, D), target (B, C, H, W) image, mask (B, L)."""
        if self.partial.changes_loss:
            mask = self.partial.loss_mask(mask, self.partial.take(len(mask)))
        return super().loss(pred, target, mask)


class PRHiViTAttention(Attention):
    """HiViT's attention, also with a position bias of each image's own present tokens."""

    def forward(self, x: Tensor, rpe_index: Any = None, mask: Tensor | None = None) -> Tensor:
        """As upstream, or with ``rpe_index`` of the tokens' pairs."""
        if not isinstance(rpe_index, Pairs):
            return super().forward(x, rpe_index, mask)
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = pair_bias(self.relative_position_bias_table, self.relative_position_index, rpe_index)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class PRiTPNHiViT(iTPNHiViT):
    """iTPN's encoder of masked images, whose main blocks run on present tokens only."""

    partial: PartialReconstruction

    def forward_clip(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Encode masked images.

        Args:
            x: images (B, 3, H, W).
            mask: (B, H / patch, W / patch), 1 = masked; None is upstream's forward of whole images.

        Returns:
            Features of the supervised tokens at three levels: (B, n, 4, 4, C / 4),
            (B, n, 2, 2, C / 2) and (B, n, C).
        """
        if mask is None:
            return super().forward_clip(x, None)
        partition = self.partial(mask.flatten(1).bool())
        supervised = self.partial.supervised(partition)
        levels, x = [], self.patch_embed(x)
        for block in self.blocks[: -self.num_main_blocks]:
            if isinstance(block, PatchMerge):
                levels.append(_patches(x, supervised))
            x = block(x)
        tokens, queries = self._embedded(x[..., 0, 0, :], partition)
        tokens = self.pos_drop(tokens)
        pairs = Pairs.of(partition.present, partition.length) if self.rpe else None
        for block in self.blocks[-self.num_main_blocks :]:
            tokens = block(tokens, pairs)
        return (*levels, self.partial.reconstruct(partition, tokens, queries))

    def _embedded(self, x: Tensor, partition: TokenPartition) -> tuple[Tensor, Tensor]:
        """Present tokens (B, N, C) of x (B, L, C), with positions; queries (L, C)."""
        token, positions = self.mask_token[0], self.pos_embed[0]
        visible = gather_tokens(x, partition.visible)
        kept = token.expand(*partition.kept.shape, -1)
        # As upstream, autocast leaves the residual stream in the parameters' type.
        tokens = torch.cat((visible.to(token.dtype), kept), dim=1)
        return tokens + table_rows(positions, partition.present), token + positions


class PRiTPNClipHead(iTPNClipHead):
    """iTPN's loss of CLIP's features, of supervised tokens."""

    partial: PartialReconstruction

    def loss(self, feats: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Upstream's loss: feats (B, n, C), target (B, L, D), mask (B, H, W)."""
        partition = self.partial.take(len(feats))
        target = self.partial.at_supervised(target, partition)
        logits = self.cls_head(feats)
        (loss,) = supervised_mean(
            self.partial,
            partition,
            lambda columns: (
                self.loss_module(
                    logits[:, columns].flatten(0, 1), target[:, columns].flatten(0, 1)
                ),
            ),
        )
        return loss


def _patches(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: x (B, L, h, w, C), index (B, n) -> (B, n, h, w, C)."""
    return gather_tokens(x.flatten(2), index).unflatten(2, x.shape[2:])


@ADAPTERS.register_module(framework=_FRAMEWORK)
def itpn(model: Any) -> Seams:
    """Seams of either kind of iTPN.

    Raises:
        ValueError: encoder, decoder and head disagree about the patches.
    """
    return _pixel(model) if model.backbone.reconstruction_type == 'pixel' else _clip(model)


def _pixel(model: Any) -> Seams:
    """The decoder's blocks; the loss."""
    backbone, decoder = model.backbone, model.neck
    height, width = backbone.patch_embed.patches_resolution
    length = height * width
    check_num_patches((height, width), decoder.num_patches)
    check_patches(model, backbone.patch_embed.patch_size, decoder.decoder_pred.out_features)
    return Seams(
        host='neck',
        guests=(_PIXEL_DECODER.blocks_path, 'head'),
        classes={
            iTPNPretrainDecoder: PRiTPNPretrainDecoder,
            nn.ModuleList: PRModuleList,
            MAEPretrainHead: PRiTPNPixelHead,
        },
        grid=(height, width),
        width=decoder.decoder_pred.in_features,
        # as iTPNHiViT.masking_id counts them
        num_masked=length - int(length * (1 - backbone.mask_ratio)),
    )


def _clip(model: Any) -> Seams:
    """The encoder's main blocks, and their attention; the loss."""
    backbone = model.backbone
    height, width = backbone.patch_embed.patches_resolution
    first = len(backbone.blocks) - backbone.num_main_blocks
    return Seams(
        host='backbone',
        guests=('head', *(f'backbone.blocks.{i}.attn' for i in range(first, len(backbone.blocks)))),
        classes={
            iTPNHiViT: PRiTPNHiViT,
            Attention: PRHiViTAttention,
            iTPNClipHead: PRiTPNClipHead,
        },
        grid=(height, width),
        width=backbone.embed_dims,
    )
