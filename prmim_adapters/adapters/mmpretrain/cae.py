# SPDX-License-Identifier: Apache-2.0
"""CAE in mmpretrain.

Modifications:
* ``CAENeck.forward`` runs regressor and decoder on kept tokens; the regressor's keys are visible and
  kept tokens. The layers are called unchanged.
* Two light stages. One reconstructs what enters the decoder, the regressor's output + position, of
  thrown tokens, from visible and kept ones; less its position it is the prediction of the teacher's
  features. The other reconstructs the decoder's output from kept tokens alone, since no others are
  in it; its queries are the first one's output.
* The head compares supervised tokens with their targets. Both losses average over tokens, so another
  weight for thrown ones is an average of the losses over kept and over thrown tokens.
* The encoder takes the mask as upstream, and partitions it for the neck. The teacher stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from mmpretrain.models import CAEHead, CAENeck, CAEPretrainViT
from torch import Tensor

from ...core import PartialReconstruction, TokenPartition, gather_tokens
from ..averages import supervised_mean
from ..registry import ADAPTERS
from ..seams import Seams


class PRCAEPretrainViT(CAEPretrainViT):
    """CAE's encoder, which sees visible tokens only, with the mask partitioned for the neck."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, mask: Tensor | None) -> Any:
        """Upstream's: images (B, 3, H, W), mask (B, L) bool."""
        if mask is not None:
            self.partial(mask)
        return super().forward(x, mask)


class PRCAENeck(CAENeck):
    """CAE's regressor and decoder on present tokens only."""

    partial: PartialReconstruction

    def forward(
        self, x_unmasked: Tensor, pos_embed_masked: Tensor, pos_embed_unmasked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict tokens and features of the masked patches.

        Args:
            x_unmasked: (B, V, C), the encoder's output.
            pos_embed_masked: (B, M, C), row-major.
            pos_embed_unmasked: (B, V, C), row-major.

        Returns:
            Logits (B, n, classes) and features (B, n, C) at the supervised positions: kept, then
            thrown.
        """
        partition, reconstruct = self.partial.current(), self.partial.reconstruct
        num_kept = partition.kept.shape[1]
        positions = gather_tokens(pos_embed_masked, _ranks(partition))
        here, there = positions[:, :num_kept], positions[:, num_kept:]

        x = self.mask_token.expand(len(x_unmasked), num_kept, -1)
        seen = torch.cat((pos_embed_unmasked, here), dim=1)
        for regressor in self.regressors:
            x = regressor(x, torch.cat((x_unmasked, x), dim=1), here, seen)
        latent = self.norm_regressor(x)
        known = torch.cat((x_unmasked, latent), dim=1) + seen
        entering = reconstruct(partition, known, self.mask_token + there)[:, num_kept:]

        x = latent + here
        for decoder in self.decoders:
            x = decoder(x, rel_pos_bias=None)
        masked_only = replace(partition, visible=partition.visible[:, :0])
        decoded = reconstruct(masked_only, self.norm_decoder(x), entering, which=1)
        thrown = entering - there[:, : entering.shape[1]]  # none in plain partial reconstruction
        return self.head(decoded), torch.cat((latent, thrown), dim=1)


class PRCAEHead(CAEHead):
    """CAE's two losses of supervised tokens."""

    partial: PartialReconstruction

    def loss(
        self,
        logits: Tensor,
        logits_target: Tensor,
        latent_pred: Tensor,
        latent_target: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Upstream's losses.

        Args:
            logits: (B * n, classes) at the supervised positions.
            logits_target: (B, classes, H, W), the tokenizer's.
            latent_pred: (B, n, C) at the supervised positions.
            latent_target: (B, M, C), the teacher's, row-major.
            mask: (B, L) bool; the partition says the same.
        """
        partition = self.partial.take(len(latent_pred))
        target = self.partial.at_supervised(self._generate_target(logits_target), partition)
        logits = logits.unflatten(0, target.shape)
        latent_target = gather_tokens(latent_target, _ranks(partition)[:, : target.shape[1]])
        return supervised_mean(
            self.partial,
            partition,
            lambda columns: self.loss_module(
                logits[:, columns].flatten(0, 1),
                target[:, columns].flatten(),
                latent_pred[:, columns],
                latent_target[:, columns],
            ),
        )


def _ranks(partition: TokenPartition) -> Tensor:
    """(B, M) int64: which of the masked tokens in row-major order the kept and thrown ones are."""
    return partition.masked.argsort(dim=1).argsort(dim=1)


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.cae.CAE')
def cae(model: Any) -> Seams:
    """Seams: regressor and decoder, which are the neck; the encoder's mask; the losses."""
    height, width = model.backbone.patch_resolution
    return Seams(
        host='neck',
        guests=('backbone', 'head'),
        classes={CAENeck: PRCAENeck, CAEPretrainViT: PRCAEPretrainViT, CAEHead: PRCAEHead},
        grid=(height, width),
        width=model.neck.embed_dim,
        num_masked=model.neck.mask_token_num,
        num_features=2,
    )
