# SPDX-License-Identifier: Apache-2.0
"""Window attention of packed tokens: dense in the windows, packed outside.

Packed QKV is copied into the windows (see ``windows.py``), keys at thrown positions are masked, and
the outputs are copied back. That equals attention on the dense map with thrown keys masked. A
window without any present token computes finite numbers that nobody reads.

The copies and the attention matrix are dense. To hold them for backward would take most of what
throwing saves, so :func:`attend_again` makes them twice. Its backward is written out:
``torch.utils.checkpoint`` does the same, but its hooks cost the host a fifth of a Swin's step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .windows import Windows


class WindowAttention(NamedTuple):
    """A window attention between its projections.

    Attributes:
        num_heads: of the C channels.
        scale: of the queries.
        bias_table: (pairs, num_heads) relative position bias.
        bias_index: area * area int64 in any shape, the table's row of each query and key.
        qkv_bias: (3C,) bias of queries, keys and values, or None.
        dropout: of the attention weights; 0 outside of training.
    """

    num_heads: int
    scale: float
    bias_table: Tensor
    bias_index: Tensor
    qkv_bias: Tensor | None
    dropout: float

    @classmethod
    def of(cls, module: Any) -> WindowAttention:
        """Of a module whose parts are named as in the original Swin, as mmpretrain's are."""
        return cls(
            num_heads=module.num_heads,
            scale=module.scale,
            bias_table=module.relative_position_bias_table,
            bias_index=module.relative_position_index,
            qkv_bias=module.qkv.bias,
            dropout=module.attn_drop.p if module.training else 0.0,
        )


def attend(attention: WindowAttention, qkv: Tensor, windows: Windows) -> Tensor:
    """Window attention of packed qkv (B, N, 3C) -> (B, N, C)."""
    _, _, v, weights = _weigh(*_arguments(attention, qkv, windows))
    weights = F.dropout(weights, attention.dropout)
    return _gather(weights.to(v.dtype) @ v, windows.rows, len(qkv))


def attend_again(attention: WindowAttention, qkv: Tensor, windows: Windows) -> Tensor:
    """:func:`attend`, which holds ``qkv`` alone for backward and makes the rest of it again."""
    if attention.dropout:  # has to be drawn again alike
        return checkpoint(attend, attention, qkv, windows, use_reentrant=False)
    return _AttendAgain.apply(*_arguments(attention, qkv, windows))


class _AttendAgain(torch.autograd.Function):
    """:func:`attend` without dropout."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, num_slots, num_heads, scale = arguments
        ctx.save_for_backward(*tensors)
        ctx.numbers = num_slots, num_heads, scale
        _, _, v, weights = _weigh(*arguments)
        qkv, rows = tensors[0], tensors[4]
        return _gather(weights.to(v.dtype) @ v, rows, len(qkv))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, table, qkv_bias, index, rows, _, _, padding = ctx.saved_tensors
        num_slots, _, scale = ctx.numbers
        q, k, v, weights = _weigh(*ctx.saved_tensors, *ctx.numbers)

        out = _scatter(grad.to(qkv.dtype), rows, num_slots)
        out = out.view(len(weights), -1, *v.shape[1::2]).transpose(1, 2)
        of_v = weights.to(v.dtype).transpose(-2, -1) @ out
        of_weights = (out @ v.transpose(-2, -1)).to(weights.dtype)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_bias = of_scores.sum(0).permute(1, 2, 0).flatten(0, 1).to(table.dtype)
        of_table = torch.zeros_like(table).index_add(0, index.flatten(), of_bias)
        of_scores = of_scores.to(k.dtype)
        of_q = (of_scores @ k) * scale
        of_k = of_scores.transpose(-2, -1) @ q

        of_dense = torch.stack((of_q, of_k, of_v)).permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
        of_qkv_bias = None
        if padding is not None and qkv_bias is not None:
            filled = of_dense.view(-1, num_slots, of_dense.shape[-1]).sum(0)
            of_qkv_bias = (filled * padding[:, None]).sum(0).to(qkv_bias.dtype)
        of_qkv = of_dense.index_select(0, rows).view_as(qkv)
        return of_qkv, of_table, of_qkv_bias, *[None] * 8


def _arguments(attention: WindowAttention, qkv: Tensor, windows: Windows) -> tuple[Any, ...]:
    """Of :func:`_weigh`, one by one: an autograd function looks for tensors no deeper."""
    layout = windows.layout
    return (
        *(qkv, attention.bias_table, attention.qkv_bias, attention.bias_index),
        *(windows.rows, windows.absent, layout.region, layout.padding),
        *(layout.num_slots, attention.num_heads, attention.scale),
    )


def _weigh(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, bias_index: Tensor, rows: Tensor,
    absent: Tensor, region: Tensor | None, padding: Tensor | None, num_slots: int, num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Scaled queries, keys, values (B * windows, heads, area, C / heads) and attention weights."""
    batch, area, channels = len(qkv), absent.shape[-1], qkv.shape[-1] // 3 // num_heads
    filler = None
    if padding is not None and qkv_bias is not None:  # what QKV makes of a zero token
        filler = (padding[:, None] * qkv_bias).to(qkv.dtype)
    dense = _scatter(qkv, rows, num_slots, filler).view(-1, area, 3, num_heads, channels)
    q, k, v = dense.permute(2, 0, 3, 1, 4)
    q = q * scale
    bias = bias_table[bias_index.flatten()].view(area, area, num_heads).permute(2, 0, 1)
    scores = (q @ k.transpose(-2, -1) + bias).unflatten(0, (batch, -1))
    # One mask for images and regions lives here only: held for all layers, it would be large.
    mask = absent if region is None else absent + region
    scores = scores + mask.to(scores.dtype)
    return q, k, v, scores.flatten(0, 1).softmax(dim=-1)


def _scatter(packed: Tensor, rows: Tensor, num_slots: int, filler: Tensor | None = None) -> Tensor:
    """Packed (B, N, C) at their rows of (B * num_slots, C); elsewhere ``filler``, or 0."""
    size = len(packed) * num_slots, packed.shape[-1]
    empty = packed.new_zeros(size) if filler is None else filler.repeat(len(packed), 1)
    return empty.index_copy(0, rows, packed.flatten(0, 1))


def _gather(out: Tensor, rows: Tensor, batch: int) -> Tensor:
    """(B * windows, heads, area, C / heads) -> packed (B, N, C)."""
    out = out.transpose(1, 2).flatten(0, 1).flatten(1)
    return out.index_select(0, rows).unflatten(0, (batch, -1))
