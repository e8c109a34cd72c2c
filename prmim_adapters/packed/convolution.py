# SPDX-License-Identifier: Apache-2.0
"""Operations of sparse convolutional networks on packed tokens (B, N, C) instead of dense maps.

A network masks square units of the image; at every stage a unit covers ``side`` x ``side``
positions of the map. Tokens are ordered unit by unit, row by row inside a unit. All images have
equally many active units, so every shape is known without looking at the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.partition import gather_tokens


@dataclass(frozen=True)
class PackedLayout:
    """Where packed tokens (B, N, C) lie on their dense map (B, C, H, W).

    Args:
        rows (Tensor): (B*N,) row of each token in the map seen as (B*H*W, C).
        size (tuple[int, int, int]): B, H, W of the map.
    """

    rows: Tensor
    size: tuple[int, int, int]

    @classmethod
    def of_units(cls, index: Tensor, grid: tuple[int, int], side: int = 1) -> PackedLayout:
        """Layout of the units ``index`` (B, n) of a grid, each ``side`` x ``side`` positions.

        Tokens are ordered unit by unit, row by row inside a unit: N = n * side * side.
        """
        height, width = grid[0] * side, grid[1] * side
        corner = (index // grid[1]) * (side * width) + (index % grid[1]) * side
        image = torch.arange(index.shape[0], device=index.device) * (height * width)
        line = torch.arange(side, device=index.device)
        inside = line[:, None] * width + line
        rows = (corner + image[:, None])[..., None, None] + inside
        return cls(rows.flatten(), (index.shape[0], height, width))

    @property
    def num_inactive(self) -> int:
        """Positions per image that hold no token."""
        batch, height, width = self.size
        return height * width - self.rows.numel() // batch

    def scatter(self, tokens: Tensor) -> Tensor:
        """Dense map (B, C, H, W), channels last in memory, zero where there is no token."""
        batch, height, width = self.size
        dense = tokens.new_zeros(batch * height * width, tokens.shape[-1])
        dense = dense.index_copy(0, self.rows, tokens.flatten(0, 1))
        return dense.view(batch, height, width, -1).permute(0, 3, 1, 2)

    def gather(self, dense: Tensor) -> Tensor:
        """Packed tokens (B, N, C) of a dense map (B, C, H, W)."""
        rows = dense.permute(0, 2, 3, 1).flatten(0, 2)
        return rows.index_select(0, self.rows).view(self.size[0], -1, dense.shape[1])


class _PackedDepthwise(torch.autograd.Function):
    """Depthwise convolution that keeps the packed tokens for its backward pass, not the map."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: Tensor,
        size: tuple[int, int, int],
        padding: list[int],
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight, rows)
        ctx.size, ctx.padding = size, padding
        return _depthwise(tokens, weight, bias, PackedLayout(rows, size), padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, rows = ctx.saved_tensors
        layout = PackedLayout(rows, ctx.size)
        channels = tokens.shape[-1]
        grad_map, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            layout.scatter(grad),
            layout.scatter(tokens),
            weight,
            [channels],  # size of the bias
            [1, 1],
            ctx.padding,
            [1, 1],
            False,
            [0, 0],
            channels,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]],
        )
        grad_tokens = None if grad_map is None else layout.gather(grad_map)
        return grad_tokens, grad_weight, grad_bias, None, None, None


def _depthwise(
    tokens: Tensor, weight: Tensor, bias: Tensor, layout: PackedLayout, padding: list[int]
) -> Tensor:
    dense = F.conv2d(layout.scatter(tokens), weight, bias, padding=padding, groups=tokens.shape[-1])
    return layout.gather(dense)


def packed_pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of tokens (B, N, C)."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


def packed_depthwise(conv: nn.Conv2d, tokens: Tensor, layout: PackedLayout) -> Tensor:
    """Depthwise ``conv`` at the token positions; positions without a token count as zero.

    Args:
        conv (nn.Conv2d): Depthwise, stride 1, not dilated.
        tokens (Tensor): (B, N, C).
        layout (PackedLayout): Where they lie.

    Returns:
        Tensor: (B, N, C).
    """
    weight, bias, padding = conv.weight, conv.bias, [int(side) for side in conv.padding]
    assert bias is not None, 'the depthwise convolutions of ConvNeXt have a bias'
    device = tokens.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        tokens, weight, bias = tokens.to(dtype), weight.to(dtype), bias.to(dtype)
    # A jit trace, which FLOP counters read, records an autograd.Function as one opaque call.
    if torch.jit.is_tracing():
        return _depthwise(tokens, weight, bias, layout, padding)
    return _PackedDepthwise.apply(tokens, weight, bias, layout.rows, layout.size, padding)


def packed_strided_conv(conv: nn.Conv2d, tokens: Tensor, side: int) -> Tensor:
    """Non-overlapping ``conv`` (kernel = stride = k) inside units of ``side`` x ``side`` tokens.

    Args:
        conv (nn.Conv2d): No padding, k divides ``side``.
        tokens (Tensor): (B, n * side**2, C) in the order of ``PackedLayout.of_units``.
        side (int): Tokens per side of a unit.

    Returns:
        Tensor: (B, n * (side/k)**2, C_out).

    Raises:
        ValueError: The unit is too small for this convolution.
    """
    k = conv.kernel_size[0]
    if side % k:
        raise ValueError(
            f'a masked unit of {side} x {side} positions cannot be divided by a convolution of '
            f'stride {k}: mask units of at least the total stride of the backbone (32 pixels for '
            'ConvNeXt)'
        )
    batch, _, channels = tokens.shape
    patches = tokens.view(batch, -1, side // k, k, side // k, k, channels)
    patches = patches.transpose(3, 4).reshape(batch, -1, k * k * channels)
    return F.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def packed_layer_norm(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """``norm`` over channels; mmpretrain's LayerNorm for maps refuses token tensors."""
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def active_units(active: Tensor) -> Tensor:
    """Flat positions (B, n), ascending, of the active units of a bool mask (B, 1, h, w).

    Raises:
        ValueError: Images of the batch differ in their number of active units.
    """
    flat = active.flatten(1)
    counts = flat.sum(dim=1)
    fewest, most = int(counts.min()), int(counts.max())
    if fewest != most:
        raise ValueError(
            f'packed execution needs equally many active units in every image, found {fewest} to '
            f"{most}; use execution='dense' for such masks"
        )
    return flat.nonzero()[:, 1].view(len(flat), -1)


def unit_pixels(images: Tensor, index: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int]:
    """Pixels (B, n * side**2, 3) of the units ``index`` (B, n) of images, and the side of a unit.

    Raises:
        ValueError: The grid does not cut the images into square units.
    """
    batch, channels, height, width = images.shape
    side = height // grid[0]
    if (side * grid[0], side * grid[1]) != (height, width):
        raise ValueError(
            f'images of {height} x {width} pixels cannot be cut into {grid[0]} x {grid[1]} square '
            'units; resize the images or change the mask'
        )
    units = images.permute(0, 2, 3, 1).reshape(batch, grid[0], side, grid[1], side, channels)
    units = units.transpose(2, 3).reshape(batch, grid[0] * grid[1], -1)
    return gather_tokens(units, index).view(batch, -1, channels), side
