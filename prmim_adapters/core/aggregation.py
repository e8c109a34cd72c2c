# SPDX-License-Identifier: Apache-2.0
"""Spatial aggregation: the light stage that gives features to the thrown tokens.

An aggregator is a module with ``forward(features, partition, queries) -> (B, T, C)``:

* features: (B, N, C), the heavy network's outputs at ``partition.present`` (no prefix tokens);
* partition: says where they are, and where the thrown tokens are;
* queries: (L, C), what the framework would have put at every grid position were it masked:
  mask token + position embedding. All images share it, so it is projected once per batch. Or
  (B, T, C), the same at ``partition.thrown`` only, where it differs between images.

and a constructor ``Aggregator(width=C, grid=(H, W), **options)``. One with an attribute
``takes_padding = True`` gets ragged masks in one call, and leaves out present tokens where
``partition.filled`` is False; others are called for each number of tokens. One with
``takes_key_positions = True`` is made with ``key_positions=True`` where the features carry no
absolute position, unless the user says otherwise. One with ``last_blocks = n`` is called before the
heavy network's last n blocks, with the features that enter them; what it returns goes through them.

The forms are this project's own: the paper's abstract (arXiv 2411.15746) fixes a light spatial
aggregation, not its form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .options import check_choice, check_flag, check_whole
from .partition import Grid, TokenPartition, gather_tokens, scatter_tokens, table_rows

SOURCES = ('present', 'kept')
#: In tokens; farther than any grid in use is wide.
_LARGEST_RADIUS = 64


class CrossAttention(nn.Module):
    """One narrow cross-attention from the thrown positions to the present features.

    Args:
        width: channels C of the features.
        grid: (H, W) in tokens.
        inner: channels of queries, keys and values; C / 4 by default.
        heads: attention heads; by default one per 32 inner channels, or the next smaller number
            that divides them.
        sources: 'present' attends to all present tokens, 'kept' to the kept masked ones only.
        neighbours: attend to this many nearest sources only; None = all.
        key_positions: add a projected position to the keys. Needed where the features carry no
            absolute position (relative position bias), superfluous elsewhere.

    Raises:
        TypeError, ValueError: an option is no such value or out of range, naming it.
    """

    takes_key_positions = True

    def __init__(
        self,
        width: int,
        grid: Grid,
        inner: int | None = None,
        heads: int | None = None,
        sources: str = 'present',
        neighbours: int | None = None,
        key_positions: bool = False,
    ) -> None:
        super().__init__()
        inner, heads = inner_and_heads(inner, heads, width // 4)
        self.grid, self.heads = grid, heads
        self.sources = check_choice('sources', sources, SOURCES)
        self.neighbours = None if neighbours is None else check_whole('neighbours', neighbours, 1)
        check_flag('key_positions', key_positions)
        self.query = nn.Linear(width, inner)
        self.key_value = nn.Linear(width, 2 * inner)
        self.key_position = nn.Linear(width, inner, bias=False) if key_positions else None
        self.project = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @property
    def takes_padding(self) -> bool:
        """See the module docstring; not of a subclass with an attention of its own."""
        cls = type(self)
        own = cls.forward is CrossAttention.forward and cls._near is CrossAttention._near
        return own and self.sources == 'present' and self.neighbours is None

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See the module docstring for shapes.

        Raises:
            ValueError: keys want positions, and the queries are those of thrown tokens only.
        """
        features, positions = select_sources(self.sources, features, partition)
        query = at_thrown(self.query(queries), partition)
        key, value = self.key_value(features).chunk(2, dim=-1)
        if self.key_position is not None:
            key = key + source_positions('cross_attention', self.key_position, queries, positions)
        attended = F.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            self._near(partition, positions),
        )
        update = self.project(attended.transpose(1, 2).flatten(2))
        return self.norm(update + at_thrown(queries, partition))

    def _split(self, x: Tensor) -> Tensor:
        """(B, n, inner) -> (B, heads, n, inner / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _near(self, partition: TokenPartition, positions: Tensor) -> Tensor | None:
        """(B, 1, T or 1, N) bool, True at the nearest sources; None attends to all."""
        if self.neighbours is None:
            return None if partition.filled is None else partition.filled[:, None, None]
        nearest, _ = nearest_sources(partition.thrown, positions, self.grid, self.neighbours)
        shape = (*partition.thrown.shape, positions.shape[1])
        allowed = torch.zeros(shape, dtype=torch.bool, device=nearest.device)
        return allowed.scatter(2, nearest, torch.ones_like(nearest, dtype=torch.bool))[:, None]


class Nearest(nn.Module):
    """Sum of the nearest present features, weighted per relative offset and channel.

    A depthwise convolution evaluated only where it is needed: each thrown token gathers its
    ``neighbours`` nearest sources. Offsets beyond ``radius`` share the weight at the border.

    Args:
        width: channels C of the features.
        grid: (H, W) in tokens.
        neighbours: sources per thrown token.
        radius: largest offset in tokens, per axis, with a weight of its own.
        sources: 'present' or 'kept', as in :class:`CrossAttention`.

    Raises:
        TypeError, ValueError: an option is no such value or out of range, naming it.
    """

    def __init__(
        self,
        width: int,
        grid: Grid,
        neighbours: int = 6,
        radius: int = 3,
        sources: str = 'present',
    ) -> None:
        super().__init__()
        self.grid, self.sources = grid, check_choice('sources', sources, SOURCES)
        self.radius = radius = check_whole('radius', radius, 1, _LARGEST_RADIUS)
        self.neighbours = check_whole('neighbours', neighbours, 1)
        self.weight = nn.Parameter(torch.ones((2 * radius + 1) ** 2, width))
        self.offset = nn.Parameter(torch.zeros((2 * radius + 1) ** 2, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See the module docstring for shapes; ``queries`` are not used."""
        features, positions = select_sources(self.sources, features, partition)
        index, _ = nearest_sources(partition.thrown, positions, self.grid, self.neighbours)
        cell = self._cell(partition.thrown, positions, index)
        total = features.new_zeros(*partition.thrown.shape, features.shape[-1])
        for near, offset in zip(index.unbind(-1), cell.unbind(-1), strict=True):
            weighted = table_rows(self.weight, offset) * gather_tokens(features, near)
            total = total + weighted + table_rows(self.offset, offset)
        return self.norm(total / index.shape[-1])

    def _cell(self, thrown: Tensor, positions: Tensor, index: Tensor) -> Tensor:
        """(B, T, k) int64: row of the weight table for each neighbour's offset."""
        source = positions.gather(1, index.flatten(1)).view_as(index)
        width, radius = self.grid[1], self.radius
        down = (source // width - (thrown // width)[..., None]).clamp(-radius, radius)
        right = (source % width - (thrown % width)[..., None]).clamp(-radius, radius)
        return (down + radius) * (2 * radius + 1) + right + radius


class Distance(nn.Module):
    """Mean of the nearest present features weighted by inverse distance; no parameters.

    Args:
        width: channels C of the features (any).
        grid: (H, W) in tokens.
        neighbours: sources per thrown token.
        sources: 'present' or 'kept', as in :class:`CrossAttention`.

    Raises:
        TypeError, ValueError: an option is no such value or out of range, naming it.
    """

    def __init__(
        self, width: int, grid: Grid, neighbours: int = 6, sources: str = 'present'
    ) -> None:
        super().__init__()
        self.grid, self.sources = grid, check_choice('sources', sources, SOURCES)
        self.neighbours = check_whole('neighbours', neighbours, 1)

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See the module docstring for shapes; ``queries`` are not used."""
        features, positions = select_sources(self.sources, features, partition)
        index, squared = nearest_sources(partition.thrown, positions, self.grid, self.neighbours)
        weight = squared.float().rsqrt()
        weight = (weight / weight.sum(-1, keepdim=True)).to(features.dtype)
        mixing = torch.zeros(
            *partition.thrown.shape, positions.shape[1], dtype=weight.dtype, device=weight.device
        )
        return mixing.scatter(2, index, weight) @ features


class Convolution(nn.Module):
    """Depthwise convolution over the dense grid with zeros at thrown positions.

    The usual form of a light spatial stage, for comparison: it computes at all L positions.

    Args:
        width: channels C of the features.
        grid: (H, W) in tokens.
        kernel: side of the kernel in tokens, odd.
        sources: 'present' or 'kept', as in :class:`CrossAttention`.

    Raises:
        TypeError, ValueError: an option is no such value or out of range, naming it.
    """

    def __init__(self, width: int, grid: Grid, kernel: int = 5, sources: str = 'present') -> None:
        super().__init__()
        kernel = check_whole('kernel', kernel, 3, 2 * _LARGEST_RADIUS + 1)
        if kernel % 2 == 0:
            raise ValueError(f'kernel={kernel} must be odd')
        self.grid, self.sources = grid, check_choice('sources', sources, SOURCES)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Tensor, partition: TokenPartition, queries: Tensor) -> Tensor:
        """See the module docstring for shapes; ``queries`` are not used."""
        features, positions = select_sources(self.sources, features, partition)
        dense = scatter_tokens(features, positions, partition.length)
        dense = self.depthwise(dense.transpose(1, 2).unflatten(2, self.grid))
        return self.norm(gather_tokens(dense.flatten(2).transpose(1, 2), partition.thrown))


@torch.no_grad()
def nearest_sources(
    targets: Tensor, sources: Tensor, grid: Grid, neighbours: int
) -> tuple[Tensor, Tensor]:
    """The nearest sources of every target on the grid.

    Args:
        targets: (B, T) int64 positions.
        sources: (B, N) int64 positions.
        grid: (H, W).
        neighbours: k; fewer where N < k.

    Returns:
        (B, T, k) int64 indices into ``sources``, nearest first, and their squared distances.
    """
    width = grid[1]
    down = (targets // width)[:, :, None] - (sources // width)[:, None, :]
    right = (targets % width)[:, :, None] - (sources % width)[:, None, :]
    squared, index = (down**2 + right**2).topk(min(neighbours, sources.shape[1]), largest=False)
    return index, squared


def at_thrown(queries: Tensor, partition: TokenPartition) -> Tensor:
    """Queries (L, C) or (B, T, C) -> (B, T, C)."""
    return table_rows(queries, partition.thrown) if queries.dim() == 2 else queries


def source_positions(name: str, project: nn.Module, queries: Tensor, positions: Tensor) -> Tensor:
    """Projected queries (L, C) at the sources' positions (B, N) -> (B, N, inner).

    Raises:
        ValueError: the queries are those of thrown tokens only; ``name`` is the aggregator's.
    """
    if queries.dim() != 2:
        raise ValueError(
            f'{name}: key_positions=True needs the queries of all positions, but this framework '
            'gives those of thrown tokens: leave it out'
        )
    return table_rows(project(queries), positions)


def inner_and_heads(inner: int | None, heads: int | None, share: int) -> tuple[int, int]:
    """Channels and heads of an attention, as given or by default.

    Args:
        inner: channels, or None: ``share`` of them, at least one.
        heads: heads, or None: as many as make about 32 channels each, all of one width.
        share: channels by default.

    Raises:
        TypeError, ValueError: an option is no such value, or the heads do not divide the channels.
    """
    inner = max(share, 1) if inner is None else check_whole('inner', inner, 1, 2**16)
    if heads is None:
        return inner, next(n for n in range(max(inner // 32, 1), 0, -1) if inner % n == 0)
    if inner % check_whole('heads', heads, 1):
        raise ValueError(f'inner={inner} must be a multiple of heads={heads}')
    return inner, heads


def select_sources(
    sources: str, features: Tensor, partition: TokenPartition
) -> tuple[Tensor, Tensor]:
    """Features and positions that an aggregator may read."""
    if sources == 'kept':
        return features[:, partition.visible.shape[1] :], partition.kept
    return features, partition.present
