# SPDX-License-Identifier: Apache-2.0
"""A decoder of cross-attention only, in the manner of CrossMAE (arXiv 2401.14391), to compare with.

This project's own reference implementation, written from the paper: queries (mask token + position)
of a random subset of the masked patches attend to the encoder's tokens, not to each other; only
that subset is predicted and carries loss. The paper's weighted encoder maps for each block are left
out; they cost next to nothing.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models import MAE
from torch import Tensor, nn

from prmim_adapters.accounting.bench import Subject
from prmim_adapters.accounting.variants import FRAMEWORK, build_variant
from prmim_adapters.core import gather_tokens, table_rows

LABEL = 'cross-attention decoder, 25 % predicted (own reference)'


class CrossBlock(nn.Module):
    """Cross-attention and MLP, pre-norm."""

    def __init__(self, width: int, encoder_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(encoder_width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        """Queries x (B, P, C), encoder tokens (B, N, C_encoder) -> (B, P, C)."""
        split = partial(torch.unflatten, dim=-1, sizes=(self.heads, -1))
        query = split(self.query(self.norm1(x))).transpose(1, 2)
        key, value = (
            split(part).transpose(1, 2) for part in self.key_value(encoded).chunk(2, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CrossDecoder(BaseModule):
    """Predicts the patches at given positions.

    Args:
        width, encoder_width: channels. depth: blocks. heads: attention heads.
        positions: (L, width) position embedding.
        patch_values: 3 * patch size squared.
    """

    def __init__(
        self, width: int, encoder_width: int, depth: int, heads: int, positions: Tensor,
        patch_values: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer('positions', positions)
        self.blocks = nn.ModuleList(CrossBlock(width, encoder_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, patch_values)

    def forward(self, encoded: Tensor, index: Tensor) -> Tensor:
        """Encoder tokens (B, N, C_encoder), positions (B, P) -> predictions (B, P, D)."""
        x = self.mask_token + table_rows(self.positions, index)
        for block in self.blocks:
            x = block(x, encoded)
        return self.predict(self.norm(x))


class CrossMAE(MAE):
    """mmpretrain's MAE with a :class:`CrossDecoder` as its neck."""

    predicted = 0.25

    def loss(self, inputs: Tensor, data_samples: list | None, **kwargs: object) -> dict:
        """Loss of a random quarter of all patches, among the masked ones."""
        latent, mask, ids_restore = self.backbone(inputs)
        length = mask.shape[1]
        first = latent.shape[1] - 1
        order = ids_restore.argsort(dim=1)
        index = order[:, first : first + round(self.predicted * length)]
        target = gather_tokens(self.head.construct_target(inputs), index)
        pred = self.neck(latent, index)
        return {'loss': self.head.loss_module(pred, target, torch.ones_like(index).float())}


def build_cross_mae(config: str, depth: int = 12) -> nn.Module:
    """The config's MAE with this decoder: the width and heads of its own, depth as in the paper."""
    model = build_variant(config, FRAMEWORK)
    decoder = model.neck
    model.neck = CrossDecoder(
        width=decoder.decoder_pred.in_features,
        encoder_width=model.backbone.embed_dims,
        depth=depth,
        heads=decoder.decoder_blocks[0].attn.num_heads,
        positions=decoder.decoder_pos_embed[0, 1:].detach().clone(),
        patch_values=decoder.decoder_pred.out_features,
    )
    model.__class__ = CrossMAE
    return model


def cross_subject(config: str) -> Subject:
    """For :func:`prmim_adapters.accounting.bench.measure`."""
    return Subject(LABEL, partial(build_cross_mae, config))
