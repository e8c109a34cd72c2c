# SPDX-License-Identifier: Apache-2.0
"""The input of a ViT encoder on present tokens, for every implementation that keeps BEiT's names.

Torch only: the original repositories are used without mmpretrain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import TokenPartition, gather_tokens, table_rows
from .dense import fixed_positions


def embed_present(vit: Any, patches: Tensor, partition: TokenPartition) -> tuple[Tensor, Tensor]:
    """Cls, visible and kept tokens with their positions.

    Args:
        vit: has ``cls_token``, ``mask_token`` and ``pos_embed`` (1, 1 + L, C), or None.
        patches: (B, L, C), embedded without positions.
        partition: of the batch.

    Returns:
        Tokens (B, 1 + N, C) at ``partition.present``; and queries (L, C), mask token + position of
        every grid position, a fixed one where the encoder has none.
    """
    token = vit.mask_token
    visible = gather_tokens(patches, partition.visible)
    kept = token.expand(*partition.kept.shape, -1)
    cls = vit.cls_token.expand(len(patches), -1, -1)
    # As upstream, autocast leaves the residual stream in the parameters' type.
    tokens = torch.cat((cls, visible.to(cls.dtype), kept), dim=1)
    if vit.pos_embed is None:
        positions = fixed_positions(partition.grid, token.shape[-1], token.dtype, token.device)
    else:
        positions = vit.pos_embed[0, 1:]
        prefix = vit.pos_embed[:, :1].expand(len(patches), -1, -1)
        tokens = tokens + torch.cat((prefix, table_rows(positions, partition.present)), dim=1)
    return tokens, token[0] + positions


def present_bias(shared: Any | None, partition: TokenPartition) -> Tensor | None:
    """Rows and columns of a shared relative position bias for cls and the present tokens.

    Args:
        shared: module with ``relative_position_bias_table`` and ``relative_position_index``
            (1 + L, 1 + L), cls first, or None.
        partition: of the batch.

    Returns:
        (B, heads, 1 + N, 1 + N), or None.
    """
    if shared is None:
        return None
    tokens = F.pad(partition.present + 1, (1, 0))  # cls is row 0
    index = shared.relative_position_index
    bias = pair_bias(shared.relative_position_bias_table, index, Pairs.of(tokens, len(index)))
    return bias.contiguous()


class Pairs(NamedTuple):
    """The pairs of each image's own tokens, which all blocks of a network share.

    Attributes:
        tokens: (B, N) int64, below L.
        columns: (B * N * N,) int64, where the N keys of each query stand among the L of its row.
    """

    tokens: Tensor
    columns: Tensor

    @classmethod
    def of(cls, tokens: Tensor, length: int) -> Pairs:
        """Of tokens below ``length``."""
        first = torch.arange(tokens.numel(), device=tokens.device).view_as(tokens) * length
        return cls(tokens, (first[:, :, None] + tokens[:, None, :]).flatten())


def pair_bias(table: Tensor, index: Tensor, pairs: Pairs) -> Tensor:
    """Relative position bias of each image's own tokens.

    Of all pairs once, then rows and columns for each image: what a row of the table gets from every
    pair of every image would be millions of additions to a thousand places in backward, which a GPU
    has to sort first.

    Args:
        table: (distances, heads).
        index: (L, L) int64, the table's row of each query and key.
        pairs: of the tokens.

    Returns:
        (B, heads, N, N).
    """
    images, count = pairs.tokens.shape
    dense = table_rows(table, index)
    rows = table_rows(dense.flatten(1), pairs.tokens)
    # index_select holds the columns alone for backward; gather would hold the rows, too
    bias = rows.view(-1, table.shape[1]).index_select(0, pairs.columns)
    return bias.view(images, count, count, -1).permute(0, 3, 1, 2)
