# SPDX-License-Identifier: Apache-2.0
"""The heavy network's own last blocks as the light stage.

For frameworks whose heavy network is the encoder: thrown tokens come back before its last blocks,
which then run on all tokens, as they will once the encoder is trained.
"""

from __future__ import annotations

from torch import Tensor, nn

from .aggregation import at_thrown
from .options import check_whole
from .partition import Grid, TokenPartition


class LastBlocks(nn.Module):
    """Thrown tokens enter the heavy network's last blocks, as mask token + position.

    An aggregator as in :mod:`.aggregation`, without parameters.

    Args:
        width: channels C of the features.
        grid: (H, W) in tokens.
        depth: blocks that run on all tokens; fewer than the heavy network has.

    Raises:
        TypeError, ValueError: ``depth`` is no whole number, or below 1.
    """

    def __init__(self, width: int, grid: Grid, depth: int = 1) -> None:
        super().__init__()
        self.last_blocks = check_whole('depth', depth, 1)

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See :mod:`.aggregation` for shapes; the features are those that enter the last blocks."""
        del features
        return at_thrown(queries, partition)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f'depth={self.last_blocks}'
