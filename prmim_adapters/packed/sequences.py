# SPDX-License-Identifier: Apache-2.0
"""A ViT on sequences of several lengths, packed one behind the other.

Everything that works token by token runs once on the packed tokens, attention once for each
length. Nothing is padded, and the result is that of each image by itself, stochastic depth
included. Implementations name the parts of a block differently: each adapter describes its blocks
as :class:`SequenceBlock`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.partition import TokenPartition, gather_tokens

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SequenceBlock:
    """One block of any ViT, as functions of packed tokens.

    Attributes:
        qkv: norm, then queries, keys and values: (R, C) -> (R, 3C).
        num_heads: of attention.
        attention: queries, keys and values (b, num_heads, n, c) -> (b, num_heads, n, c).
        project: projection after attention, dropout and layer scale, (R, C) -> (R, C).
        mlp: norm, MLP, dropout and layer scale, (R, C) -> (R, C).
        drop_paths: stochastic depth of the two: (b, ...) -> (b, ...), one draw for each image.
        recompute: compute the whole block again in backward (activation checkpointing).
    """

    qkv: Function
    num_heads: int
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    project: Function
    mlp: Function
    drop_paths: tuple[Function, Function]
    recompute: bool = False

    def attend(self, qkv: Tensor) -> Tensor:
        """(b, n, 3C) -> (b, n, C)."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        return self.attention(query, key, value).transpose(1, 2).flatten(2)


def encode_sequences(
    sequences: Sequence[Tensor], blocks: Iterable[SequenceBlock], norm: Function
) -> list[Tensor]:
    """Encode batches of sequences of different lengths, without padding.

    Args:
        sequences: tensors (b, n, C); neighbours of one length n share a call of attention.
        blocks: of the network.
        norm: after them, (R, C) -> (R, C).

    Returns:
        The encoded tensors, of the same shapes.
    """
    shapes = [(x.shape[0], x.shape[1]) for x in sequences]
    runs = [(sum(b for b, _ in run), n) for n, run in groupby(shapes, key=itemgetter(1))]
    lengths = torch.tensor([n for b, n in runs for _ in range(b)])
    image = torch.arange(len(lengths)).repeat_interleave(lengths).to(sequences[0].device)
    every = torch.ones(len(lengths), 1, device=image.device)

    def per_image(drop_path: Function, update: Tensor) -> Tensor:
        scale = drop_path(every)
        return update if scale is every else (update * scale[image]).to(update.dtype)

    def encode(block: SequenceBlock, packed: Tensor) -> Tensor:
        parts = _unpack(block.qkv(packed), runs)
        attended = torch.cat([block.attend(part).flatten(0, 1) for part in parts])
        packed = packed + per_image(block.drop_paths[0], block.project(attended))
        return packed + per_image(block.drop_paths[1], block.mlp(packed))

    packed = torch.cat([x.flatten(0, 1) for x in sequences])
    for block in blocks:
        if block.recompute and torch.is_grad_enabled():
            packed = checkpoint(encode, block, packed, use_reentrant=False)
        else:
            packed = encode(block, packed)
    return _unpack(norm(packed), shapes)


def _unpack(packed: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(R, C) -> (b, n, C) for each of the shapes (b, n)."""
    parts = packed.split([b * n for b, n in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def present_sequences(
    tokens: Tensor, groups: Iterable[tuple[Tensor, TokenPartition]]
) -> list[Tensor]:
    """The class token and the present tokens of each group of images.

    Args:
        tokens: (B, 1 + L, C), class token first.
        groups: indices (b,) into the batch, and the partition of those images.

    Returns:
        (b, 1 + V + K, C) for each group.
    """
    return [
        torch.cat((tokens[i, :1], gather_tokens(tokens[i, 1:], p.present)), dim=1)
        for i, p in groups
    ]
