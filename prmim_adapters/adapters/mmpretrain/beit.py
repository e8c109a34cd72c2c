# SPDX-License-Identifier: Apache-2.0
"""BEiT and BEiTv2 in mmpretrain, and the encoder that they share with SimMIM's ViT.

Modifications:
* ``BEiTPretrainViT.forward`` encodes cls + visible + kept tokens. The relative position bias is
  gathered per image from the one table that all layers share.
* ``BEiT.loss`` runs the neck (BEiTv2's two aggregation layers) on the same tokens, reconstructs
  thrown features from the neck's outputs, and hands the framework's own head every masked token.
* The head averages over tokens, so another weight for thrown ones is an average of its losses over
  kept and over thrown tokens.
* Thrown tokens can come back before BEiT's last layers; BEiTv2's neck reads earlier ones, too.
* A relative position bias per layer (``use_rel_pos_bias=True``) is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from mmpretrain.models.selfsup.beit import BEiT, BEiTPretrainViT
from torch import Tensor

from ...core import PartialReconstruction, TokenPartition, scatter_tokens
from ..averages import supervised_mean
from ..registry import ADAPTERS
from ..seams import Seams
from ..vit_encoder import embed_present, present_bias


class Encoded(NamedTuple):
    """What the encoder knows of one batch.

    Attributes:
        partition: of the batch.
        seen: the partition of the last layer, which has no thrown tokens where they came back.
        queries: (L, C), mask token + position of every grid position.
        bias: (B, heads, 1 + N, 1 + N) relative position bias of cls and present tokens, or None.
        features: (B, 1 + N, C) of each stage in ``out_indices``.
    """

    partition: TokenPartition
    seen: TokenPartition
    queries: Tensor
    bias: Tensor | None
    features: tuple[Tensor, ...]


def encode_present(backbone: Any, x: Tensor, mask: Tensor, *, loss_reads: bool = True) -> Encoded:
    """Encode cls + visible + kept tokens, in the last blocks all tokens if the light stage is them.

    Args:
        backbone: a BEiTPretrainViT with ``partial``.
        x: images (B, 3, H, W).
        mask: (B, H / patch, W / patch), 1 = masked.
        loss_reads: the loss will take the partition.
    """
    partition = backbone.partial(mask.flatten(1).bool(), loss_reads=loss_reads)
    tokens, queries = embed_present(backbone, backbone.patch_embed(x)[0], partition)
    tokens = backbone.drop_after_pos(tokens)
    bias, seen = present_bias(backbone.rel_pos_bias, partition), partition
    features, returns = [], len(backbone.layers) - backbone.partial.last_blocks
    for i, layer in enumerate(backbone.layers):
        if i == returns:
            dropout = backbone.drop_after_pos
            seen, tokens = backbone.partial.bring_back(partition, tokens, queries, dropout)
            bias = present_bias(backbone.rel_pos_bias, seen)
        tokens = layer(tokens, rel_pos_bias=bias)
        if i == len(backbone.layers) - 1 and backbone.final_norm:
            tokens = backbone.norm1(tokens)
        if i in backbone.out_indices:
            features.append(tokens)
    return Encoded(partition, seen, queries, bias, tuple(features))


def num_blocks(backbone: Any) -> int:
    """As in ``Seams``: 0 where features of earlier layers, which lack the thrown tokens, are used."""
    layers = len(backbone.layers)
    return layers if list(backbone.out_indices) == [layers - 1] else 0


def check_relative_bias(backbone: Any) -> None:
    """Refuse an encoder whose layers add a position bias of the full grid.

    Raises:
        ValueError: ``use_rel_pos_bias=True``.
    """
    if backbone.use_rel_pos_bias:
        raise ValueError(
            'use_rel_pos_bias=True: every layer adds a bias of the full grid, which does not fit '
            'present tokens; pre-train with use_rel_pos_bias=False, use_shared_rel_pos_bias=True '
            '(mmpretrain copies the shared bias into every layer for fine-tuning)'
        )


class PRBEiTPretrainViT(BEiTPretrainViT):
    """BEiT encoder on present tokens only."""

    partial: PartialReconstruction

    def forward(self, x: Tensor, mask: Tensor | None) -> Any:
        """See :func:`encode_present`; without mask, upstream's features of the whole image."""
        if mask is None:
            return super().forward(x, None)
        return encode_present(self, x, mask, loss_reads=False)


class PRBEiT(BEiT):
    """BEiT v1 / v2 whose thrown features come from the light stage."""

    partial: PartialReconstruction

    def loss(
        self, inputs: list[Tensor], data_samples: list[Any], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Upstream's losses: inputs two views (B, 3, H, W), data samples with ``mask``."""
        mask = torch.stack([sample.mask for sample in data_samples])
        encoded = self.backbone(inputs[0], mask)
        with torch.no_grad():
            target = self.target_generator(inputs[1]).detach()
        if self.with_neck:
            heads = self.neck(encoded.features, rel_pos_bias=encoded.bias)
            losses = self._head_losses(encoded, [self._rebuild(encoded, f) for f in heads], target)
            return {'loss_1': losses[0], 'loss_2': losses[1]}
        tokens = encoded.features[0]
        rows = torch.cat((tokens[:, :1], self._rebuild(encoded, tokens[:, 1:])), dim=1)
        return {'loss': self._head_losses(encoded, [rows], target)[0]}

    def _rebuild(self, encoded: Encoded, features: Tensor) -> Tensor:
        """(B, L, C): features at supervised positions, zeros elsewhere."""
        partition = encoded.partition
        rows = self.partial.reconstruct(encoded.seen, features, encoded.queries)
        return scatter_tokens(rows, self.partial.supervised(partition), partition.length)

    def _head_losses(
        self, encoded: Encoded, features: list[Tensor], target: Tensor
    ) -> tuple[Tensor, ...]:
        """The head's losses over supervised tokens, thrown ones at their weight."""
        positions = self.partial.supervised(encoded.partition)
        return supervised_mean(
            self.partial,
            encoded.partition,
            lambda columns: self._head_loss_at(positions[:, columns], features, target),
        )

    def _head_loss_at(
        self, positions: Tensor, features: list[Tensor], target: Tensor
    ) -> tuple[Tensor, ...]:
        shape = (positions.shape[0], self.partial.grid[0] * self.partial.grid[1])
        mask = torch.zeros(shape, dtype=torch.bool, device=positions.device)
        mask = mask.scatter(1, positions, torch.ones_like(positions, dtype=torch.bool))
        losses = self.head.loss(*features, target, mask)
        return losses if isinstance(losses, tuple) else (losses,)


@ADAPTERS.register_module(framework='mmpretrain.models.selfsup.beit.BEiT')
def beit(model: Any) -> Seams:
    """Seams: the encoder; the loss, which joins it to neck and head.

    Raises:
        ValueError: every layer has a relative position bias of its own.
    """
    check_relative_bias(model.backbone)
    return Seams(
        host='backbone',
        guests=('',),
        classes={BEiTPretrainViT: PRBEiTPretrainViT, BEiT: PRBEiT},
        grid=tuple(model.backbone.patch_resolution),
        width=model.backbone.embed_dims,
        num_prefix=1,
        absolute_positions=False,
        num_blocks=num_blocks(model.backbone),
    )
