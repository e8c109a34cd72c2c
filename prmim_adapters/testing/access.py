# SPDX-License-Identifier: Apache-2.0
"""Every contact of the checks with what happens inside of an attached model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import partial_of
from ..core import RaggedPartition, TokenPartition
from ..core.randomness import Randomness

Recorded = list[tuple[Tensor, TokenPartition]]


def seed_everything(model: nn.Module, seed: int) -> None:
    """Seed torch's global generator and the samplers' own sources of randomness."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Randomness):
            module.seed(seed)


@contextmanager
def recorded_partitions(model: nn.Module) -> Iterator[Recorded]:
    """A list that fills with masks (n, L) and their partitions, in order.

    Ragged masks give one pair for each number of masked tokens.
    """
    seen: Recorded = []

    def record(module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        groups = made if isinstance(made, RaggedPartition) else [(slice(None), made)]
        seen.extend((args[0][index], partition) for index, partition in groups)

    handle = partial_of(model).register_forward_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


class _AsIfThrown(RaggedPartition):
    """Says that it throws a token, so that no adapter takes the framework's path."""

    num_thrown = 1


@contextmanager
def nothing_thrown(model: nn.Module) -> Iterator[None]:
    """The adapter's own path, with every masked token kept."""
    partial = partial_of(model)
    ratio, partial.throw_ratio = partial.throw_ratio, 0.0
    handle = partial.register_forward_hook(
        lambda module, args, made: (
            _AsIfThrown(made.images, made.positions, made.sizes, made.grid)
            if isinstance(made, RaggedPartition)
            else None
        )
    )
    try:
        yield
    finally:
        handle.remove()
        partial.throw_ratio = ratio
