# SPDX-License-Identifier: Apache-2.0
"""iBOT's training schedule, as far as mmengine has no scheduler for it.

Learning rate and weight decay follow ``LinearLR``, ``CosineAnnealingLR`` and
``CosineAnnealingWeightDecay``; the teacher's momentum is ``CosineEMA``'s.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS
from torch import nn

from ..core.options import check_name, check_number, check_whole
from .distributed import unwrapped


def _check_epochs(hook: Hook, runner: Runner) -> None:
    """Refuse training whose epoch stays 0, so that what ends by epochs would never end.

    Raises:
        ValueError: it is iteration-based.
    """
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        raise ValueError(
            f'{type(hook).__name__} counts epochs, and training by iterations has none: set '
            'train_cfg=dict(by_epoch=True, max_epochs=...)'
        )


@HOOKS.register_module()
class TeacherTempHook(Hook):
    """Linear warm-up of the teacher's temperatures, epoch by epoch.

    The first epoch has the first value, epoch ``warmup_epochs`` (counted from 1) and all later
    ones the second. It depends on the epoch only, so a resumed run goes on rightly.

    Args:
        cls: first and last temperature of the class tokens.
        patch: the same for patch tokens.
        warmup_epochs: length of the warm-up.

    Raises:
        TypeError, ValueError: an option is no number, or out of range; in ``before_train``: the
            model's head has no such temperatures, training is by iterations, or gradients are
            accumulated over more passes than the teacher waits for.
    """

    def __init__(
        self,
        cls: tuple[float, float] = (0.04, 0.07),
        patch: tuple[float, float] = (0.04, 0.07),
        warmup_epochs: int = 30,
    ) -> None:
        self.cls = _first_and_last('TeacherTempHook: cls', cls)
        self.patch = _first_and_last('TeacherTempHook: patch', patch)
        self.warmup_epochs = check_whole('TeacherTempHook: warmup_epochs', warmup_epochs, 0)

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to warm up."""
        model = unwrapped(runner.model)
        head = getattr(model, 'head', None)
        for name in ('teacher_temp', 'teacher_patch_temp'):
            if not hasattr(head, name):
                raise ValueError(
                    f"TeacherTempHook warms up iBOT's head, and the head of {type(model).__name__} "
                    f'({type(head).__name__}) has no {name}: remove the hook'
                )
        if self.warmup_epochs:
            _check_epochs(self, runner)
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        interval = getattr(getattr(model, 'teacher', None), 'interval', counts)
        if interval % counts:
            raise ValueError(
                f'optim_wrapper.accumulative_counts={counts}, but iBOT moves its teacher every '
                f'{interval} forward pass(es), between which the student stays as it is: set '
                f"momentum_interval={counts} in the framework's config"
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Set both temperatures for this epoch."""
        done = 1.0
        if runner.epoch < self.warmup_epochs:
            done = runner.epoch / max(self.warmup_epochs - 1, 1)
        head = unwrapped(runner.model).head
        head.teacher_temp = self.cls[0] + done * (self.cls[1] - self.cls[0])
        head.teacher_patch_temp = self.patch[0] + done * (self.patch[1] - self.patch[0])


def _first_and_last(name: str, values: Any) -> tuple[float, float]:
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise TypeError(f'{name}={values!r}: expected the first and the last temperature')
    first, last = (check_number(name, value, 1e-6) for value in values)
    return first, last


class _BeforeStep(Hook):
    """A hook that acts between backward and the optimizer's step.

    mmengine has no such point. The optimizer itself has: there gradients are reduced over all
    processes and, under a gradient scaler, in true units unless the optimizer is a fused one.
    """

    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Register with the optimizer.

        Raises:
            ValueError: there are several.
        """
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError(
                f'{type(self).__name__} acts on one optimizer, and the optim_wrapper has '
                f'{", ".join(runner.optim_wrapper.keys())}'
            )
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

    Raises:
        TypeError, ValueError: ``epochs`` is no number of epochs; in ``before_train``: no parameter
            has such a name, or training is by iterations.
    """

    def __init__(self, epochs: int = 1, prefix: str = 'neck.last_layer') -> None:
        self.epochs = check_whole('FreezeLastLayerHook: epochs', epochs, 0)
        self.prefix = check_name('FreezeLastLayerHook: prefix', prefix)

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to freeze."""
        model = unwrapped(runner.model)
        if not any(name.startswith(self.prefix) for name, _ in model.named_parameters()):
            parts = ', '.join(name for name, _ in model.named_children())
            raise ValueError(
                f'FreezeLastLayerHook: no parameter of {type(model).__name__} begins with prefix='
                f'{self.prefix!r}; its parts are {parts}'
            )
        if self.epochs:
            _check_epochs(self, runner)
        super().before_train(runner)

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

    Raises:
        TypeError, ValueError: ``max_norm`` is no positive number.
    """

    def __init__(self, max_norm: float = 3.0) -> None:
        self.max_norm = check_number('ClipEachGradHook: max_norm', max_norm, 1e-12)

    def before_step(self, runner: Runner, parameters: dict[str, nn.Parameter]) -> None:
        """Scale the gradients that are too long, without waiting for the device."""
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        norms = torch._foreach_norm(grads)
        # A fused optimizer takes the scaler's factor out in its own step.
        factor = getattr(runner.optim_wrapper.optimizer, 'grad_scale', None)
        longest = self.max_norm if factor is None else self.max_norm * factor
        scales = [(longest / (norm + 1e-6)).clamp(max=1) for norm in norms]
        torch._foreach_mul_(grads, scales)
