# SPDX-License-Identifier: Apache-2.0
"""What adapters share whose frameworks' losses are averages over tokens, without a mask to weigh them.

Torch only: the original repositories are used without mmpretrain.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..core import PartialReconstruction, TokenPartition


def supervised_mean(
    partial: PartialReconstruction,
    partition: TokenPartition,
    losses_at: Callable[[slice], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Losses over all supervised tokens, thrown ones at their weight.

    Args:
        partial: the shared part.
        partition: of the batch.
        losses_at: columns of the supervised tokens (kept, then thrown) -> losses that average over
            them.
    """
    weight = partial.thrown_weight
    if weight == 1.0 or not partial.supervises_thrown:
        return losses_at(slice(None))
    num_kept, num_thrown = partition.kept.shape[1], partition.thrown.shape[1]
    kept, thrown = losses_at(slice(num_kept)), losses_at(slice(num_kept, None))
    share = weight * num_thrown / (num_kept + weight * num_thrown)
    return tuple(k + share * (t - k) for k, t in zip(kept, thrown, strict=True))
