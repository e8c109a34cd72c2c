# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel against the reference: in its interpreter, and on a GPU if there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from prmim_adapters.core import sampling

pytest.importorskip('triton')

COMPARE = """
import torch
from prmim_adapters.core.farthest_triton import farthest
from prmim_adapters.core.sampling import BITS, _reference, squared_distance_to

generator = torch.Generator().manual_seed(0)
for grid, images, levels in (((6, 6), 3, 3), ((5, 9), 2, 1 << BITS), ((1, 17), 2, 2)):
    length = grid[0] * grid[1]
    mask = torch.rand(images, length, generator=generator) < 0.75
    count = mask.sum(1, keepdim=True) // 3 + torch.arange(images)[:, None]
    noise = torch.randint(levels, mask.shape, generator=generator)
    for start in (~mask, torch.zeros_like(mask)):
        expected = _reference(mask, start, count, noise, list(grid), int(count.max()))
        nearest = squared_distance_to(start, grid)
        actual = farthest(mask, nearest, count, noise, grid[1], BITS)
        assert torch.equal(expected.sum(1), count[:, 0])
        assert torch.equal(actual, expected), (grid, levels)
        transposed = mask.t().contiguous().t()  # the same mask, laid out image by image no more
        actual = farthest(transposed, nearest, count, noise, grid[1], BITS)
        assert torch.equal(actual, expected), 'transposed'
print('equal')
"""


def test_equal_in_the_interpreter():
    """With few noise levels most choices are ties, which both must break alike."""
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''}
    result = subprocess.run(
        [sys.executable, '-c', COMPARE], env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == 'equal', result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('grid', [(14, 14), (7, 9), (64, 64)])
def test_equal_on_cuda(grid):
    length = grid[0] * grid[1]
    mask = torch.rand(4, length) < 0.75
    count = mask.sum(1, keepdim=True) // 3 + torch.arange(4)[:, None]
    noise = torch.randint(1 << 20, mask.shape)
    arguments = (mask, ~mask, count, noise)
    expected = sampling._reference(*arguments, list(grid), int(count.max()))
    on_cuda = (tensor.cuda() for tensor in arguments)
    actual = torch.ops.prmim_adapters.farthest(*on_cuda, list(grid), int(count.max()))
    assert torch.equal(actual.cpu(), expected)


def test_not_imported_without_cuda():
    code = (
        'import sys, torch\n'
        'from prmim_adapters.core.sampling import farthest\n'
        'farthest(torch.ones(1, 16, dtype=torch.bool), 4, (4, 4))\n'
        "assert 'prmim_adapters.core.farthest_triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
