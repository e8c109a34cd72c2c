# SPDX-License-Identifier: Apache-2.0
"""Training data that go on at the batch where a run was interrupted.

mmengine begins the epoch anew, or loads all the batches of before to throw them away, and what its
workers draw depends on the batches that they had before. Here batches that are done are skipped
among the indices, and each worker is seeded anew for every batch, so that its draws depend on seed,
rank, epoch and number of the batch alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count, islice, repeat
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, get_worker_info


class SeededDataset(Dataset):
    """A dataset whose workers are seeded for every batch; else the dataset itself.

    Args:
        dataset: map-style dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, batch: tuple[list[int], list[int]]) -> list[Any]:
        """The samples of a batch of :class:`ContinuedBatches`."""
        entropy, indices = batch
        if get_worker_info() is not None:
            _seed(entropy)
        if hasattr(self.dataset, '__getitems__'):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]


class ContinuedBatches:
    """The batches of a sampler, from the one where a run was interrupted.

    Args:
        batches: batch sampler.
        entropy: called as an epoch begins: what its batches are seeded by, beside their number;
            None yields bare batches, for loading without workers.
    """

    def __init__(self, batches: Any, entropy: Callable[[], list[int]] | None) -> None:
        self.batches, self.entropy = batches, entropy
        self._skip, self._when_skipped = 0, lambda: None

    def skip(self, count: int, then: Callable[[], Any]) -> None:
        """Begin the next epoch ``count`` batches later, with a call of ``then`` before the first."""
        self._skip, self._when_skipped = count, then

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator[Any]:
        skip, self._skip = self._skip, 0
        entropy = self.entropy() if self.entropy else None
        numbered = enumerate(self.batches)
        for _ in islice(numbered, skip):
            pass
        if skip:
            self._when_skipped()
        for number, batch in numbered:
            yield batch if entropy is None else ([*entropy, number], batch)


class EndlessBatches:
    """An iterator of batches from which both mmengine's and its fork's loop can drop some.

    Args:
        batches: what is to come.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self.batches)

    def skip_iter(self, count: int) -> None:
        """Drop ``count``; onedl-mmengine calls this where mmengine calls ``next`` that often."""
        for _ in islice(self.batches, count):
            pass


class DataOrder:
    """The training data of a runner, whose order and draws can be continued.

    Args:
        runner: its train loop has been built, and begins after this.
    """

    def __init__(self, runner: Runner) -> None:
        self.loop = runner.train_loop
        self.loader: DataLoader = self.loop.dataloader
        self._passes = 0

        def entropy() -> list[int]:
            return [runner.seed, get_rank(), self.epoch]

        workers = self.loader.num_workers > 0
        self.batches = ContinuedBatches(self.loader.batch_sampler, entropy if workers else None)
        # Past __setattr__, which refuses: iterators that exist would not see it.
        vars(self.loader)['batch_sampler'] = self.batches
        if workers:
            vars(self.loader)['dataset'] = SeededDataset(self.loader.dataset)
        if self.by_iteration:  # in place of the iterator that the loop made when it was built
            self.loop.dataloader_iterator = EndlessBatches(self._endless(0, 0))

    @property
    def by_iteration(self) -> bool:
        """Whether the loop counts iterations, and passes through the data without end."""
        return isinstance(self.loop, IterBasedTrainLoop)

    @property
    def epoch(self) -> int:
        """Number of the pass through the data."""
        return self._passes if self.by_iteration else self.loop.epoch

    @property
    def sampler(self) -> Any:
        """The sampler of single indices."""
        return getattr(self.batches, 'sampler', self.loader.sampler)

    def state(self) -> dict[str, int]:
        """What a checkpoint must hold of the order."""
        return dict(seed=getattr(self.sampler, 'seed', 0), batches=len(self.loader))

    def resume(self, state: dict[str, int], then: Callable[[], Any]) -> None:
        """Go on after iteration ``loop.iter``; called as the loop's first epoch begins.

        Args:
            state: of :meth:`state`.
            then: called when everything is set up and the next batch is not yet loaded.
        """
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = state['seed']
        done, epoch = self.loop.iter - self.loop.epoch * len(self.loader), 0
        if self.by_iteration and not isinstance(self.sampler, InfiniteSampler):
            # The end of a pass, not the beginning of the next: that is where the run stopped.
            epoch, done = divmod(self.loop.iter - 1, len(self.loader))
            done += 1
        elif done == 0:
            then()
        self.batches.skip(done, then)
        if self.by_iteration:
            # onedl-mmengine's loop can be told to drop none.
            dropped = 0 if getattr(self.loop, 'fast_forward_on_resume', False) else self.loop.iter
            self.loop.dataloader_iterator = EndlessBatches(self._endless(epoch, dropped))

    def validates_now(self) -> bool:
        """Whether a validation is due where the loop stands: its own rule, applied after a step.

        A checkpoint is saved before it, so that a loop that begins there has it still to do.
        """
        loop, count = self.loop, self.loop.iter
        if loop.runner.val_loop is None:
            return False
        loop._decide_current_val_interval()
        end = loop.max_iters
        if not self.by_iteration:
            if count > loop.epoch * len(self.loader):  # in the middle of an epoch
                return False
            count, end = loop.epoch, loop.max_epochs
        return count >= loop.val_begin and (count % loop.val_interval == 0 or count == end)

    def _endless(self, epoch: int, done: int) -> Iterator[Any]:
        """Batches of one pass after the other; nothing for those ``done``, which the loop drops."""
        yield from repeat(None, done)
        self.loader._iterator = None  # that of persistent workers, begun before this
        if isinstance(self.sampler, InfiniteSampler):  # one generator, from which they have read
            self.sampler.indices = self.sampler._indices_of_rank()
        for self._passes in count(epoch):
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(self._passes)
            yield from self.loader


def _seed(entropy: list[int]) -> None:
    state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
