# SPDX-License-Identifier: Apache-2.0
"""Training steps whose forward and backward pass is one CUDA graph.

    custom_hooks = [dict(type='CUDAGraphHook')]

Where the host that queues kernels is slower than the device that runs them (small models, Swin,
ConvNeXt), a step with PR-MIM takes as long as one without. A graph is started by one call. Data,
augmentation, clipping and optimizer run as ever, so their settings may change from step to step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmpretrain.models import MAE, MILAN, MaskFeat, SimMIM, iTPN
from mmpretrain.registry import HOOKS
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..core import PartialReconstruction
from ..core.cuda_graph import CapturedPass
from ..frameworks.fcmae import FCMAE
from .finite_loss import FiniteLossHook

ALGORITHMS = (MAE, SimMIM, MaskFeat, FCMAE, MILAN, iTPN)
"""Their steps wait for no value of the device, and change by data and weights alone."""


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Capture the forward and backward pass of the second step, and replay it from then on.

    Steps of other shapes, or of another throw ratio, have a graph of their own. A graph holds its
    activations for good, and those of the light stages, which are otherwise made again in backward.

    Raises:
        ValueError: before training, if the run cannot be captured: another algorithm than
            ``ALGORITHMS``, no GPU, several processes, accumulated gradients, or a training step of
            the model's or the optimizer wrapper's own.
    """

    priority = 'VERY_LOW'  # after the hooks that change the model

    def before_train(self, runner: Runner) -> None:
        """Replace the model's training step."""
        refuse(runner)
        watching = [hook for hook in runner.hooks if isinstance(hook, FiniteLossHook)]
        runner.model.train_step = _CapturedStep(runner.model, watching)

    def after_train(self, runner: Runner) -> None:
        """Give the model its own training step again."""
        vars(runner.model).pop('train_step', None)


def refuse(runner: Runner) -> None:
    """See :class:`CUDAGraphHook` for what is refused, and why."""
    model = runner.model
    device = _device(model)
    names = ', '.join(cls.__name__ for cls in ALGORITHMS)
    wrapper = runner.optim_wrapper
    counts = getattr(wrapper, '_accumulative_counts', None)
    for wrong, found, advice in (
        (device.type != 'cuda', f'the model is on {device}', 'train on a GPU'),
        (get_world_size() > 1, f'{get_world_size()} processes', 'train in one process'),
        (
            type(model).train_step is not BaseModel.train_step,
            f'{type(model).__name__} has a train_step of its own, which would not be called',
            'do without it',
        ),
        (
            type(wrapper).update_params is not OptimWrapper.update_params,
            f'{type(wrapper).__name__} has an update_params of its own, which would not be called',
            'use OptimWrapper or AmpOptimWrapper',
        ),
        (counts != 1, f'accumulative_counts={counts}', 'do not accumulate gradients'),
        (
            not isinstance(model, ALGORITHMS),
            f'the model is {type(model).__name__}, whose steps may wait for the device or depend on '
            'more than data and weights',
            f'use one of {names}',
        ),
    ):
        if wrong:
            raise ValueError(f'CUDAGraphHook: {found}: {advice}, or leave the hook out')


def _device(model: BaseModel) -> torch.device:
    return next(model.parameters()).device


class _CapturedStep:
    """``BaseModel.train_step`` with a :class:`CapturedPass` in it.

    Args:
        model: the algorithm.
        watching: hooks that look at every loss; a replay calls no module, and so not them.
    """

    def __init__(self, model: BaseModel, watching: list[FiniteLossHook]) -> None:
        self.model, self.watching = model, watching
        self.captured = CapturedPass(model)
        self.parts = [m for m in model.modules() if isinstance(m, PartialReconstruction)]

    def __call__(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        with optim_wrapper.optim_context(self.model):
            data = self.model.data_preprocessor(data, True)

        def run(tensors: Any) -> dict[str, Tensor]:
            with optim_wrapper.optim_context(self.model):
                losses = self.model._run_forward(_with_tensors(data, tensors), mode='loss')
            loss, log_vars = self.model.parse_losses(losses)
            optim_wrapper.backward(optim_wrapper.scale_loss(loss))
            return log_vars

        for hook in self.watching:
            hook.remember()
        ratios = tuple(part.throw_ratio for part in self.parts)
        log_vars = self.captured(tensors_of(data), run, key=ratios)
        for hook in self.watching:
            hook.look((), dict(data, mode='loss'), log_vars)
        optim_wrapper.step()
        optim_wrapper.zero_grad()
        return {name: value.detach().clone() for name, value in log_vars.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """A copy of the model takes ordinary steps."""
        return partial(type(self.model).train_step, memo[id(self.model)])


def tensors_of(data: Any) -> list[Tensor]:
    """Every tensor in a batch, those of its data samples included, in order.

    Raises:
        TypeError: it holds something else, which a graph would take for constant.
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(data):
        sample = isinstance(leaf, BaseDataElement)
        for name, value in leaf.items() if sample else [('something', leaf)]:
            if isinstance(value, Tensor):
                found.append(value)
            elif value is not None:
                raise TypeError(
                    f'CUDAGraphHook: {name!r} of a {"data sample" if sample else "batch"} is '
                    f'{type(value).__name__}: only tensors can differ between replays; leave it '
                    'out in PackInputs'
                )
    return found


def _with_tensors(data: Any, tensors: list[Tensor]) -> Any:
    """The batch with other tensors in the places of its own."""
    memo = {id(old): new for old, new in zip(tensors_of(data), tensors, strict=True)}
    return copy.deepcopy(data, memo)
