# SPDX-License-Identifier: Apache-2.0
"""What hooks need to know about runs on several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from mmengine.dist import collect_results, get_world_size
from mmengine.model import is_model_wrapper
from torch import Tensor, nn


def unwrapped(model: nn.Module) -> Any:
    """The algorithm itself, out of the wrapper that distributed training puts around it."""
    return model.module if is_model_wrapper(model) else model


@contextmanager
def without_process_group() -> Iterator[None]:
    """Inside the block torch.distributed is not initialised; other processes go on unheard."""
    world = dist.group.WORLD if dist.is_available() else None
    if world is None:
        yield
        return
    dist.group.WORLD = None
    try:
        yield
    finally:
        dist.group.WORLD = world


def gather_shards(features: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rows of all processes in the dataset's order, on the main process (own rows elsewhere).

    Args:
        features: (n, C), what this process made of its share of ``DefaultSampler(shuffle=False)``.
        labels: (n,).
        size: Rows in the dataset; the sampler repeats the first ones to give all an equal share.

    Returns:
        tuple: features (size, C) and labels (size,).
    """
    if get_world_size() == 1:
        return features, labels
    # Whole tensors: a row by itself is a view, and pickles with the storage of all rows.
    shards = collect_results([(features, labels)], get_world_size())
    if shards is None:
        return features, labels
    all_features, all_labels = zip(*shards, strict=True)
    return _interleaved(all_features)[:size], _interleaved(all_labels)[:size]


def _interleaved(parts: tuple[Tensor, ...]) -> Tensor:
    """Rows r, r + P, r + 2P... from part r of P: how ``DefaultSampler`` deals them out."""
    whole = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
