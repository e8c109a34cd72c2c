# SPDX-License-Identifier: Apache-2.0
"""A throw ratio that changes over a run: much while learning is coarse, little at the end, or else.

    custom_hooks = [dict(type='ThrowRatioHook', schedule='cosine', start=0.7, end=0.3)]

The ratio takes few distinct values, so a compiled model is compiled few times, and depends on the
number of the step alone, so a resumed run and all processes of a distributed one agree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from ..adapters import partial_of, set_throw_ratio
from ..core.options import check_choice, check_number, check_whole
from .distributed import unwrapped

KINDS = ('constant', 'step', 'cosine')


@dataclass(frozen=True)
class RatioSchedule:
    """Throw ratio by step: ``start`` at the first one, ``end`` at the last.

    Attributes:
        kind: 'constant' (``start``), 'step' (``start``, then ``end``), or 'cosine' (half a period).
        levels: distinct ratios of a cosine, evenly spaced; each step takes the nearest.
        at: share of the run at which a step schedule changes.
    """

    kind: str
    start: float
    end: float
    levels: int = 5
    at: float = 0.5

    def ratio(self, step: int, steps: int) -> float:
        """The ratio of a step, counted from 0, of a run of ``steps``."""
        if self.kind == 'constant':
            return self.start
        if self.kind == 'step':
            return self.start if step < round(self.at * steps) else self.end
        weight = (1 + math.cos(math.pi * (step + 0.5) / steps)) / 2
        level = round(weight * (self.levels - 1))
        return self.end + (self.start - self.end) * level / (self.levels - 1)

    def shares(self, steps: int) -> dict[float, float]:
        """Ratio to its share of a run of ``steps``, the first one first."""
        counts = Counter(self.ratio(step, steps) for step in range(steps))
        return {ratio: count / steps for ratio, count in counts.items()}

    def average(self, steps: int) -> float:
        """Mean ratio over a run of ``steps``."""
        return sum(ratio * share for ratio, share in self.shares(steps).items())


@HOOKS.register_module()
class ThrowRatioHook(Hook):
    """Sets the throw ratio of an attached model before each step, and logs it as ``throw_ratio``.

    Args:
        schedule: 'constant', 'step' or 'cosine'; see :class:`RatioSchedule`.
        start: ratio of the first steps.
        end: ratio of the last steps; by default the one with which the average over the run is
            the ratio that the model was attached with.
        levels: distinct ratios of a cosine, at least 2.
        at: share of the run, between 0 and 1, at which a step schedule changes.

    Raises:
        ValueError: a value is not as above; before training, if the model does not allow a ratio.
        TypeError: before training, if nothing is attached to the model.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        schedule: str = 'cosine',
        *,
        start: float,
        end: float | None = None,
        levels: int = 5,
        at: float = 0.5,
    ) -> None:
        check_choice('ThrowRatioHook: schedule', schedule, KINDS)
        check_number('ThrowRatioHook: start', start)
        if end is not None:
            check_number('ThrowRatioHook: end', end)
        check_whole('ThrowRatioHook: levels', levels, 2)
        if not 0 < check_number('ThrowRatioHook: at', at) < 1:
            raise ValueError(f'ThrowRatioHook: at={at} must be between 0 and 1')
        self.kind, self.start, self.end = schedule, start, end
        self.levels, self.at = levels, at
        self._schedule: RatioSchedule | None = None

    def schedule_of(self, model: nn.Module) -> RatioSchedule:
        """The schedule, with the ``end`` that makes its average the model's own ratio if none is given.

        Every ratio of it has been tried on the model, which is left as it was.

        Raises:
            ValueError: the model does not allow one.
        """
        if self._schedule is None:
            own = partial_of(model).throw_ratio
            schedule = RatioSchedule(self.kind, self.start, self._end(own), self.levels, self.at)
            try:
                for ratio in schedule.shares(_ENOUGH):
                    set_throw_ratio(model, ratio)
            except ValueError as error:
                raise ValueError(
                    f'ThrowRatioHook: {self.kind} from {schedule.start:g} to {schedule.end:g}: '
                    f'{error}'
                ) from error
            finally:
                set_throw_ratio(model, own)
            self._schedule = schedule
        return self._schedule

    def _end(self, average: float) -> float:
        if self.end is not None:
            return self.end
        if self.kind == 'constant':
            return self.start
        share = 0.5 if self.kind == 'cosine' else self.at
        end = (average - share * self.start) / (1 - share)
        return 0.0 if abs(end) < _TINY else end  # 0 may come out a little below

    def before_train(self, runner: Runner) -> None:
        """Check every ratio, before the first step."""
        schedule = self.schedule_of(unwrapped(runner.model))
        runner.logger.info(
            f'throw ratio: {schedule.kind} from {schedule.start:g} to {schedule.end:g}, '
            f'{len(schedule.shares(runner.max_iters))} values, average '
            f'{schedule.average(runner.max_iters):.4f} of {runner.max_iters} steps'
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Set the ratio of this step."""
        model = unwrapped(runner.model)
        ratio = self.schedule_of(model).ratio(runner.iter, runner.max_iters)
        if ratio != partial_of(model).throw_ratio:
            set_throw_ratio(model, ratio)
        runner.message_hub.update_scalar('train/throw_ratio', ratio)


_ENOUGH = 1000  # steps in which a schedule takes all of its values
_TINY = 1e-9


def ratio_hook(hooks: Iterable[Any]) -> ThrowRatioHook | None:
    """The one hook of a run that sets the throw ratio, if any."""
    return next((hook for hook in hooks if isinstance(hook, ThrowRatioHook)), None)
