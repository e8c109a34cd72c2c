# SPDX-License-Identifier: Apache-2.0
"""The data flow of one step, in one screen.

::

    image, mask --> partition_tokens --> visible | kept | thrown
       visible + kept --> heavy network --> features at present positions
       features, positions --> spatial aggregation --> features at thrown positions
       kept + thrown --> prediction head --> loss over all masked tokens

:class:`PartialReconstruction` is the part that every framework shares. An adapter calls it with the
mask before the heavy network, :meth:`~PartialReconstruction.reconstruct` after it, and
:meth:`~PartialReconstruction.take` in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cuda_graph import is_capturing
from .partition import (
    Grid,
    Sampler,
    TokenPartition,
    count_masked,
    gather_tokens,
    partition_tokens,
)
from .ragged import RaggedPartition, padded_rows, partition_ragged, ragged_places
from .randomness import Randomness
from .sampling import squared_distance_to


class PartialReconstruction(nn.Module):
    """Partition before the heavy network, light reconstruction after it.

    Args:
        throw_ratio: thrown tokens / all L tokens; 0 is the framework's original method.
        grid: (H, W) in tokens.
        sampler: chooses the kept tokens (:mod:`prmim_adapters.core.sampling`), by random integers
            of a source of its own (:mod:`prmim_adapters.core.randomness`).
        aggregators: light stages in order, each reconstructing an equal share of the thrown
            tokens, nearest to the present ones first, from those before it. Empty = plain partial
            reconstruction: thrown tokens are dropped from the loss.
        num_features: sets of features that are reconstructed, each by stages of its own: the first
            set's stages, then those of the next.
        num_prefix: prefix tokens (cls, registers) before the patch tokens in the heavy network.
        ragged: images of a batch may differ in their number of masked tokens.
        thrown_weight: weight of a thrown token in the loss; a kept one weighs 1.
        stop_gradient: True keeps the loss of thrown tokens from the heavy network.
        max_masked_share: ragged masks only: largest share of an image's masked tokens to throw.
    """

    def __init__(
        self,
        throw_ratio: float,
        grid: Grid,
        sampler: Sampler,
        aggregators: Sequence[nn.Module] = (),
        *,
        num_features: int = 1,
        num_prefix: int = 0,
        ragged: bool = False,
        thrown_weight: float = 1.0,
        stop_gradient: bool = False,
        max_masked_share: float = 2 / 3,
    ) -> None:
        super().__init__()
        self.throw_ratio = throw_ratio
        self.grid = grid
        self.sampler = sampler
        self.aggregators = nn.ModuleList(aggregators)
        self.num_features = num_features
        self.num_prefix = num_prefix
        self.ragged = ragged
        self.thrown_weight = thrown_weight
        self.stop_gradient = stop_gradient
        self.max_masked_share = max_masked_share
        self.randomness = Randomness()
        self._pass: TokenPartition | None = None
        self._num_masked: int | None = None

    @property
    def num_thrown(self) -> int:
        """T: tokens thrown per image when all masks have one size."""
        return round(self.throw_ratio * self.grid[0] * self.grid[1])

    @property
    def num_stages(self) -> int:
        """Light stages of one set of features; 0 in plain partial reconstruction."""
        return len(self.aggregators) // self.num_features

    @property
    def supervises_thrown(self) -> bool:
        """False in plain partial reconstruction, where thrown tokens carry no loss."""
        return len(self.aggregators) > 0

    @property
    def last_blocks(self) -> int:
        """Last blocks of the heavy network that run on all tokens; 0 where thrown ones stay out."""
        return max((getattr(stage, 'last_blocks', 0) for stage in self.aggregators), default=0)

    @property
    def changes_loss(self) -> bool:
        """Whether thrown tokens weigh differently from kept ones in the loss."""
        return not self.supervises_thrown or self.thrown_weight != 1.0

    def thrown_counts(self, num_masked: Tensor) -> Tensor:
        """Tokens to throw per image under ragged masks: num_masked (B,) int64 -> (B,) int64.

        At least one masked token is kept, whatever the share.
        """
        share = (num_masked.double() * self.max_masked_share + 1e-6).floor().long()
        return share.minimum((num_masked - 1).clamp(min=0)).clamp(max=self.num_thrown)

    def forward(
        self, mask: Tensor, num_masked: int | None = None, *, loss_reads: bool = True
    ) -> Any:
        """Partition a batch; forward hooks on this module see every one.

        Args:
            mask: (B, L) bool, True = masked.
            num_masked: M where known without asking the device.
            loss_reads: keep the partition for :meth:`take`.

        Returns:
            :class:`TokenPartition`, or :class:`RaggedPartition` where masks are ragged, which is
            never kept.

        Raises:
            ValueError: the mask does not fit the grid or the ratio.
            RuntimeError: the loss has not taken the partition before this one.
        """
        if self.ragged:
            return self._ragged(mask)
        num_masked = self._count(mask) if num_masked is None else num_masked
        noise = self.randomness(mask) if self.num_thrown else None
        partition = partition_tokens(
            mask, self.num_thrown, self.grid, self.sampler, num_masked, noise
        )
        partition = self._in_stages(partition)
        if loss_reads:
            unread, self._pass = self._pass, partition
            if unread is not None:
                self._pass = None
                raise RuntimeError(
                    'two masks were partitioned before one loss, which would take the second for '
                    'the first: compute the loss of a view before the next view is decoded'
                )
        return partition

    def _ragged(self, mask: Tensor) -> RaggedPartition:
        num_masked = mask.sum(dim=1)
        num_kept = num_masked - self.thrown_counts(num_masked)
        noise = self.randomness(mask)
        groups = partition_ragged(mask, num_kept, self.grid, self.sampler, noise)
        if self.num_stages < 2:
            return groups
        staged = [self._in_stages(part) for _, part in groups]
        rows = [torch.cat((part.present, part.thrown), dim=1) for part in staged]
        return replace(groups, positions=torch.cat(rows))

    def _in_stages(self, partition: TokenPartition) -> TokenPartition:
        """Thrown tokens in the order in which the stages reconstruct them."""
        return _nearest_first(partition) if self.num_stages > 1 else partition

    def _count(self, mask: Tensor) -> int:
        """Masked tokens per image of a mask that the data made.

        A compiled or captured graph cannot read the mask: it takes the number of the eager batch
        before it, and the device checks it.
        """
        in_graph = torch.compiler.is_compiling() or is_capturing(mask)
        if in_graph and self._num_masked is not None:
            torch._assert_async((mask.sum(dim=1) == self._num_masked).all(), _OTHER_COUNT)
            return self._num_masked
        self._num_masked = count_masked(mask)
        return self._num_masked

    def begin_pass(self, *_: Any) -> None:
        """Forget what an interrupted pass left; runs before every forward of the whole model."""
        self._pass = None

    def current(self) -> TokenPartition:
        """The partition of this pass, for a part of the model that runs before the loss.

        Raises:
            RuntimeError: there is none.
        """
        if self._pass is None:
            raise RuntimeError(
                'no partition of this pass: the loss ran twice, without the network before it, or '
                'in a replica of nn.DataParallel, which has no copy of its own; compute one loss '
                'for each pass, and use DistributedDataParallel'
            )
        return self._pass

    def take(self, batch_size: int) -> TokenPartition:
        """The partition of this pass, once, for the loss of ``batch_size`` images.

        Raises:
            RuntimeError: there is none, or it is of another batch.
        """
        partition = self.current()
        self._pass = None
        if len(partition.thrown) != batch_size:
            raise RuntimeError(
                f'a loss of {batch_size} images after the partition of {len(partition.thrown)}: '
                'network and loss must see the same images'
            )
        return partition

    def bring_back(
        self, partition: TokenPartition, tokens: Tensor, queries: Tensor, dropout: nn.Module
    ) -> tuple[TokenPartition, Tensor]:
        """All tokens, for the last blocks that run on all of them.

        Args:
            partition: of this pass.
            tokens: (B, prefix + V + K, C), prefix tokens and those at ``partition.present``.
            queries: as in :meth:`reconstruct`.
            dropout: of the network's input, for those that come back.

        Returns:
            The partition that the rest of the heavy network and :meth:`reconstruct` see, with all
            masked tokens kept, kept ones first; and (B, prefix + L, C) at its present positions.
        """
        thrown = self._thrown(partition, tokens[:, self.num_prefix :], queries, 0)
        nothing = partition.thrown[:, :0]
        whole = replace(partition, kept=partition.masked, thrown=nothing)
        return whole, torch.cat((tokens, *(dropout(part) for part in thrown)), dim=1)

    def reconstruct(
        self, partition: TokenPartition, features: Tensor, queries: Tensor, which: int = 0
    ) -> Tensor:
        """Features at the supervised tokens.

        Args:
            partition: of this pass.
            features: (B, V + K, C), the heavy network's outputs at ``partition.present``.
            queries: (L, C), mask token + position of every grid position, or (B, T, C) at
                ``partition.thrown``.
            which: set of features, below ``num_features``.

        Returns:
            (B, n, C) at :meth:`supervised` positions: kept, then thrown.
        """
        num_visible = partition.visible.shape[1]
        parts = [features[:, num_visible:]]
        if partition.thrown.shape[1] and self.supervises_thrown:
            parts += self._thrown(partition, features, queries, which)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _thrown(
        self, partition: TokenPartition, features: Tensor, queries: Tensor, which: int
    ) -> list[Tensor]:
        known = features.detach() if self.stop_gradient else features
        kept, done = partition.kept, []
        stages = self.num_stages
        aggregators = list(self.aggregators)[which * stages : (which + 1) * stages]
        parts = partition.thrown.tensor_split(stages, dim=1)
        asked = queries.tensor_split(stages, 1) if queries.dim() == 3 else [queries] * stages
        for aggregator, thrown, queries in zip(aggregators, parts, asked, strict=True):
            stage = replace(partition, kept=kept, thrown=thrown)
            done.append(_made_again(aggregator, known, stage, queries))
            if len(done) < stages:
                kept, known = torch.cat((kept, thrown), 1), torch.cat((known, done[-1]), 1)
        return done

    def reconstruct_ragged(
        self, groups: RaggedPartition, features: Tensor, queries: Tensor
    ) -> Tensor:
        """:meth:`reconstruct` of ragged masks, in one call of a light stage that takes padding.

        Args:
            groups: of this pass.
            features: (R, C) at the present positions, image after image.
            queries: (L, C), mask token + position of every grid position.

        Returns:
            (n, C) at the :meth:`supervised` positions, image after image: kept, then thrown.
        """
        at_once = self.num_stages == 1 and len(groups) > 1
        if at_once and getattr(self.aggregators[0], 'takes_padding', False):
            return self._at_once(groups, features, queries)
        sizes = [count * (visible + kept) for count, visible, kept in groups.sizes]
        rows = []
        for (index, part), found in zip(groups, features.split(sizes), strict=True):
            rows.append(self.reconstruct(part, found.unflatten(0, (len(index), -1)), queries))
        return torch.cat([found.flatten(0, 1) for found in rows])

    def _at_once(self, groups: RaggedPartition, features: Tensor, queries: Tensor) -> Tensor:
        """All groups padded to one partition, whose visible tokens are all present ones."""
        num_visible, num_present = groups.num_visible, groups.num_present
        length, device = groups.positions.shape[1], features.device
        width, fewest = max(num_present), min(num_present)
        row, filled = padded_rows(num_present, width, device)
        present, thrown = groups.positions[:, :width], groups.positions[:, fewest:]
        partition = TokenPartition(present, present[:, :0], thrown, groups.grid, filled)
        known = features.index_select(0, row.flatten()).unflatten(0, row.shape)
        (done,) = self._thrown(partition, known, queries, 0)

        # For all positions of an image, the row of its feature, given before what was made here.
        given = torch.arange(len(features), device=device)
        made = torch.arange(done[..., 0].numel(), device=device).view(thrown.shape) + len(features)
        source = torch.cat((made.new_zeros(len(made), fewest), made), dim=1).flatten()
        source = source.index_copy(0, ragged_places(0, num_present, length, device), given)
        wanted = source.index_select(0, ragged_places(num_visible, length, length, device))
        return torch.cat((features, done.flatten(0, 1))).index_select(0, wanted)

    def supervised(self, partition: TokenPartition) -> Tensor:
        """(B, n) int64 positions whose prediction the loss needs: kept, then thrown."""
        return partition.masked if self.supervises_thrown else partition.kept

    def at_supervised(self, values: Tensor, partition: TokenPartition) -> Tensor:
        """Values (B, L, D) or (B, L) at the :meth:`supervised` positions."""
        index = self.supervised(partition)
        return values.gather(1, index) if values.dim() == 2 else gather_tokens(values, index)

    def loss_mask(self, mask: Tensor, partition: TokenPartition) -> Tensor:
        """The mask (B, L) for the framework's loss: its own, unless thrown tokens weigh differently."""
        if not self.changes_loss:
            return mask
        weight = self.thrown_weight if self.supervises_thrown else 0.0
        mask = mask if mask.is_floating_point() else mask.float()
        return mask.scatter(1, partition.thrown, torch.full_like(mask, weight))

    def unused(self) -> Tensor | float:
        """Zero with every parameter in its graph, for steps that throw nothing.

        DistributedDataParallel waits for the gradient of every parameter.
        """
        return sum(parameter.sum() * 0 for parameter in self.parameters())

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles begin with no pass under way."""
        return {**self.__dict__, '_pass': None}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        name = getattr(self.sampler, '__name__', type(self.sampler).__name__)
        return f'throw_ratio={self.throw_ratio:g}, grid={self.grid}, sampler={name}'


def _made_again(aggregator: nn.Module, known: Tensor, *others: Any) -> Tensor:
    """A stage that is made again in backward: it costs little to run and much to store.

    A CUDA graph stores it: torch's checkpoint asks for the state of the random numbers, which a
    captured stream does not tell.
    """
    if is_capturing(known):
        return aggregator(known, *others)
    return checkpoint(aggregator, known, *others, use_reentrant=False)


_OTHER_COUNT = (
    'a compiled model takes masks of one size, as does a CUDA graph, and an image has another number '
    'of masked tokens than those of the batch before: use a mask generator with a fixed count, or do '
    'not compile or capture'
)


@torch.no_grad()
def _nearest_first(partition: TokenPartition) -> TokenPartition:
    """The same partition with its thrown tokens ordered by distance to the present ones."""
    shape = (partition.thrown.shape[0], partition.length)
    present = torch.zeros(shape, dtype=torch.bool, device=partition.thrown.device)
    present.scatter_(1, partition.present, torch.ones_like(partition.present, dtype=torch.bool))
    distance = squared_distance_to(present, partition.grid).gather(1, partition.thrown)
    return replace(
        partition, thrown=partition.thrown.gather(1, distance.argsort(dim=1, stable=True))
    )
