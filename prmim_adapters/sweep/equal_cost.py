# SPDX-License-Identifier: Apache-2.0
"""Training loops as long as the MACs of the framework's whole run allow.

At equal epochs an arm that computes less per step costs less in all. At equal cost it goes on until
it has spent what the framework spends, its schedules stretched with it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmpretrain.registry import LOOPS, MODELS

from ..accounting.batch import first_batch
from ..accounting.scheduled import average_over_run
from ..core.seeding import seeded
from ..openmmlab.distributed import unwrapped
from .cost import counted_macs

_STEPS = ('begin', 'end', 'T_max', 'step_size', 'milestones', 'total_steps', 'periods')
"""Arguments of mmengine's schedulers that are counts of steps, or of epochs."""


@LOOPS.register_module()
class EqualCostEpochLoop(EpochBasedTrainLoop):
    """Epochs until the training MACs of ``framework`` over ``max_epochs`` are spent.

    The number of steps is rounded to a whole one; the last epoch may be a part of one.

    Args:
        runner, dataloader, max_epochs: as in ``EpochBasedTrainLoop``.
        framework: model config of the method whose cost it is.
        **options: other ones of ``EpochBasedTrainLoop``.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_epochs: int,
        framework: dict[str, Any],
        **options: Any,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, **options)
        self._max_iters = _stretch(self, framework)
        self._max_epochs = math.ceil(self._max_iters / len(self.dataloader))

    def run_epoch(self) -> None:
        """One epoch, or what is left of the steps."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, data_batch in enumerate(self.dataloader):
            if self._iter >= self._max_iters:
                break
            self.run_iter(index, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class EqualCostIterLoop(IterBasedTrainLoop):
    """Steps until the training MACs of ``framework`` over ``max_iters`` are spent.

    Args:
        runner, dataloader, max_iters: as in ``IterBasedTrainLoop``.
        framework: model config of the method whose cost it is.
        **options: other ones of ``IterBasedTrainLoop``.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_iters: int,
        framework: dict[str, Any],
        **options: Any,
    ) -> None:
        super().__init__(runner, dataloader, max_iters, **options)
        self._max_iters = _stretch(self, framework)


def _stretch(loop: BaseLoop, framework: dict[str, Any]) -> int:
    """The steps that the framework's cost buys; the runner's schedules are stretched to them.

    Raises:
        UndercountError: the MACs of one of the two cannot be counted.
    """
    runner, steps = loop.runner, loop.max_iters
    model = unwrapped(runner.model)
    with seeded(runner.seed):
        own = MODELS.build(dict(framework, data_preprocessor=model.data_preprocessor))
    own.to(next(model.parameters()).device)
    count = partial(counted_macs, batch=first_batch(loop.dataloader, model))
    whole = count(own)['training_gmacs']
    part = average_over_run(runner, count, steps)['training_gmacs']
    ends = {True: loop.max_epochs, False: loop.max_iters}
    runner.param_schedulers = stretched(runner.param_schedulers, whole / part, ends)
    bought = round(steps * whole / part)
    runner.logger.info(
        f'equal cost: {bought} steps of {part:.6g} training GMACs per image in place of {steps} '
        f'of {whole:.6g}'
    )
    return bought


def stretched(schedulers: Any, factor: float, ends: dict[bool, int]) -> Any:
    """Configs of parameter schedulers, ``factor`` times as long.

    Counts are rounded to whole steps or epochs, but those of epochs that mmengine converts into
    steps itself.

    Args:
        schedulers: one config, a list of them, or such a list for each of several optimizers.
        factor: new length / old length of the run.
        ends: the old length in epochs (key True) and in steps (key False): where a scheduler ends
            that does not say so.
    """
    if isinstance(schedulers, (list, tuple)):
        return [stretched(scheduler, factor, ends) for scheduler in schedulers]
    if not isinstance(schedulers, dict):
        return schedulers
    if 'type' not in schedulers:
        return {name: stretched(own, factor, ends) for name, own in schedulers.items()}
    exact = schedulers.get('convert_to_iter_based', False)

    def times(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [times(entry) for entry in value]
        return value * factor if exact else round(value * factor)

    whole = dict(schedulers)
    whole.setdefault('end', ends[whole.get('by_epoch', True)])
    return {
        key: times(value) if key in _STEPS and value is not None else value
        for key, value in whole.items()
    }
