# SPDX-License-Identifier: Apache-2.0
"""Every contact of the checks with what happens inside of an attached model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..adapters.base import attachment_of, partial_of
from ..core import TokenPartition, sincos_positions


@contextmanager
def recorded_partitions(model: nn.Module) -> Iterator[list[tuple[Tensor, TokenPartition]]]:
    """The masks that the model partitions, with their partitions, in order."""
    partial: Any = partial_of(model)
    seen: list[tuple[Tensor, TokenPartition]] = []
    original = partial.split

    def split(mask: Tensor, *args: Any, **kwargs: Any) -> TokenPartition:
        seen.append((mask, original(mask, *args, **kwargs)))
        return seen[-1][1]

    partial.split = split
    try:
        yield seen
    finally:
        del partial.split


@contextmanager
def nothing_thrown(model: nn.Module) -> Iterator[None]:
    """The adapter's own path, with every masked token kept."""
    partial: Any = partial_of(model)
    original = partial.split

    def split(mask: Tensor, num_masked: int | None = None, num_thrown: int | None = None) -> Any:
        return original(mask, num_masked, 0)

    partial.split = split
    try:
        yield
    finally:
        del partial.split


def added_positions(model: nn.Module, queries: Tensor) -> Tensor | None:
    """Positions (L, C) in the queries that the framework's own tokens do not have, if any."""
    if attachment_of(model).adapter.absolute_positions:
        return None
    grid = partial_of(model).grid
    return sincos_positions(grid, queries.shape[1]).to(queries)
