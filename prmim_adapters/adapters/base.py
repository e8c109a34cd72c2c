# SPDX-License-Identifier: Apache-2.0
"""``attach``, ``set_throw_ratio``, ``detach``.

An adapter is a function ``model -> Seams`` (:mod:`.seams`). The modules that it names change their
class to a subclass that runs the heavy network on present tokens only, and find the shared part,
:class:`~prmim_adapters.core.PartialReconstruction`, as ``self.partial``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core import PartialReconstruction
from ..core.options import check_flag, check_number, check_whole
from .registry import ADAPTERS
from .seams import Seams, check_seams
from .specs import Spec, build_aggregator, build_sampler

Model = TypeVar('Model', bound=nn.Module)
Adapter = Callable[[Any], Seams]

_STATE = '_prmim_attachment'
_LARGEST_WEIGHT = 1000.0


@dataclass(frozen=True)
class Attachment:
    """What was attached to a model.

    Attributes:
        framework: the key in ``ADAPTERS``.
        seams: what the adapter said of the model.
        originals: path to the framework's class of each module that changes.
        changed: path to the class that it has while tokens are thrown.
        plain: whether it is plain partial reconstruction, which has no light stage at any ratio.
    """

    framework: str
    seams: Seams
    originals: Mapping[str, type]
    changed: Mapping[str, type]
    plain: bool = False


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
            ratio. 0 is the framework's original method: no class changes, no parameter is added.
        sampler: a name in ``SAMPLERS``, or ``dict(type=name, **options)``. In the place of the
            name the function itself, or its qualified name, as in mmengine.
        aggregator: the same of ``AGGREGATORS``, whose entries are classes; None is plain partial
            reconstruction (thrown tokens carry no loss); a list makes several progressive stages.
        thrown_weight: weight of a thrown token in the loss, where a kept one weighs 1.
        stop_gradient: keep the thrown tokens' loss from the heavy network.
        max_masked_share: largest share of an image's masked tokens to throw; only frameworks
            with ragged masks look at it.

    Returns:
        The same object. Its state dict has the framework's keys and the aggregator's.

    Raises:
        TypeError: no model, no adapter for its class, a framework whose methods take other
            arguments than the adapter was written for, or an option of another type or unknown.
        ValueError: attached already, or a value out of range; the message says what is allowed.
        KeyError: unknown sampler or aggregator.
    """
    if is_attached(model):
        raise ValueError(
            f'{type(model).__name__} has partial reconstruction attached already; call '
            'prmim_adapters.detach(model) first'
        )
    framework, adapter = _find_adapter(model)
    seams = adapter(model)
    changed = check_seams(framework, seams, model)
    _check_ratio(throw_ratio, seams)
    check_number('thrown_weight', thrown_weight, 0.0, _LARGEST_WEIGHT)
    check_number('max_masked_share', max_masked_share, 0.0, 1.0)
    check_flag('stop_gradient', stop_gradient)
    stages = _stages(aggregator)
    plain = not stages
    if round(throw_ratio * seams.length) == 0:
        stages = []  # nothing to reconstruct: an aggregator would never be used
    partial = PartialReconstruction(
        float(throw_ratio),
        seams.grid,
        build_sampler(sampler),
        [
            build_aggregator(stage, seams, model)
            for _ in range(seams.num_features)
            for stage in stages
        ],
        num_features=seams.num_features,
        num_prefix=seams.num_prefix,
        ragged=seams.ragged,
        thrown_weight=float(thrown_weight),
        stop_gradient=stop_gradient,
        max_masked_share=float(max_masked_share),
    )
    if partial.num_thrown:
        _check_loss(model, partial, seams)
    _check_last_blocks(model, partial, seams)
    _check_sampler(partial, seams)
    originals = {path: type(model.get_submodule(path)) for path in changed}
    model.get_submodule(seams.host).partial = partial
    model.__dict__[_STATE] = Attachment(framework, seams, originals, changed, plain)
    if partial.num_thrown:
        _throw(model)
    return model


def set_throw_ratio(model: Model, throw_ratio: float) -> Model:
    """Change the throw ratio of an attached model, in place, between two steps.

    At 0 the modules have the framework's own classes until the ratio rises again; the light stage
    and its parameters stay, each with a gradient of zero when the model itself is called (as
    Runners and DistributedDataParallel do).

    Args:
        model: attached, and itself: the ``module`` of a wrapped one.
        throw_ratio: as in :func:`attach`.

    Returns:
        The same object.

    Raises:
        TypeError, ValueError: as in :func:`attach`; nothing is attached; or the model was attached
            at ratio 0, so that it has no light stage for the tokens to be thrown.
    """
    attachment, partial = attachment_of(model), partial_of(model)
    _check_ratio(throw_ratio, ADAPTERS.get(attachment.framework)(model))
    if not partial.aggregators and not attachment.plain and throw_ratio > 0:
        raise ValueError(
            f'throw_ratio={throw_ratio}: the model was attached at throw_ratio=0 and has no light '
            'stage, whose parameters the optimizer must know: attach at the largest ratio of the '
            'schedule, then lower it with set_throw_ratio'
        )
    throws = round(throw_ratio * partial.grid[0] * partial.grid[1]) > 0
    if throws:
        _check_loss(model, partial, attachment.seams)
    changes = throws != (partial.num_thrown > 0)
    if changes:
        _restore(model)
    partial.throw_ratio = float(throw_ratio)
    if changes and throws:
        _throw(model)
    elif changes and partial.aggregators:
        model.register_forward_hook(_use_parameters)
    return model


def detach(model: Model) -> Model:
    """Give back the framework's own classes and behaviour, in place; drops the aggregator.

    Raises:
        ValueError: nothing is attached to ``model``.
    """
    attachment = attachment_of(model)
    _restore(model)
    del model.get_submodule(attachment.seams.host).partial
    del model.__dict__[_STATE]
    return model


def is_attached(model: nn.Module) -> bool:
    """Whether ``attach`` has been called on this model.

    Raises:
        TypeError: no model.
    """
    if not isinstance(model, nn.Module):
        found = model.__name__ if isinstance(model, type) else repr(model)
        raise TypeError(
            f'{found:.80} is a {type(model).__name__}, not a model: build it first, and give the '
            'torch.nn.Module'
        )
    return _STATE in model.__dict__


def attachment_of(model: nn.Module) -> Attachment:
    """The record that ``attach`` left.

    Raises:
        TypeError: no model.
        ValueError: nothing is attached to ``model``.
    """
    if not is_attached(model):
        inside = _wrapped_at(model)
        remedy = (
            f'it wraps one: give its .{inside}' if inside else 'call prmim_adapters.attach first'
        )
        raise ValueError(f'{type(model).__name__} has no partial reconstruction attached; {remedy}')
    return model.__dict__[_STATE]


def partial_of(model: nn.Module) -> PartialReconstruction:
    """The shared part of an attached model: ratio, sampler, aggregators; a module to hook.

    Raises:
        ValueError: nothing is attached to ``model``.
    """
    return model.get_submodule(attachment_of(model).seams.host).partial  # type: ignore[return-value]


def _throw(model: nn.Module) -> None:
    """Give the modules the classes that throw tokens."""
    attachment, partial = attachment_of(model), partial_of(model)
    for path, changed in attachment.changed.items():
        module = model.get_submodule(path)
        module.__class__ = changed
        if path != attachment.seams.host:  # shared, not owned: the state dict has it once
            module.__dict__['partial'] = partial
    model.register_forward_pre_hook(partial.begin_pass)


def _restore(model: nn.Module) -> None:
    """Give the modules the framework's own classes."""
    attachment, partial = attachment_of(model), partial_of(model)
    for path, original in attachment.originals.items():
        module = model.get_submodule(path)
        if type(module) not in (original, attachment.changed[path]):
            raise ValueError(
                f'{path or "the model"} has become a {type(module).__qualname__} since attach '
                '(fully_shard does that): its class cannot change now; set ratios above 0 only, '
                'or detach before wrapping'
            )
        module.__class__ = original
        if path != attachment.seams.host:
            module.__dict__.pop('partial', None)
    ours = (partial.begin_pass, _use_parameters)
    for hooks in (model._forward_hooks, model._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hook in ours]:
            del hooks[key]


def _use_parameters(model: nn.Module, args: Any, output: Any) -> Any:
    """Join the unused light stage to the graph of what a model returned: loss, losses, tokens."""
    if isinstance(output, Tensor):
        return output + partial_of(model).unused() if output.is_floating_point() else output
    if isinstance(output, dict):
        for key, value in output.items():
            if isinstance(value, Tensor) and value.requires_grad:
                output[key] = value + partial_of(model).unused()
                break
        return output
    if isinstance(output, (list, tuple)) and output:
        joined = [_use_parameters(model, args, output[0]), *output[1:]]
        return type(output)(*joined) if hasattr(output, '_fields') else type(output)(joined)
    return output


def _find_adapter(model: nn.Module) -> tuple[str, Adapter]:
    framework = ADAPTERS.find(type(model))
    if framework is None:
        found = f'{type(model).__module__}.{type(model).__qualname__}'
        refusal = ADAPTERS.refusal(type(model))
        if refusal is not None:
            raise TypeError(f'no adapter for {found}: {refusal}')
        wrapped = ' (attach before wrapping it)' if _wrapped_at(model) else ''
        beside = ADAPTERS.of_package(found.partition('.')[0])
        hint = f'In that package: {", ".join(beside)}. ' if beside else ''
        raise TypeError(
            f'no adapter for {found}{wrapped}. {hint}`prmim list` shows all classes that have one. '
            "For a framework of your own: @ADAPTERS.register_module(framework='my_pkg.MyMIM')"
        )
    return framework, ADAPTERS.get(framework)


def _wrapped_at(model: nn.Module) -> str | None:
    """Where a wrapper, as DistributedDataParallel or torch.compile, has the model itself."""
    for name in ('module', '_orig_mod'):
        if isinstance(getattr(model, name, None), nn.Module):
            return name
    return None


def _stages(aggregator: Any) -> list[Any]:
    """The light stages that ``aggregator`` names; none of plain partial reconstruction."""
    if not isinstance(aggregator, (list, tuple)):
        return [] if aggregator is None else [aggregator]
    if not aggregator or any(stage is None for stage in aggregator):
        raise ValueError(
            f'aggregator={aggregator!r}: a list names one light stage or more; plain partial '
            'reconstruction is aggregator=None, without a list'
        )
    return list(aggregator)


def _check_loss(model: nn.Module, partial: PartialReconstruction, seams: Seams) -> None:
    """Weights of thrown tokens need a loss that is the model's."""
    if partial.changes_loss and not seams.owns_loss:
        raise ValueError(
            f'the loss of {type(model).__name__} lies outside of the model and weighs every masked '
            'token: aggregator=None and thrown_weight are not supported; attach with an aggregator '
            'and thrown_weight=1'
        )


def _check_last_blocks(model: nn.Module, partial: PartialReconstruction, seams: Seams) -> None:
    """Thrown tokens come back before blocks that there are, and then train them."""
    for stage in partial.aggregators:
        check_whole(f'{type(stage).__name__}.last_blocks', getattr(stage, 'last_blocks', 0), 0)
    blocks = partial.last_blocks
    if not blocks:
        return
    if not seams.num_blocks:
        raise ValueError(
            'aggregator: thrown tokens cannot come back before the last blocks of '
            f'{type(model).__name__}, whose adapter gives no num_blocks: docs/simmim.md says where '
            'they can; choose another aggregator'
        )
    if blocks >= seams.num_blocks:
        raise ValueError(
            f'aggregator: thrown tokens come back before the last {blocks} blocks, but the heavy '
            f'network has {seams.num_blocks}: choose a depth from 1 to {seams.num_blocks - 1}'
        )
    if partial.num_stages > 1:
        raise ValueError(
            'aggregator: a light stage before the last blocks stands alone; give it without others'
        )
    if partial.stop_gradient:
        raise ValueError(
            'stop_gradient=True keeps the loss of thrown tokens from the heavy network, whose last '
            'blocks they go through with this aggregator: leave it out, or choose another aggregator'
        )


def _check_sampler(partial: PartialReconstruction, seams: Seams) -> None:
    """Partition a small batch on the CPU, so that a faulty sampler shows before training."""
    masked = seams.num_masked or (seams.length + partial.num_thrown) // 2
    if not 0 < partial.num_thrown < masked:
        return
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(2, seams.length, generator=generator).argsort(dim=1)
    counts = torch.tensor([masked, seams.length if seams.ragged else masked])
    mask, asked = order < counts[:, None], counts - partial.num_thrown
    noise = torch.randint(2**20, mask.shape, generator=generator)
    kept = partial.sampler(mask, asked if seams.ragged else int(asked[0]), seams.grid, noise)
    found = kept.sum(dim=1).tolist()
    if kept.dtype != torch.bool or (kept & ~mask).any() or found != asked.tolist():
        raise ValueError(
            f'sampler {partial.sampler}: asked for {asked.tolist()} of {counts.tolist()} masked '
            f'tokens, it returned {kept.dtype} with {found} kept: it must return a bool subset of '
            'the mask with exactly that many'
        )


def _check_ratio(throw_ratio: float, seams: Seams) -> None:
    check_number('throw_ratio', throw_ratio, 0.0, 1.0)
    length, num_masked = seams.length, seams.num_masked
    thrown = round(throw_ratio * length)
    if num_masked is not None and thrown >= max(num_masked, 1):
        raise ValueError(
            f'throw_ratio={throw_ratio} throws {thrown} of {length} tokens, but the model masks '
            f'{num_masked} of them (mask ratio {num_masked / length:.3g}): throw_ratio must be at '
            f'least 0 and below the mask ratio; the largest valid one is '
            f'{max(num_masked - 1, 0) / length:.4f}'
        )
