# SPDX-License-Identifier: Apache-2.0
"""A ViT on sequences of several lengths, packed one behind the other.

Everything that works token by token runs once on the packed tokens. Attention alone is padded: images
of nearly one length share a call, with a mask of the keys that fill up. The result is that of each
image by itself, stochastic depth included. Implementations name the parts of a block differently:
each adapter describes its blocks as :class:`SequenceBlock`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.ragged import RaggedPartition, padded_rows, ragged_places

Function = Callable[[Tensor], Tensor]

#: Share of the longest sequence by which a shorter one of the same call of attention is padded.
#: Masks of iBOT's published kind have about 34 lengths in 64 crops; this makes 3 calls of them.
PADDED_SHARE = 1 / 8
#: Widths that GPU kernels of attention want under a mask.
_ALIGNMENT = 8


@dataclass(frozen=True)
class SequenceBlock:
    """One block of any ViT, as functions of packed tokens.

    Attributes:
        qkv: norm, then queries, keys and values: (R, C) -> (R, 3C).
        num_heads: of attention.
        attention: queries, keys and values (b, num_heads, n, c), and a mask (b, 1, 1, n) bool,
            False at keys that fill up, or None -> (b, num_heads, n, c).
        project: projection after attention, dropout and layer scale, (R, C) -> (R, C).
        mlp: norm, MLP, dropout and layer scale, (R, C) -> (R, C).
        drop_paths: stochastic depth of the two: (b, ...) -> (b, ...), one draw for each image.
        recompute: compute the whole block again in backward (activation checkpointing).
    """

    qkv: Function
    num_heads: int
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    project: Function
    mlp: Function
    drop_paths: tuple[Function, Function]
    recompute: bool = False

    def attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """(b, n, 3C), mask as above -> (b, n, C)."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)
        )
        return self.attention(query, key, value, mask).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Call:
    """Neighbouring sequences that share a call of attention.

    Attributes:
        lengths: (b,) of each image.
        width: to which they are padded.
        rows: (b * width,) int64, the packed row, from the call's first, of every place; None where
            nothing is padded.
        places: (R,) int64, the place of every packed row.
        mask: (b, 1, 1, width) bool, False at places that fill up.
    """

    lengths: tuple[int, ...]
    width: int
    rows: Tensor | None = None
    places: Tensor | None = None
    mask: Tensor | None = None

    def attend(self, block: SequenceBlock, qkv: Tensor) -> Tensor:
        """Packed (R, 3C) -> (R, C)."""
        shape = (len(self.lengths), self.width)
        if self.rows is None or self.places is None:
            return block.attend(qkv.unflatten(0, shape), None).flatten(0, 1)
        padded = qkv.index_select(0, self.rows).unflatten(0, shape)
        return block.attend(padded, self.mask).flatten(0, 1).index_select(0, self.places)


def plan_calls(lengths: Sequence[int], device: torch.device) -> list[Call]:
    """Calls of attention for images of these lengths, in their order."""
    together: list[list[int]] = []
    for length in lengths:
        run = [*together[-1], length] if together else [length]
        if together and min(run) >= (1 - PADDED_SHARE) * max(run):
            together[-1] = run
        else:
            together.append([length])
    return [_call(tuple(run), device) for run in together]


def _call(lengths: tuple[int, ...], device: torch.device) -> Call:
    longest = max(lengths)
    if min(lengths) == longest:
        return Call(lengths, longest)
    width = -(-longest // _ALIGNMENT) * _ALIGNMENT
    rows, inside = padded_rows(lengths, width, device)
    places = ragged_places(0, lengths, width, device)
    return Call(lengths, width, rows.flatten(), places, inside[:, None, None])


def encode_packed(
    packed: Tensor, lengths: Sequence[int], blocks: Iterable[SequenceBlock], norm: Function
) -> Tensor:
    """Encode sequences of different lengths.

    Args:
        packed: (R, C), sequence after sequence.
        lengths: of each of them; neighbours of nearly one length share a call of attention.
        blocks: of the network.
        norm: after them, (R, C) -> (R, C).

    Returns:
        (R, C).
    """
    calls = plan_calls(lengths, packed.device)
    image = _image_of_rows(lengths).to(packed.device, non_blocking=True)
    every = torch.ones(len(lengths), 1, device=packed.device)

    def per_image(drop_path: Function, update: Tensor) -> Tensor:
        scale = drop_path(every)
        return update if scale is every else (update * scale[image]).to(update.dtype)

    def encode(block: SequenceBlock, packed: Tensor) -> Tensor:
        parts = block.qkv(packed).split([sum(call.lengths) for call in calls])
        attended = [call.attend(block, part) for call, part in zip(calls, parts, strict=True)]
        packed = packed + per_image(block.drop_paths[0], block.project(torch.cat(attended)))
        return packed + per_image(block.drop_paths[1], block.mlp(packed))

    for block in blocks:
        if block.recompute and torch.is_grad_enabled():
            packed = checkpoint(encode, block, packed, use_reentrant=False)
        else:
            packed = encode(block, packed)
    return norm(packed)


def pack_present(tokens: Tensor, groups: RaggedPartition) -> Tensor:
    """The class token and the present tokens of every image, in the order of the partition.

    Args:
        tokens: (B, 1 + L, C), class token first.
        groups: of the batch.

    Returns:
        (R, C), 1 + V + K rows for each image.
    """
    length = tokens.shape[1]
    last = [1 + count for count in groups.num_present]
    places = ragged_places(0, last, length, tokens.device)
    positions = F.pad(groups.positions + 1, (1, 0)) + groups.images[:, None] * length
    return tokens.flatten(0, 1).index_select(0, positions.flatten().index_select(0, places))


def split_class_tokens(packed: Tensor, groups: RaggedPartition) -> tuple[Tensor, Tensor]:
    """Class tokens (B, C) in the batch's order, and the rest (R - B, C), of packed rows (R, C)."""
    image = _image_of_rows(groups.num_present)
    rest = torch.arange(len(image)) + image + 1  # past the class tokens of this image and before
    first = torch.tensor([0, *groups.num_present[:-1]]).cumsum(0) + torch.arange(len(groups.images))
    first, rest = (rows.to(packed.device, non_blocking=True) for rows in (first, rest))
    return packed.index_select(0, first)[groups.order], packed.index_select(0, rest)


def _image_of_rows(lengths: Sequence[int]) -> Tensor:
    """(R,) int64 on the host: the number of the sequence of every packed row."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
