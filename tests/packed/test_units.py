# SPDX-License-Identifier: Apache-2.0
"""Units of dense maps, and convolutions on them, against slices of dense maps."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from prmim_adapters.packed.convolution import (
    conv3x3,
    packed_depthwise,
    packed_strided_conv,
    upsample2x,
)
from prmim_adapters.packed.units import Units, active_units, unit_mask

GRID = (3, 4)
INDEX = torch.tensor([[0, 5, 1, 11], [7, 2, 3, 6]])


def units_of(dense, side):
    """(B * U, C, side, side) by slicing."""
    return torch.stack(
        [
            dense[b, :, u // 4 * side : (u // 4 + 1) * side, u % 4 * side : (u % 4 + 1) * side]
            for b, row in enumerate(INDEX.tolist())
            for u in row
        ]
    )


@pytest.fixture(params=[1, 2, 4])
def zero_filled(request):
    """A dense map that is zero outside of the units, and the side of a unit."""
    side = request.param
    present = torch.zeros(2, 12).scatter(1, INDEX, 1.0).view(2, 1, *GRID)
    dense = torch.randn(2, 3, GRID[0] * side, GRID[1] * side, dtype=torch.float64)
    return dense * F.interpolate(present, scale_factor=side), side


def test_units_are_slices_of_the_map(zero_filled):
    dense, side = zero_filled
    units = Units(INDEX, GRID)
    maps, tokens = units.cut(dense), units.gather(dense)
    assert torch.equal(maps, units_of(dense, side))
    assert torch.equal(tokens, maps.permute(0, 2, 3, 1).reshape(2, -1, 3))
    assert torch.equal(units.scatter(tokens), dense)
    assert units.side(tokens) == side
    assert units.num_absent(tokens) == 8 * side**2


def test_every_unit():
    dense = torch.arange(2 * 6 * 8.0).view(2, 1, 6, 8)
    every = Units.all(2, GRID)
    assert every.cut(dense)[1].flatten().tolist() == [2, 3, 10, 11]
    assert every.num_absent(every.gather(dense)) == 0


def test_3x3_and_upsampling_equal_those_of_the_dense_map(zero_filled):
    dense, side = zero_filled
    units = Units(INDEX, GRID)
    maps = units.cut(dense)
    conv = torch.nn.Conv2d(3, 5, 3, padding=1).double()
    assert_close(conv3x3(conv, maps, units), units_of(conv(dense), side))
    upsample = torch.nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1).double()
    assert_close(upsample2x(upsample, maps, units), units_of(upsample(dense), 2 * side))


def test_depthwise_equals_that_of_the_dense_map(zero_filled):
    """Its hand-written backward too, against autograd through the dense map."""
    dense, _ = zero_filled
    units = Units(INDEX, GRID)
    conv = torch.nn.Conv2d(3, 3, 7, padding=3, groups=3).double()
    tokens = units.gather(dense).requires_grad_()
    expected = units.gather(conv(units.scatter(tokens)))
    found = packed_depthwise(tokens, conv.weight, conv.bias, units)
    assert_close(found, expected)
    grad = torch.randn_like(found)
    inputs = (tokens, conv.weight, conv.bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        assert_close(ours, theirs)


def test_strided_convolution_equals_that_of_the_dense_map():
    dense = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    units = Units(INDEX, GRID)
    conv = torch.nn.Conv2d(3, 5, 2, stride=2).double()
    found = packed_strided_conv(units.gather(dense), conv.weight, conv.bias, units)
    assert_close(found, units.gather(conv(dense)))


def test_masks_of_units():
    units = torch.zeros(2, 12, dtype=torch.int64).scatter(1, INDEX, 1)
    mask = units.view(2, *GRID).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(unit_mask(mask, GRID), units.bool())
    assert torch.equal(active_units(units.bool()), INDEX.sort(dim=1).values)
    mask[0, 0, 0] ^= 1
    with pytest.raises(ValueError, match='6x8 mask is not constant inside the 3x4 units'):
        unit_mask(mask, GRID)
    units[0, 0] ^= 1
    with pytest.raises(ValueError, match='found 3 to 4 of 12'):
        active_units(units.bool())
    with pytest.raises(ValueError, match='6 x 9 positions cannot be cut into 3 x 4 square units'):
        Units.all(1, GRID).gather(torch.zeros(1, 1, 6, 9))
