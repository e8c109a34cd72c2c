# SPDX-License-Identifier: Apache-2.0
"""What the training run of a point costs: MACs counted, time and memory measured."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch import nn

from ..accounting import count_macs, training_macs
from ..accounting.loss_path import Batch

_WARM_UP = 5


def counted_macs(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Forward and training GMACs per image of the loss path on a preprocessed batch."""
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
