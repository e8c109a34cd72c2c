# SPDX-License-Identifier: Apache-2.0
"""The part of MinkowskiEngine and MinkowskiOps that FCMAE of ConvNeXt V2 uses, in torch.

For the shim 'minkowski'. Features of active sites are packed, so LayerNorm, GRN, GELU, linear and
strided layers compute visible units only; the depthwise convolution, 2 % of the arithmetic, runs on
a map that is zero elsewhere. Parameters have the engine's names and shapes, and kernels its order,
as the original's ``remap_checkpoint_keys`` reads it: checkpoints are exchangeable.

Sites are active in units of 8 x 8 positions of the first map, the units that the three strided
convolutions of the network reduce to one position, and every image has equally many.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..packed.convolution import packed_depthwise, packed_strided_conv
from ..packed.units import Units, active_units

__all__ = [
    'MinkowskiConvolution',
    'MinkowskiDepthwiseConvolution',
    'MinkowskiGELU',
    'MinkowskiLinear',
    'SparseTensor',
    'to_sparse',
]

UNIT = 8


class SparseTensor:
    """Features at the active sites of a batch of maps.

    Args:
        features: (B * N, C), image after image.
        coordinate_map_key: the units of the grid that are active.
        coordinate_manager: not used; the engine's signature.
    """

    def __init__(
        self, features: Tensor, coordinate_map_key: Units, coordinate_manager: object = None
    ) -> None:
        self.F = features
        self.coordinate_map_key = coordinate_map_key
        self.coordinate_manager = coordinate_manager

    @property
    def tokens(self) -> Tensor:
        """(B, N, C)."""
        return self.F.view(len(self.coordinate_map_key.index), -1, self.F.shape[-1])

    @property
    def decomposed_coordinates(self) -> list[Tensor]:
        """For each image the units of its sites on their grid, (N,)."""
        count = self.tokens.shape[1] // self.coordinate_map_key.index.shape[1]
        return list(self.coordinate_map_key.index.repeat_interleave(count, dim=1))

    def dense(self) -> tuple[Tensor, None, None]:
        """The map (B, C, H, W), zero at inactive sites; the engine's other results are left out."""
        return self.coordinate_map_key.scatter(self.tokens), None, None

    def __add__(self, other: SparseTensor) -> SparseTensor:
        return SparseTensor(self.F + other.F, self.coordinate_map_key)


def to_sparse(x: Tensor) -> SparseTensor:
    """The units of x (B, C, H, W) that are not zero.

    Raises:
        ValueError: the map cannot be divided into units, or images have different numbers of them.
    """
    batch, channels, height, width = x.shape
    if height % UNIT or width % UNIT:
        raise ValueError(f'a {height}x{width} map is not divisible into {UNIT}x{UNIT} units')
    grid = (height // UNIT, width // UNIT)
    every = Units.all(batch, grid, x.device).gather(x).unflatten(1, (grid[0] * grid[1], -1))
    active = (every != 0).flatten(2).any(dim=2)
    return SparseTensor(every[active].view(-1, channels), Units(active_units(active), grid))


class MinkowskiConvolution(nn.Module):
    """Convolution without overlap: kernel (k * k, in, out), bias (1, out)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 2,
        stride: int = 2,
        bias: bool = True,
        dimension: int = 2,
    ) -> None:
        super().__init__()
        _check(dimension, kernel_size == stride and bias, 'kernel_size = stride, with bias')
        self.kernel_size = kernel_size
        self.kernel = nn.Parameter(torch.empty(kernel_size**2, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(1, out_channels))
        nn.init.trunc_normal_(self.kernel, std=0.02)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """The sparse tensor on the next coarser map."""
        units = x.coordinate_map_key
        weight = _dense_kernel(self.kernel.permute(2, 1, 0), self.kernel_size)
        tokens = packed_strided_conv(x.tokens, weight, self.bias.flatten(), units)
        return SparseTensor(tokens.flatten(0, 1), units)


class MinkowskiDepthwiseConvolution(nn.Module):
    """Depthwise convolution of stride 1: kernel (k * k, channels), bias (1, channels)."""

    def __init__(
        self, in_channels: int, kernel_size: int = 7, bias: bool = True, dimension: int = 2
    ) -> None:
        super().__init__()
        _check(dimension, kernel_size % 2 == 1 and bias, 'odd kernel_size, with bias')
        self.kernel_size = kernel_size
        self.kernel = nn.Parameter(torch.empty(kernel_size**2, in_channels))
        self.bias = nn.Parameter(torch.zeros(1, in_channels))
        nn.init.trunc_normal_(self.kernel, std=0.02)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """The same sites."""
        weight = _dense_kernel(self.kernel.t()[:, None], self.kernel_size)
        units = x.coordinate_map_key
        tokens = packed_depthwise(x.tokens, weight, self.bias.flatten(), units)
        return SparseTensor(tokens.flatten(0, 1), units)


class MinkowskiLinear(nn.Module):
    """Linear layer, called ``linear`` inside."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """The same sites."""
        return SparseTensor(self.linear(x.F), x.coordinate_map_key)


class MinkowskiGELU(nn.Module):
    """GELU."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """The same sites."""
        return SparseTensor(nn.functional.gelu(x.F), x.coordinate_map_key)


def _dense_kernel(kernel: Tensor, size: int) -> Tensor:
    """(out, in, k * k), rows fastest as in the engine -> torch's (out, in, k, k)."""
    return kernel.unflatten(2, (size, size)).transpose(2, 3).contiguous()


def _check(dimension: int, supported: bool, what: str) -> None:
    if dimension != 2 or not supported:
        raise ValueError(f'the stand-in for MinkowskiEngine has 2-D convolutions with {what} only')
