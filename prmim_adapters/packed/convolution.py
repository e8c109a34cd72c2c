# SPDX-License-Identifier: Apache-2.0
"""Convolutions on some square units of dense maps (see ``units.py``); other positions are zero.

Pointwise and non-overlapping convolutions are linear layers on packed tokens (B, N, C). A depthwise
one sees a dense map, of which only the tokens are kept for backward. 3x3 convolutions and
upsampling by two take each unit as one small map with a border of one position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .units import Units

Function = Callable[[Tensor], Tensor]


class _PackedDepthwise(torch.autograd.Function):
    """Depthwise convolution that keeps the packed tokens for its backward pass, not the map."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, units: Units) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.units = units
        return _depthwise(tokens, weight, bias, units)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        channels, half = tokens.shape[-1], weight.shape[-1] // 2
        grad_map, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            ctx.units.scatter(grad),
            ctx.units.scatter(tokens),
            weight,
            [channels],  # size of the bias
            [1, 1],
            [half, half],
            [1, 1],
            False,
            [0, 0],
            channels,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]],
        )
        grad_tokens = None if grad_map is None else ctx.units.gather(grad_map)
        return grad_tokens, grad_weight, grad_bias, None


def _depthwise(tokens: Tensor, weight: Tensor, bias: Tensor, units: Units) -> Tensor:
    dense, half = units.scatter(tokens), weight.shape[-1] // 2
    return units.gather(F.conv2d(dense, weight, bias, padding=half, groups=tokens.shape[-1]))


def packed_depthwise(tokens: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
    """Depthwise convolution at the token positions; positions without a token count as zero.

    Args:
        tokens: (B, N, C).
        weight: (C, 1, k, k), k odd; stride 1, padding k // 2.
        bias: (C,).
        units: where the tokens lie.

    Returns:
        (B, N, C).
    """
    assert bias is not None, 'the depthwise convolutions of ConvNeXt have a bias'
    device = tokens.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tokens, weight, bias = tokens.to(dtype), weight.to(dtype), bias.to(dtype)
    # A jit trace, which FLOP counters read, records an autograd.Function as one opaque call.
    if torch.jit.is_tracing():
        return _depthwise(tokens, weight, bias, units)
    # Kept from here on: what a compiled autograd.Function computes must not outlive it.
    units.find_lines(tokens)
    return _PackedDepthwise.apply(tokens, weight, bias, units)


def packed_pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of tokens (B, N, C)."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


def packed_strided_conv(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, units: Units
) -> Tensor:
    """Non-overlapping convolution (kernel = stride = k) inside units of ``side`` x ``side`` tokens.

    Args:
        tokens: (B, U * side**2, C).
        weight: (C_out, C, k, k), no padding, k divides ``side``.
        bias: (C_out,).
        units: where the tokens lie.

    Returns:
        (B, U * (side/k)**2, C_out).

    Raises:
        ValueError: the unit is too small for this convolution.
    """
    k, side = weight.shape[-1], units.side(tokens)
    if side % k:
        raise ValueError(
            f'a masked unit of {side} x {side} positions cannot be divided by a convolution of '
            f'stride {k}: mask units of at least the total stride of the backbone (32 pixels for '
            'ConvNeXt)'
        )
    batch, _, channels = tokens.shape
    patches = tokens.view(batch, -1, side // k, k, side // k, k, channels)
    patches = patches.transpose(3, 4).reshape(batch, -1, k * k * channels)
    return F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)


def packed_layer_norm(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """``norm`` over channels; mmpretrain's LayerNorm for maps refuses token tensors."""
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def packed_convnext(
    tokens: Tensor, units: Units, depthwise: nn.Conv2d, norm: nn.LayerNorm, mlp: Function
) -> Tensor:
    """A ConvNeXt block on tokens (B, N, C); ``mlp``: (B, N, C) -> (B, N, C), all after the norm."""
    x = packed_depthwise(tokens, depthwise.weight, depthwise.bias, units)
    return tokens + mlp(packed_layer_norm(norm, x))


def conv3x3(conv: nn.Conv2d, maps: Tensor, units: Units) -> Tensor:
    """3x3 convolution of stride 1: (B * U, C, s, s) -> (B * U, C_out, s, s)."""
    return F.conv2d(units.with_border(maps), conv.weight, conv.bias)


def upsample2x(conv: nn.ConvTranspose2d, maps: Tensor, units: Units) -> Tensor:
    """4x4 transposed convolution of stride 2: (B * U, C, s, s) -> (B * U, C_out, 2s, 2s).

    Every output position reads 2 x 2 inputs, which 2 x 2 of the 16 weights depends on whether its
    row and column are even or odd: four convolutions, no output is computed to be cropped.
    """
    side = maps.shape[-1]
    bordered = units.with_border(maps)
    parts = []
    for top in (0, 1):  # an even row reads the row above and its own, an odd one its own and below
        for left in (0, 1):
            weight = conv.weight[:, :, 1 - top :: 2, 1 - left :: 2].flip(2, 3).transpose(0, 1)
            window = bordered[..., top : top + side + 1, left : left + side + 1]
            parts.append(F.conv2d(window, weight, conv.bias))
    return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)
