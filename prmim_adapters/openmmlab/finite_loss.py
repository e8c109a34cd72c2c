# SPDX-License-Identifier: Apache-2.0
"""Training stops at the first loss that is not finite, and says where it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..core.cuda_graph import is_capturing
from .distributed import unwrapped, without_process_group
from .fully_shard import is_sharded
from .random_states import random_states, set_random_states

_NAMED = 8


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or infinite; names iteration, module and images."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop before a loss that is not finite reaches a gradient, and so the weights.

    A step costs one comparison of the loss. When it fails, the forward pass is repeated with the
    same random numbers and every module watched: the error names the first one whose output is not
    finite, and the images in whose rows that is so, or the whole batch. A model in shards is not
    looked into: only its images are.

    Raises:
        NonFiniteLossError: a loss is not finite.
    """

    def before_train(self, runner: Runner) -> None:
        """Watch the losses of the algorithm, between its forward and backward pass."""
        self.runner, self.model = runner, unwrapped(runner.model)
        self.states: dict[str, Any] = {}
        # Functions: a bound method would take this run along into every copy of the model.
        self.handles = [
            self.model.register_forward_pre_hook(lambda *_: self.remember()),
            self.model.register_forward_hook(lambda _, *seen: self.look(*seen), with_kwargs=True),
        ]

    @torch.compiler.disable
    def remember(self) -> None:
        """The random numbers of the pass that begins."""
        if not is_capturing(next(self.model.parameters())):
            self.states.update(random_states(self.model))

    @torch.compiler.disable
    def look(self, args: tuple, kwargs: dict[str, Any], losses: Any) -> None:
        """At the losses of the pass that was called with these arguments.

        Raises:
            NonFiniteLossError: one is not finite.
        """
        if is_capturing(next(self.model.parameters())):
            return
        wrong = non_finite_losses(losses)
        if wrong:
            self.after_train(self.runner)
            set_random_states(self.states, self.model)
            raise NonFiniteLossError(
                f'iteration {self.runner.iter}: '
                f'{", ".join(f"{k} is {v}" for k, v in wrong.items())}. '
                f'{origin(self.model, args, kwargs)}. No weight has been changed by it; resume '
                'from the last checkpoint after mending the cause'
            )

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()


def non_finite_losses(losses: Any) -> dict[str, float]:
    """Those of the losses that training optimises, the entries with 'loss' in their name."""
    if not isinstance(losses, dict):  # features, not a training step
        return {}
    means = {
        name: sum(leaf.detach().mean() for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        for name, value in losses.items()
        if 'loss' in name
    }
    if torch.isfinite(torch.as_tensor(sum(means.values()))):  # the only wait for the device
        return {}
    return {name: float(v) for name, v in means.items() if not torch.isfinite(torch.as_tensor(v))}


class _FoundError(Exception):
    """Ends the repeated pass: module, and rows of its output that are not finite."""


def origin(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> str:
    """Where a repeated forward pass first is not finite, in words."""
    images = Images(args, kwargs)
    if rows := images.non_finite():
        return f'The images are not finite: {images.names(rows)}'
    if is_sharded(model):  # the other processes, whose losses may be finite, would be waited for
        return f'A model in shards is not looked into; images: {images.names([])}'
    handles = [
        module.register_forward_hook(_stop_at(name))
        for name, module in model.named_modules()
        if module is not model
    ]
    try:
        with torch.no_grad(), without_process_group():
            model(*args, **kwargs)
    except _FoundError as found:
        name, output = found.args
        kind = type(model.get_submodule(name)).__name__
        parameters = [
            f'{name}.{key}'
            for key, value in model.get_submodule(name).named_parameters()
            if not torch.isfinite(value).all()
        ]
        cause = f', and so are its parameters {", ".join(parameters)}' if parameters else ''
        return (
            f'The first output that is not finite is that of {name} ({kind}){cause}; images: '
            f'{images.names(images.rows(output))}'
        )
    except Exception as error:  # the first error counts, whatever stands in the way of the second
        return f'The forward pass cannot be repeated ({error!r}); images: {images.names([])}'
    finally:
        for handle in handles:
            handle.remove()
    return f'All modules have finite outputs; images: {images.names([])}'


def _stop_at(name: str) -> Callable[..., None]:
    def watch(module: nn.Module, args: tuple, output: Any) -> None:
        for leaf in tree_leaves(output):
            if not _finite(leaf):
                raise _FoundError(name, leaf)

    return watch


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor) and value.is_floating_point():
        return bool(torch.isfinite(value).all())
    return True


class Images:
    """The images of a batch, by name.

    Args:
        args, kwargs: what the algorithm was called with, ``inputs`` and ``data_samples``.
    """

    def __init__(self, args: tuple, kwargs: dict[str, Any]) -> None:
        values = dict(zip(('inputs', 'data_samples'), args, strict=False)) | kwargs
        self.views = [
            leaf for leaf in tree_leaves(values.get('inputs')) if isinstance(leaf, Tensor)
        ]
        self.samples = values.get('data_samples') or []
        self.count = len(self.views[0]) if self.views else len(self.samples)

    def rows(self, output: Tensor) -> list[int]:
        """Images whose rows in an output are not finite; none if it has other rows."""
        if output.dim() == 0 or len(output) != self.count:
            return []
        return (~torch.isfinite(output)).flatten(1).any(1).nonzero()[:, 0].tolist()

    def non_finite(self) -> list[int]:
        """Images that are not finite themselves."""
        return sorted({row for view in self.views for row in self.rows(view)})

    def names(self, rows: list[int]) -> str:
        """Paths or numbers of some images, of all where ``rows`` is empty."""
        rows = rows or list(range(self.count))
        shown = ', '.join(map(self._name, rows[:_NAMED]))
        return shown if len(rows) <= _NAMED else f'{shown} and {len(rows) - _NAMED} more'

    def _name(self, row: int) -> str:
        sample = self.samples[row] if row < len(self.samples) else None
        path, index = (getattr(sample, key, None) for key in ('img_path', 'sample_idx'))
        if path is not None:
            return str(path)
        return f'number {row} of the batch' if index is None else f'sample {index}'
