# SPDX-License-Identifier: Apache-2.0
import torch

from prmim_adapters.adapters.vit_encoder import Pairs, pair_bias


def test_the_bias_of_each_pair_is_the_tables_row_of_it():
    """Values and gradients, against the row of every pair of every image by itself."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(7, (6, 6), generator=generator)  # not symmetric
    tokens = torch.rand(3, 6, generator=generator).argsort(1)[:, :4]
    weight = torch.randn(3, 2, 4, 4, generator=generator).double()
    found = []
    for ours in (True, False):
        table = torch.arange(14.0).view(7, 2).double().requires_grad_()
        if ours:
            bias = pair_bias(table, index, Pairs.of(tokens, 6))
        else:
            rows = [[[table[index[a, b]] for b in row] for a in row] for row in tokens.tolist()]
            bias = torch.stack([torch.stack([torch.stack(r) for r in p]) for p in rows])
            bias = bias.permute(0, 3, 1, 2)
        (bias * weight).sum().backward()
        found.append((bias.detach(), table.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
