# SPDX-License-Identifier: Apache-2.0
"""What an adapter is, and ``attach`` / ``detach``.

An adapter names the seams of one framework: the modules whose class changes to a subclass that
runs the heavy network on present tokens only. The subclasses find the shared part,
:class:`~prmim_adapters.core.PartialReconstruction`, as ``self.partial``.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, TypeVar

from torch import nn

from ..core import PartialReconstruction
from ..core.partition import Grid, Sampler
from .registry import ADAPTERS, AGGREGATORS, SAMPLERS

Model = TypeVar('Model', bound=nn.Module)
Spec = str | dict[str, Any] | None

_STATE = '_prmim_attachment'


class Adapter(ABC):
    """The seams of one framework. Class methods only; a subclass is never instantiated.

    ``classes`` maps each class of the framework that is changed to the subclass that it becomes.
    The module at ``host`` owns the aggregator, so its parameters appear in the state dict as
    ``<host>.partial.*``; the modules at ``guests`` are changed too and share it.
    """

    classes: ClassVar[Mapping[type, type]]
    host: ClassVar[str]
    guests: ClassVar[tuple[str, ...]] = ()
    #: False where features know no absolute position, so that aggregators must be told.
    absolute_positions: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def grid(cls, model: Any) -> Grid:
        """(H, W) in tokens; raises ValueError where the model's sizes disagree."""

    @classmethod
    @abstractmethod
    def width(cls, model: Any) -> int:
        """Channels of the features from which thrown tokens are reconstructed."""

    @classmethod
    def num_masked(cls, model: Any) -> int | None:
        """Masked tokens per image if the model makes its own masks, None if the data do."""
        return None

    @classmethod
    def num_prefix(cls, model: Any) -> int:
        """Prefix tokens (cls, registers) before the patch tokens in the heavy network."""
        return 0


def patch_grid(image_size: Grid, patch_size: Grid, where: str) -> Grid:
    """(H, W) in tokens of an image of ``image_size`` pixels.

    Raises:
        ValueError: a side is not divisible by the patch size; ``where`` says where it came from.
    """
    if any(size % patch for size, patch in zip(image_size, patch_size, strict=True)):
        raise ValueError(
            f'{where}={tuple(image_size)} is not divisible by the patch size {tuple(patch_size)}: '
            'choose a multiple of it'
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


@dataclass(frozen=True)
class Attachment:
    """What ``detach`` needs: the adapter, and the original class of each changed module."""

    adapter: type[Adapter]
    originals: dict[str, type]


def attach(
    model: Model,
    throw_ratio: float = 0.5,
    sampler: Spec = 'farthest',
    aggregator: Spec | Sequence[Spec] = 'cross_attention',
    *,
    thrown_weight: float = 1.0,
    stop_gradient: bool = False,
    max_masked_share: float = 2 / 3,
) -> Model:
    """Attach progressive partial reconstruction (arXiv 2411.15746) to a MIM model, in place.

    Args:
        model: a model of a framework with an adapter, not yet wrapped for distributed training.
        throw_ratio: thrown tokens / all tokens of the patch grid, at least 0 and below the mask
            ratio. 0 computes the framework's original loss.
        sampler: a name in ``SAMPLERS``, or ``dict(type=name, **options)``.
        aggregator: a name in ``AGGREGATORS``, or ``dict(type=name, **options)``; None is plain
            partial reconstruction (thrown tokens carry no loss); a list makes several
            progressive stages.
        thrown_weight: weight of a thrown token in the loss, where a kept one weighs 1.
        stop_gradient: keep the thrown tokens' loss from the heavy network.
        max_masked_share: largest share of an image's masked tokens to throw; only frameworks
            with ragged masks look at it.

    Returns:
        The same object. Its state dict has the framework's keys and the aggregator's.

    Raises:
        TypeError: no adapter for this class, or a ratio that is not a number.
        ValueError: attached already, or a value out of range; the message says what is allowed.
        KeyError: unknown sampler or aggregator.
    """
    if is_attached(model):
        raise ValueError(
            f'{type(model).__name__} has partial reconstruction attached already; call '
            'prmim_adapters.detach(model) first'
        )
    adapter = _find_adapter(model)
    partial = _build(
        adapter,
        model,
        throw_ratio,
        sampler,
        aggregator,
        thrown_weight=thrown_weight,
        stop_gradient=stop_gradient,
        max_masked_share=max_masked_share,
    )
    paths = (adapter.host, *adapter.guests)
    changes = {path: _subclass(adapter, model, path) for path in paths}
    originals = {path: type(model.get_submodule(path)) for path in paths}
    for path, changed in changes.items():
        module = model.get_submodule(path)
        module.__class__ = changed
        if path == adapter.host:
            module.partial = partial
        else:  # shared, not owned: a second owner would double the state dict's keys
            module.__dict__['partial'] = partial
    model.__dict__[_STATE] = Attachment(adapter, originals)
    return model


def detach(model: Model) -> Model:
    """Give back the framework's own classes and behaviour, in place; drops the aggregator.

    Raises:
        ValueError: nothing is attached to ``model``.
    """
    attachment = attachment_of(model)
    for path, original in attachment.originals.items():
        module = model.get_submodule(path)
        module.__class__ = original
        if path == attachment.adapter.host:
            del module.partial
        else:
            del module.__dict__['partial']
    del model.__dict__[_STATE]
    return model


def is_attached(model: nn.Module) -> bool:
    """Whether ``attach`` has been called on this model."""
    return _STATE in model.__dict__


def attachment_of(model: nn.Module) -> Attachment:
    """The record that ``attach`` left.

    Raises:
        ValueError: nothing is attached to ``model``.
    """
    if not is_attached(model):
        raise ValueError(f'{type(model).__name__} has no partial reconstruction attached')
    return model.__dict__[_STATE]


def partial_of(model: nn.Module) -> PartialReconstruction:
    """The shared part of an attached model: ratio, sampler, aggregators, last partition.

    Raises:
        ValueError: nothing is attached to ``model``.
    """
    return model.get_submodule(attachment_of(model).adapter.host).partial  # type: ignore[return-value]


def _find_adapter(model: nn.Module) -> type[Adapter]:
    adapter = ADAPTERS.find(type(model))
    if adapter is None:
        found = f'{type(model).__module__}.{type(model).__qualname__}'
        wrapped = ' (attach before wrapping it)' if hasattr(model, 'module') else ''
        raise TypeError(
            f'no adapter for {found}{wrapped}. Supported: {", ".join(ADAPTERS)}. For a framework '
            "of your own: @ADAPTERS.register_module(framework='my_pkg.MyMIM')"
        )
    return adapter


def _build(
    adapter: type[Adapter],
    model: nn.Module,
    throw_ratio: float,
    sampler: Spec,
    aggregator: Spec | Sequence[Spec],
    **options: Any,
) -> PartialReconstruction:
    grid = adapter.grid(model)
    _check_ratio(throw_ratio, grid, adapter.num_masked(model))
    _check_number('thrown_weight', options['thrown_weight'], 0.0, math.inf)
    _check_number('max_masked_share', options['max_masked_share'], 0.0, 1.0)
    stages = list(aggregator) if isinstance(aggregator, (list, tuple)) else [aggregator]
    if round(throw_ratio * grid[0] * grid[1]) == 0:
        stages = []  # nothing to reconstruct: an aggregator would never be used
    return PartialReconstruction(
        throw_ratio,
        grid,
        _build_sampler(sampler),
        [_build_aggregator(s, adapter, model) for s in stages if s is not None],
        num_prefix=adapter.num_prefix(model),
        **options,
    )


def _build_sampler(spec: Spec) -> Sampler:
    name, options = _name_and_options('sampler', spec)
    function = SAMPLERS.get(name)
    try:  # a wrong option shows here rather than in the first step
        inspect.signature(function).bind('mask', 'num_kept', 'grid', 'generator', **options)
    except TypeError as error:
        raise TypeError(f'sampler {name!r}, called with {options}: {error}') from None
    return functools.partial(function, **options) if options else function


def _build_aggregator(spec: Any, adapter: type[Adapter], model: nn.Module) -> nn.Module:
    name, options = _name_and_options('aggregator', spec)
    if name == 'cross_attention' and not adapter.absolute_positions:
        options.setdefault('key_positions', True)
    module = AGGREGATORS.get(name)(width=adapter.width(model), grid=adapter.grid(model), **options)
    reference = next(model.parameters())
    return module.to(device=reference.device, dtype=reference.dtype).train(model.training)


def _name_and_options(kind: str, spec: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and isinstance(spec.get('type'), str):
        return spec['type'], {k: v for k, v in spec.items() if k != 'type'}
    raise TypeError(f'{kind}={spec!r}: give a name, or dict(type=name, **options)')


def _check_ratio(throw_ratio: float, grid: Grid, num_masked: int | None) -> None:
    _check_number('throw_ratio', throw_ratio, 0.0, 1.0)
    length = grid[0] * grid[1]
    thrown = round(throw_ratio * length)
    if num_masked is not None and thrown >= max(num_masked, 1):
        raise ValueError(
            f'throw_ratio={throw_ratio} throws {thrown} of {length} tokens, but the model masks '
            f'{num_masked} of them (mask ratio {num_masked / length:.3g}): throw_ratio must be at '
            f'least 0 and below the mask ratio; the largest valid one is '
            f'{(num_masked - 1) / length:.4f}'
        )


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f'{name}={value!r} ({type(value).__name__}): expected a number, {low:g} to {high:g}'
        )
    if not low <= float(value) <= high:  # also refuses NaN
        raise ValueError(f'{name}={value}: must be between {low:g} and {high:g}')


def _subclass(adapter: type[Adapter], model: nn.Module, path: str) -> type:
    found = type(model.get_submodule(path))
    if found not in adapter.classes:
        allowed = ', '.join(f'{c.__module__}.{c.__qualname__}' for c in adapter.classes)
        raise TypeError(
            f'{type(model).__name__}.{path} is a {found.__module__}.{found.__qualname__}: '
            f'{adapter.__name__} attaches to {allowed}. Register an adapter for your class.'
        )
    return adapter.classes[found]
