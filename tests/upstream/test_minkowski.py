# SPDX-License-Identifier: Apache-2.0
"""The stand-in for MinkowskiEngine against convolutions written out site by site."""

import pytest
import torch
from torch.testing import assert_close

from prmim_adapters.upstream.minkowski import (
    MinkowskiConvolution,
    MinkowskiDepthwiseConvolution,
    MinkowskiGELU,
    MinkowskiLinear,
    to_sparse,
)


@pytest.fixture
def masked():
    """(2, 3, 16, 24) with 4 of 6 units of 8 x 8 active, and the activity (2, 1, 16, 24)."""
    torch.manual_seed(0)
    units = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 1, 1], [0, 1, 1]]])
    active = units.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    return torch.randn(2, 3, 16, 24) * active, active


def test_there_and_back(masked):
    x, _ = masked
    sparse = to_sparse(x)
    assert sparse.F.shape == (2 * 4 * 64, 3)
    assert torch.equal(sparse.dense()[0], x)
    assert [len(c) for c in sparse.decomposed_coordinates] == [256, 256]
    assert torch.equal((sparse + sparse).dense()[0], 2 * x)


def test_depthwise_convolution(masked):
    """out(site) = sum over offsets of kernel[x * k + y] * in(site + (y, x)): rows vary fastest."""
    x, active = masked
    layer = MinkowskiDepthwiseConvolution(3, kernel_size=3, bias=True, dimension=2)
    torch.nn.init.normal_(layer.kernel)
    torch.nn.init.normal_(layer.bias)
    expected = layer.bias.view(1, 3, 1, 1).expand_as(x).clone()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for column in range(3):
        for row in range(3):
            weight = layer.kernel[column * 3 + row].view(1, 3, 1, 1)
            expected += weight * padded[:, :, row : row + 16, column : column + 24]
    actual = layer(to_sparse(x))
    assert_close(actual.dense()[0], expected * active)
    expected.mul(active).sum().backward()
    reference, layer.kernel.grad = layer.kernel.grad, None
    actual.F.sum().backward()
    assert_close(layer.kernel.grad, reference)


def test_strided_convolution(masked):
    x, active = masked
    layer = MinkowskiConvolution(3, 5, kernel_size=2, stride=2, bias=True, dimension=2)
    torch.nn.init.normal_(layer.kernel)
    torch.nn.init.normal_(layer.bias)
    expected = layer.bias.view(1, 5, 1, 1)
    for column in range(2):
        for row in range(2):
            part = x[:, :, row::2, column::2]
            expected = expected + torch.einsum(
                'bihw,io->bohw', part, layer.kernel[column * 2 + row]
            )
    coarse = layer(to_sparse(x))
    assert_close(coarse.dense()[0], expected * active[:, :, ::2, ::2])
    again = MinkowskiConvolution(5, 4, dimension=2)(coarse)
    assert again.dense()[0].shape == (2, 4, 4, 6)


def test_pointwise(masked):
    x, active = masked
    linear = MinkowskiLinear(3, 5)
    dense = linear.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * active
    assert_close(linear(to_sparse(x)).dense()[0], dense)
    assert_close(MinkowskiGELU()(to_sparse(x)).dense()[0], torch.nn.functional.gelu(x))


def test_parameters_have_the_engines_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in MinkowskiConvolution(3, 5).named_parameters()}
    assert shapes == {'kernel': (4, 3, 5), 'bias': (1, 5)}
    layer = MinkowskiDepthwiseConvolution(3, kernel_size=7)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {'kernel': (49, 3), 'bias': (1, 3)}
    assert list(MinkowskiLinear(3, 5).state_dict()) == ['linear.weight', 'linear.bias']


def test_errors(masked):
    x, _ = masked
    with pytest.raises(ValueError, match='15x24 map is not divisible into 8x8 units'):
        to_sparse(x[:, :, :15])
    x[0, :, :8, :8] = 0
    with pytest.raises(ValueError, match='found 3 to 4 of 6'):
        to_sparse(x)
    with pytest.raises(ValueError, match='2-D convolutions'):
        MinkowskiConvolution(3, 5, kernel_size=3, stride=2)
