# SPDX-License-Identifier: Apache-2.0
"""MAE with a decoder of cross-attention only, in the manner of CrossMAE [0]: the peer to compare with.

This project's own reference implementation, written from the paper: queries (mask token + position)
of a random subset of the masked patches attend to the encoder's tokens, not to each other; only
that subset is predicted and carries loss. The paper's weighted encoder maps for each block are left
out; they cost next to nothing. Encoder, target and loss are those of mmpretrain's MAE.

[0] Fu et al., Rethinking Patch Dependence for Masked Autoencoders, arXiv 2401.14391
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models import MAE
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..core import gather_tokens, table_rows
from ..core.cross_blocks import CrossBlock
from ..core.options import check_number
from .pretrained import loaded_last


@MODELS.register_module()
class CrossAttentionDecoder(BaseModule):
    """Predicts the patches at given positions from the encoder's tokens.

    Args:
        num_patches, patch_size, in_chans, embed_dim, decoder_embed_dim, decoder_num_heads: as in
            mmpretrain's ``MAEPretrainDecoder``.
        decoder_depth: blocks; the paper takes 12 where MAE's decoder has 8.
    """

    def __init__(
        self,
        num_patches: int = 196,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 12,
        decoder_num_heads: int = 16,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.mask_token = nn.Parameter(torch.zeros(decoder_embed_dim))
        self.register_buffer('positions', torch.zeros(num_patches, decoder_embed_dim))
        side = isqrt(num_patches)
        if side**2 == num_patches:
            self.lay_out((side, side))  # the algorithm knows the grid, and says it
        self.blocks = nn.ModuleList(
            CrossBlock(decoder_embed_dim, embed_dim, decoder_num_heads)
            for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(decoder_embed_dim)
        self.predict = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)

    def lay_out(self, grid: Sequence[int]) -> None:
        """Fixed positions of a grid of (rows, columns).

        Raises:
            ValueError: it has another number of patches than ``num_patches``.
        """
        rows, columns = grid
        if rows * columns != len(self.positions):
            raise ValueError(
                f'neck.num_patches={len(self.positions)}, but the backbone has {rows}x{columns} = '
                f'{rows * columns} patches: set neck.num_patches={rows * columns}'
            )
        # Upstream lays them out column by column, which shows where rows and columns differ.
        size = (columns, rows)
        made = build_2d_sincos_position_embedding(size, self.positions.shape[1])
        self.positions.copy_(made[0])

    def init_weights(self) -> None:
        """Initialize the mask token as MAE's decoder does."""
        with loaded_last(self):
            super().init_weights()
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, index: Tensor) -> Tensor:
        """Encoder tokens (B, N, C_encoder), positions (B, P) -> predictions (B, P, D)."""
        x = self.mask_token + table_rows(self.positions, index)
        for block in self.blocks:
            x = block(x, encoded)
        return self.predict(self.norm(x))


@MODELS.register_module()
class CrossMAE(MAE):
    """mmpretrain's MAE with a :class:`CrossAttentionDecoder` as its neck.

    Args:
        predict_ratio: predicted patches / all patches, chosen at random among the masked ones; at
            most the mask ratio.
        **options: those of ``MAE``.

    Raises:
        ValueError: ``predict_ratio`` predicts no patch, or more than are masked.
    """

    def __init__(self, *args: Any, predict_ratio: float = 0.25, **options: Any) -> None:
        super().__init__(*args, **options)
        self.predict_ratio = check_number('predict_ratio', predict_ratio, 0, 1)
        self.neck.lay_out(self.backbone.patch_resolution)
        length, mask_ratio = len(self.neck.positions), self.backbone.mask_ratio
        predicted, masked = round(predict_ratio * length), length - int(length * (1 - mask_ratio))
        if not 0 < predicted <= masked:
            raise ValueError(
                f'predict_ratio={predict_ratio} predicts {predicted} of {length} patches, of which '
                f'{masked} are masked: it must be above 0 and at most the mask ratio, {mask_ratio}'
            )

    def loss(self, inputs: Tensor, data_samples: list | None, **kwargs: Any) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> mean loss of the predicted patches, ``dict(loss=...)``."""
        latent, mask, ids_restore = self.backbone(inputs)
        visible = latent.shape[1] - 1
        order = ids_restore.argsort(dim=1)  # the visible ones, then the masked ones at random
        index = order[:, visible : visible + round(self.predict_ratio * mask.shape[1])]
        target = gather_tokens(self.head.construct_target(inputs), index)
        pred = self.neck(latent, index)
        return {'loss': self.head.loss_module(pred, target, torch.ones_like(index).float())}
