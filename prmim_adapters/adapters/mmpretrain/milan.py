# SPDX-License-Identifier: Apache-2.0
"""MILAN in mmpretrain.

Modifications:
* ``MILANPretrainDecoder.forward`` lets its blocks query for kept tokens only, with cls, visible and
  kept tokens as keys. The blocks are called unchanged; the order of keys does not matter to them.
* It returns all rows, as upstream, whose loss covers cls and visible tokens too.
* The head weighs thrown tokens by the mask that the framework's own head takes and MILAN does not use.
* Images need not be square (see ``frameworks/rectangles.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import MILANPretrainDecoder, MIMHead
from torch import Tensor

from ...core import PartialReconstruction, scatter_tokens, table_rows
from ...frameworks.rectangles import allow_rectangles
from ..registry import ADAPTERS
from ..seams import Seams
from .pixels import check_num_patches

allow_rectangles()


class PRMILANPretrainDecoder(MILANPretrainDecoder):
    """MILAN's cross-attention decoder on present tokens only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, ids_restore: Tensor, ids_keep: Tensor, ids_dump: Tensor) -> Tensor:
        """Predict the features of all tokens.

        Args:
            x: (B, 1 + V, C_encoder), cls and the latent of the visible tokens in shuffled order.
            ids_restore: (B, L) int64, rank of each position in that order; ranks from V on are
                masked.
            ids_keep: (B, V) int64, positions of the visible tokens in that order.
            ids_dump: (B, M) int64, masked positions; the mask says the same.

        Returns:
            (B, 1 + L, D): cls, then the grid; zeros at thrown tokens where they carry no loss.
        """
        (batch_size, length), num_visible = ids_restore.shape, ids_keep.shape[1]
        mask, reads = ids_restore >= num_visible, self.partial.changes_loss
        partition = self.partial(mask, length - num_visible, loss_reads=reads)
        partition = replace(partition, visible=ids_keep)
        positions = self.decoder_pos_embed[0, 1:]
        queries = self.mask_token[0] + positions

        first = self.decoder_pos_embed[:, :1].expand(batch_size, -1, -1)
        seen = torch.cat((first, table_rows(positions, ids_keep)), dim=1) + self.decoder_embed(x)
        kept = table_rows(queries, partition.kept)
        in_order = torch.arange(num_visible + kept.shape[1], device=x.device)
        for block in self.decoder_blocks:
            kept = block(kept, seen, in_order.expand(batch_size, -1))
        features = self.decoder_norm(torch.cat((seen, kept), dim=1))
        masked = self.partial.reconstruct(partition, features[:, 1:], queries)
        rows = torch.cat((features[:, : 1 + num_visible], masked), dim=1)
        index = torch.cat((ids_keep, self.partial.supervised(partition)), dim=1)
        index = F.pad(index + 1, (1, 0))  # cls is row 0
        return scatter_tokens(self.decoder_pred(rows), index, 1 + length)


class PRMILANHead(MIMHead):
    """MILAN's loss, thrown tokens at their weight."""

    partial: PartialReconstruction

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Upstream's loss: pred and target (B, 1 + L, D); MILAN hands no mask on."""
        if self.partial.changes_loss:
            partition = self.partial.take(len(pred))
            everywhere = pred.new_ones(len(pred), partition.length)
            mask = F.pad(self.partial.loss_mask(everywhere, partition), (1, 0), value=1.0)
        return super().loss(pred, target, mask)


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.milan.MILAN')
def milan(model: Any) -> Seams:
    """Seams: the decoder, and the loss over all of its rows.

    Raises:
        ValueError: the decoder takes features of another width than the encoder's, or has positions
            for another number of patches.
    """
    backbone, decoder = model.backbone, model.neck
    taken = decoder.decoder_embed.in_features
    if taken != backbone.embed_dims:
        raise ValueError(
            f'the encoder has {backbone.embed_dims} channels, but neck.embed_dim={taken} (which '
            f"mmpretrain's own ViT-B config leaves at its default): set "
            f'neck.embed_dim={backbone.embed_dims}'
        )
    height, width = backbone.patch_resolution
    length = height * width
    check_num_patches((height, width), decoder.num_patches)
    return Seams(
        host='neck',
        guests=('head',),
        classes={MILANPretrainDecoder: PRMILANPretrainDecoder, MIMHead: PRMILANHead},
        grid=(height, width),
        width=decoder.decoder_pred.in_features,
        # as MILANViT.attention_masking counts them
        num_masked=length - int(length * (1 - backbone.mask_ratio)),
        num_prefix=1,
    )
