# SPDX-License-Identifier: Apache-2.0
"""Arms of one seed start from the same weights and see the same images and masks.

What an arm draws beyond its framework (a sampler, the weights of an aggregator) would shift all that
is drawn after it. So every draw of a step depends on the seed and the number of the step alone, and
the framework's parameters are initialised as if nothing were attached. Differences between arms then
vary less from seed to seed, and the same number of seeds decides more.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..adapters import detach, is_attached, partial_of
from ..core.seeding import seeded
from ..openmmlab.distributed import unwrapped


@HOOKS.register_module()
class PairedDrawsHook(Hook):
    """Seeds Python, numpy and torch before every step, from the run's seed, rank and the step.

    Samples that are augmented in the workers of a data loader depend on the seed alone already. A
    method without an adapter starts from the framework's weights as far as both draw them in the
    same order.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def before_run(self, runner: Runner) -> None:
        """Draw the framework's initial weights, before the model's own are."""
        model = copy.deepcopy(unwrapped(runner.model))
        if is_attached(model):
            detach(model)
        if hasattr(model, 'init_weights'):
            with seeded(runner.seed):
                model.init_weights()
            self.weights = model.state_dict()

    def before_train(self, runner: Runner) -> None:
        """Begin with them, unless a checkpoint has been loaded."""
        if runner.iter == 0 and runner._load_from is None:
            model = unwrapped(runner.model)
            model.load_state_dict(self.weights, strict=False)
            for value in model.state_dict().values():  # seeds differ by rank, weights must not
                broadcast(value)
        self.weights = {}

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Seed this step."""
        entropy = [runner.seed, get_rank(), runner.iter]
        state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        model = unwrapped(runner.model)
        if is_attached(model):  # samplers have a source of their own
            partial_of(model).randomness.seed(state)
