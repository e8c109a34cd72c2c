# SPDX-License-Identifier: Apache-2.0
"""Random masks for the tests of this folder."""

import torch


def random_mask(batch: int, length: int, num_masked: int, seed: int = 0) -> torch.Tensor:
    """(batch, length) bool with ``num_masked`` True per image."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(batch, length, generator=generator).argsort(1).argsort(1)
    return rank < num_masked
