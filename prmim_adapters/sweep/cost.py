# SPDX-License-Identifier: Apache-2.0
"""What the training run of a point costs: MACs counted, time and memory measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch import nn

from ..accounting import count_macs, training_macs
from ..core.seeding import seeded

_WARM_UP = 5
_COUNTED_IMAGES = 2


def few_images(model: nn.Module, data_batch: dict[str, Any]) -> dict[str, Any]:
    """The first two images of a batch of the loader, preprocessed as in training by ``model``.

    The random state stays as it was.
    """
    few = dict(
        inputs=_first(data_batch['inputs']),
        data_samples=data_batch['data_samples'][:_COUNTED_IMAGES],
    )
    with seeded(0), torch.no_grad():
        return model.data_preprocessor(few, True)


def counted_macs(model: nn.Module, data_batch: dict[str, Any]) -> dict[str, float]:
    """Forward and training GMACs per image of the loss path; the random state stays as it was."""
    batch = few_images(model, data_batch)
    training = training_macs(model, batch)
    return dict(
        forward_gmacs=count_macs(model, batch).total / 1e9,
        training_gmacs=(training.forward.total + training.backward.total) / 1e9,
    )


def run_cost(runner: Runner, macs: dict[str, float]) -> dict[str, float]:
    """The cost of a whole run after its last step.

    Args:
        runner: of the run.
        macs: :func:`counted_macs` on average over the run, and the average ``throw_ratio``; empty
            where nothing could be counted.

    Returns:
        dict: ``macs``; ``steps`` and ``images``, passes of an image counted each; ``total_tmacs``,
        training MACs of all of them in units of 1e12; and :func:`measured_cost`.
    """
    images = float(runner.iter * (runner.train_dataloader.batch_size or 1) * get_world_size())
    cost = dict(macs, steps=float(runner.iter), images=images)
    if 'training_gmacs' in macs:
        cost['total_tmacs'] = macs['training_gmacs'] * images / 1e3
    return cost | measured_cost(runner)


def measured_cost(runner: Runner) -> dict[str, float]:
    """Medians over the iterations after warm-up: seconds per step and for data, and images/s."""
    history = runner.message_hub.log_scalars
    cost: dict[str, float] = {}
    for name, key in (('step_seconds', 'train/time'), ('data_seconds', 'train/data_time')):
        values, _ = history[key].data
        cost[name] = float(np.median(values[_WARM_UP:] if len(values) > _WARM_UP else values))
    batch = runner.train_dataloader.batch_size or 1
    cost['images_per_second'] = batch * get_world_size() / cost['step_seconds']
    losses, _ = history['train/loss'].data
    cost['last_loss'] = float(np.mean(losses[-max(len(losses) // 20, 1) :]))
    if torch.cuda.is_available():
        cost['peak_memory_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return cost


def _first(inputs: Any) -> Any:
    if isinstance(inputs, (list, tuple)):
        return [view[:_COUNTED_IMAGES] for view in inputs]
    return inputs[:_COUNTED_IMAGES]
