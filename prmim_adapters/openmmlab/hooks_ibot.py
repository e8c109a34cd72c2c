# SPDX-License-Identifier: Apache-2.0
"""iBOT's training schedule, as far as mmengine has no scheduler for it.

Learning rate and weight decay follow ``LinearLR``, ``CosineAnnealingLR`` and
``CosineAnnealingWeightDecay``; the teacher's momentum is ``CosineEMA``'s.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from .distributed import unwrapped


@HOOKS.register_module()
class TeacherTempHook(Hook):
    """Linear warm-up of the teacher's temperatures, epoch by epoch.

    The first epoch has the first value, epoch ``warmup_epochs`` (counted from 1) and all later
    ones the second. It depends on the epoch only, so a resumed run goes on rightly.

    Args:
        cls: first and last temperature of the class tokens.
        patch: the same for patch tokens.
        warmup_epochs: length of the warm-up.
    """

    def __init__(
        self,
        cls: tuple[float, float] = (0.04, 0.07),
        patch: tuple[float, float] = (0.04, 0.07),
        warmup_epochs: int = 30,
    ) -> None:
        self.cls, self.patch, self.warmup_epochs = cls, patch, warmup_epochs

    def before_train_epoch(self, runner: Runner) -> None:
        """Set both temperatures for this epoch."""
        done = 1.0
        if runner.epoch < self.warmup_epochs:
            done = runner.epoch / max(self.warmup_epochs - 1, 1)
        head = unwrapped(runner.model).head
        head.teacher_temp = self.cls[0] + done * (self.cls[1] - self.cls[0])
        head.teacher_patch_temp = self.patch[0] + done * (self.patch[1] - self.patch[0])


class _BeforeStep(Hook):
    """A hook that acts between backward and the optimizer's step.

    mmengine has no such point. The optimizer itself has: there gradients are reduced over all
    processes and, under a gradient scaler, in true units.
    """

    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Register with the optimizer."""
        parameters = dict(unwrapped(runner.model).named_parameters())

        def act(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.before_step(runner, parameters)

        self.handle = runner.optim_wrapper.optimizer.register_step_pre_hook(act)

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer as it was."""
        self.handle.remove()

    def before_step(self, runner: Runner, parameters: dict[str, nn.Parameter]) -> None:
        """Change gradients in place."""
        raise NotImplementedError


@HOOKS.register_module()
class FreezeLastLayerHook(_BeforeStep):
    """Keep the prototypes fixed during the first epochs by dropping their gradients.

    The parameters stay in the graph, so distributed training needs no ``find_unused_parameters``,
    and neither weight decay nor the optimizer's moments touch them.

    Args:
        epochs: how many epochs.
        prefix: start of the names of the parameters.
    """

    def __init__(self, epochs: int = 1, prefix: str = 'neck.last_layer') -> None:
        self.epochs, self.prefix = epochs, prefix

    def before_step(self, runner: Runner, parameters: dict[str, nn.Parameter]) -> None:
        """Drop the gradients."""
        if runner.epoch < self.epochs:
            for name, parameter in parameters.items():
                if name.startswith(self.prefix):
                    parameter.grad = None


@HOOKS.register_module()
class ClipEachGradHook(_BeforeStep):
    """Clip the norm of each parameter's gradient by itself, as DINO and iBOT do.

    mmengine's ``clip_grad`` clips the norm of all of them together.

    Args:
        max_norm: largest L2 norm of the gradient of one parameter.
    """

    def __init__(self, max_norm: float = 3.0) -> None:
        self.max_norm = max_norm

    def before_step(self, runner: Runner, parameters: dict[str, nn.Parameter]) -> None:
        """Scale the gradients that are too long, without waiting for the device."""
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        norms = torch._foreach_norm(grads)
        scales = [(self.max_norm / (norm + 1e-6)).clamp(max=1) for norm in norms]
        torch._foreach_mul_(grads, scales)
