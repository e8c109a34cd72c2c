# SPDX-License-Identifier: Apache-2.0
"""What a run costs on average when a hook changes the throw ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.runner import Runner

from ..adapters import is_attached, partial_of, set_throw_ratio
from ..openmmlab.distributed import unwrapped
from ..openmmlab.throw_ratio import ratio_hook


def average_over_run(
    runner: Runner, measure: Callable[[Any], dict[str, float]], steps: int
) -> dict[str, float]:
    """Mean over the steps of a run of what ``measure`` says of the model at the ratio of each.

    Args:
        runner: of the run; its model is left at the ratio that it has.
        measure: model -> numbers by name; called once for each distinct ratio.
        steps: of the run.

    Returns:
        dict: the means, and ``throw_ratio``, 0 where nothing is attached.
    """
    model = unwrapped(runner.model)
    if not is_attached(model):
        return dict(measure(model), throw_ratio=0.0)
    own, hook = partial_of(model).throw_ratio, ratio_hook(runner.hooks)
    if hook is None:
        return dict(measure(model), throw_ratio=own)
    schedule, means = hook.schedule_of(model), dict(throw_ratio=0.0)
    try:
        for ratio, share in schedule.shares(steps).items():
            for name, value in measure(set_throw_ratio(model, ratio)).items():
                means[name] = means.get(name, 0.0) + share * value
            means['throw_ratio'] += share * ratio
    finally:
        set_throw_ratio(model, own)
    return means
