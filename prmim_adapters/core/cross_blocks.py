# SPDX-License-Identifier: Apache-2.0
"""Blocks of cross-attention: a small decoder that the thrown tokens have to themselves.

Meant for frameworks whose heavy network is the encoder: thrown tokens then read its last features
through blocks of their own, as MAE reads its encoder's through a decoder. An aggregator as in
:mod:`.aggregation`, and the block that also makes the decoder in the manner of CrossMAE
(:mod:`prmim_adapters.frameworks.cross_mae`).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aggregation import SOURCES, at_thrown, inner_and_heads, select_sources, source_positions
from .options import check_choice, check_flag, check_whole
from .partition import Grid, TokenPartition

_LARGEST_DEPTH = 64


class CrossBlock(nn.Module):
    """Cross-attention and MLP, pre-norm.

    Args:
        width, encoder_width: channels of the queries and of what they attend to.
        heads: attention heads.
    """

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

    def forward(self, x: Tensor, encoded: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Queries x (B, P, C), encoded tokens (B, N, C_encoder) -> (B, P, C).

        ``allowed``: (B, 1, P or 1, N) bool, True where a query attends; None is everywhere.
        """
        split = partial(torch.unflatten, dim=-1, sizes=(self.heads, -1))
        query = split(self.query(self.norm1(x))).transpose(1, 2)
        key, value = (
            split(part).transpose(1, 2) for part in self.key_value(encoded).chunk(2, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, allowed)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CrossBlocks(nn.Module):
    """Blocks of cross-attention and MLP from the thrown positions to the present features.

    Args:
        width: channels C of the features.
        grid: (H, W) in tokens.
        depth: blocks.
        inner: channels of the blocks; C / 2 by default.
        heads: attention heads; by default one per 32 inner channels, or the next smaller number
            that divides them.
        sources: 'present' attends to all present tokens, 'kept' to the kept masked ones only.
        key_positions: add a projected position to what is attended to. Needed where the features
            carry no absolute position (relative position bias), superfluous elsewhere.

    Raises:
        TypeError, ValueError: an option is no such value or out of range, naming it.
    """

    takes_key_positions = True

    def __init__(
        self,
        width: int,
        grid: Grid,
        depth: int = 2,
        inner: int | None = None,
        heads: int | None = None,
        sources: str = 'present',
        key_positions: bool = False,
    ) -> None:
        super().__init__()
        depth = check_whole('depth', depth, 1, _LARGEST_DEPTH)
        inner, heads = inner_and_heads(inner, heads, width // 2)
        self.grid, self.sources = grid, check_choice('sources', sources, SOURCES)
        check_flag('key_positions', key_positions)
        self.ask = nn.Linear(width, inner)
        self.read = nn.Linear(width, inner)
        self.key_position = nn.Linear(width, inner, bias=False) if key_positions else None
        self.blocks = nn.ModuleList(CrossBlock(inner, inner, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.project = nn.Linear(inner, width)

    @property
    def takes_padding(self) -> bool:
        """See :mod:`.aggregation`; not of a subclass with a forward of its own."""
        return type(self).forward is CrossBlocks.forward and self.sources == 'present'

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See :mod:`.aggregation` for shapes.

        Raises:
            ValueError: keys want positions, and the queries are those of thrown tokens only.
        """
        features, positions = select_sources(self.sources, features, partition)
        known = self.read(features)
        if self.key_position is not None:
            known = known + source_positions('cross_blocks', self.key_position, queries, positions)
        filled = partition.filled
        allowed = None if filled is None else filled[:, None, None]
        x = at_thrown(self.ask(queries), partition)
        for block in self.blocks:
            x = block(x, known, allowed)
        return self.project(self.norm(x))
