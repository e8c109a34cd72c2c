# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import random_mask

from prmim_adapters.core import gather_tokens, partition_tokens, scatter_tokens, table_rows
from prmim_adapters.core.sampling import farthest, lattice, random


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    batch=st.integers(1, 4),
    sampler=st.sampled_from([farthest, random, lattice]),
    data=st.data(),
)
def test_partition_is_disjoint_and_covers_the_grid(height, width, batch, sampler, data):
    length = height * width
    num_masked = data.draw(st.integers(1, length))
    num_thrown = data.draw(st.integers(0, num_masked - 1))
    mask = random_mask(batch, length, num_masked)
    partition = partition_tokens(mask, num_thrown, (height, width), sampler)
    assert partition.visible.shape == (batch, length - num_masked)
    assert partition.kept.shape == (batch, num_masked - num_thrown)
    assert partition.thrown.shape == (batch, num_thrown)
    everything = torch.cat((partition.present, partition.thrown), 1).sort(1).values
    assert torch.equal(everything, torch.arange(length).expand(batch, -1))
    assert mask.gather(1, partition.masked).all()
    for part in (partition.visible, partition.kept, partition.thrown):
        assert (part.diff(dim=1) > 0).all()


def test_gather_and_scatter_are_inverse():
    x = torch.randn(2, 6, 3)
    index = torch.tensor([[4, 0, 5], [1, 2, 3]])
    rows = gather_tokens(x, index)
    assert torch.equal(rows, torch.stack([x[0, [4, 0, 5]], x[1, [1, 2, 3]]]))
    dense = scatter_tokens(rows, index, 6)
    assert torch.equal(gather_tokens(dense, index), rows)
    assert dense[0, [1, 2, 3]].abs().sum() == 0
    assert torch.equal(table_rows(x[0], index), torch.stack([x[0, [4, 0, 5]], x[0, [1, 2, 3]]]))


def test_grid_and_mask_that_disagree():
    with pytest.raises(ValueError, match=r'\(2, 12\) does not fit the 3x5 patch grid'):
        partition_tokens(random_mask(2, 12, 6), 2, (3, 5), random)


def test_too_few_masked_tokens():
    with pytest.raises(ValueError, match=r'throw 6 tokens.*6 masked.*0 to 5 can be thrown'):
        partition_tokens(random_mask(2, 12, 6), 6, (3, 4), random)
    with pytest.raises(ValueError, match='0 masked'):
        partition_tokens(torch.zeros(2, 12, dtype=torch.bool), 1, (3, 4), random)


def test_images_with_different_counts():
    mask = torch.cat((random_mask(1, 12, 6), random_mask(1, 12, 7)))
    with pytest.raises(ValueError, match='between 6 and 7 masked tokens'):
        partition_tokens(mask, 2, (3, 4), random)
