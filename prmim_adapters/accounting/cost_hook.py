# SPDX-License-Identifier: Apache-2.0
"""A hook that looks before training starts: does a real batch fit, and what does a step cost?"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from ..adapters import is_attached
from ..core.options import check_flag, check_whole
from ..core.seeding import seeded
from ..errors import described
from ..openmmlab.distributed import unwrapped
from ..openmmlab.fully_shard import is_sharded
from ..openmmlab.misfit import misfit_named
from ..openmmlab.models import build_model
from ..openmmlab.throw_ratio import ratio_hook
from .batch import first_batch
from .environment import environment
from .flops import UndercountError, count_macs, training_macs
from .loss_path import scratch
from .report import compare
from .scheduled import average_over_run
from .variants import variants_of


@HOOKS.register_module()
class CostHook(Hook):
    """Once, before the first iteration: validate a batch of the training data, log the cost table.

    It also warns when processes share a seed, and so draw the same masks.
    The model, the data loader and the random state stay as they were. The table is also written
    to ``cost.json`` beside the log, with versions and commit, and with the average over the run
    where a ``ThrowRatioHook`` changes the ratio. In a config::

        custom_imports = dict(imports=['prmim_adapters.openmmlab',
                                       'prmim_adapters.accounting.cost_hook'])
        custom_hooks = [dict(type='CostHook')]

    Args:
        batch_size: images that are looked at, at least 2.
        full: count training MACs and explicit attention too; adds about two training steps of
            that batch for each column.
        table: False only validates.

    Raises:
        ValueError: the batch does not go through the loss path, or its loss is not finite.
    """

    priority = 'VERY_LOW'

    def __init__(self, batch_size: int = 2, full: bool = False, table: bool = True) -> None:
        self.batch_size = check_whole('CostHook: batch_size', batch_size, 2)
        self.full = check_flag('CostHook: full', full)
        self.table = check_flag('CostHook: table', table)

    def before_train(self, runner: Runner) -> None:
        """Runs on the main process only, as the others would see the same; all compare seeds."""
        warn_of_shared_seeds(runner)
        if runner.rank != 0:
            return
        model = model_to_copy(runner)
        batch = first_batch(runner.train_dataloader, model, self.batch_size)
        validate(model, batch)
        if self.table and is_attached(model):
            self._log_costs(runner, model, batch)

    def _log_costs(self, runner: Runner, model: nn.Module, batch: dict[str, Any]) -> None:
        optimizer = runner.cfg.get('optim_wrapper', {}).get('optimizer')
        try:
            report = compare(variants_of(model), batch, optimizer, full=self.full)
        except UndercountError as error:  # no number rather than a wrong one; training is not hurt
            runner.logger.warning(f'Cost of a training step: not counted. {error}')
            return
        runner.logger.info(f'Cost of a training step\n\n{report.markdown()}')
        found = report.to_dict() | dict(environment=environment())
        if ratio_hook(runner.hooks) is not None:
            count = partial(self._macs, batch=batch)
            found['run'] = average_over_run(runner, count, runner.max_iters)
            numbers = ', '.join(f'{key} {value:.4g}' for key, value in found['run'].items())
            runner.logger.info(f'Average over the scheduled throw ratios of the run: {numbers}')
        path = Path(runner.log_dir) / 'cost.json'
        path.write_text(json.dumps(found, indent=2))

    def _macs(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, float]:
        """GMACs per image of a step at the model's ratio."""
        if not self.full:
            return dict(forward_gmacs=count_macs(model, batch).total / 1e9)
        macs = training_macs(model, batch)
        return dict(
            forward_gmacs=macs.forward.total / 1e9,
            training_gmacs=(macs.forward.total + macs.backward.total) / 1e9,
        )


def model_to_copy(runner: Runner) -> Any:
    """The algorithm, or a new one of its config where it is in shards, which cannot be copied."""
    model = unwrapped(runner.model)
    if not is_sharded(model):
        return model
    with seeded(0):
        return build_model(runner.cfg).to(get_device())


def warn_of_shared_seeds(runner: Runner) -> None:
    """Log a warning if not every process has a seed of its own."""
    seeds = all_gather_object(torch.initial_seed())
    if len(set(seeds)) < len(seeds):
        runner.logger.warning(
            f'{len(seeds)} processes share {len(set(seeds))} seed(s): those that do draw the same '
            'masks and the same kept tokens. Set randomness = dict(diff_rank_seed=True) in the '
            'config'
        )


def validate(model: nn.Module, batch: dict[str, Any]) -> None:
    """Run the loss path of a copy of the model once.

    Raises:
        ValueError: it fails, for example because a mask has too few masked tokens for the throw
            ratio, or the loss is not finite.
    """
    try:
        with (
            torch.no_grad(),
            scratch(model, batch) as (path, views),
            misfit_named(model, batch['inputs']),
        ):
            loss = float(path(*views))
    except Exception as error:
        reason = described(error)
        raise ValueError(f'the first training images do not fit the model: {reason}') from error
    if not math.isfinite(loss):
        raise ValueError(f'the first training images give a loss of {loss} before any update')
