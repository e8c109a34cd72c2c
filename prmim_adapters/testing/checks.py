# SPDX-License-Identifier: Apache-2.0
"""The contract of an adapter, but for positions (see :mod:`.positions`): what everybody relies on."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping
from typing import Any
from unittest import TestCase

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ..adapters import detach
from .access import recorded_partitions, seed_everything
from .case import AdapterCase, total

AGGREGATORS = ('cross_attention', 'cross_blocks', 'nearest', 'convolution', 'distance', None)


def check_ratio_zero_is_the_framework(case: AdapterCase) -> None:
    """The framework's own loss and gradients."""
    for aggregator in ('cross_attention', None) if case.weighted else ('cross_attention',):
        framework, ours = case.model(), case.attached(throw_ratio=0, aggregator=aggregator)
        same_step(case, ours, framework)


def check_partition_covers_the_grid(case: AdapterCase) -> None:
    """Every position is visible, kept or thrown, as mask and ratio say."""
    model = case.attached()
    with recorded_partitions(case.target(model)) as seen:
        case.loss(model)
    assert seen, 'the model was not partitioned: partial(mask) was not called'
    for mask, partition in seen:
        everything = torch.cat((partition.present, partition.thrown), dim=1).sort(dim=1).values
        assert torch.equal(everything, torch.arange(partition.length).expand_as(everything))
        assert mask.gather(1, partition.masked).all()
        assert not mask.gather(1, partition.visible).any()
        if case.invalid_ratio is not None:
            assert partition.thrown.shape[1] == round(case.ratio * partition.length)


def check_heavy_network_sees_present_tokens(case: AdapterCase) -> None:
    """Prefix, visible and kept tokens, and no others."""
    model, seen = case.attached(), []
    handle = case.heavy(model).register_forward_pre_hook(
        lambda module, args: seen.append(case.tokens_seen(args))
    )
    with recorded_partitions(case.target(model)) as partitions:
        case.loss(model)
    handle.remove()
    prefix = case.partial(model).num_prefix
    present = sum(len(p.present) * (prefix + p.present.shape[1]) for _, p in partitions)
    assert seen and seen[0] == present, f'{seen} tokens entered, {present} are present'


def check_names_checkpoints_and_detach(case: AdapterCase) -> None:
    """Names are the framework's and the light stage's; detach gives the framework back."""
    framework, ours = case.model(), case.attached()
    theirs, mine = framework.state_dict(), ours.state_dict()
    added = set(mine) - set(theirs)
    assert set(theirs) <= set(mine)
    assert added and all('partial.aggregators.' in name for name in added), added
    order = [name for name, _ in ours.named_parameters() if name not in added]
    assert order == [name for name, _ in framework.named_parameters()]
    missing, unexpected = ours.load_state_dict(theirs, strict=False)
    assert set(missing) == added and not unexpected
    missing, unexpected = framework.load_state_dict(mine, strict=False)
    assert not missing and set(unexpected) == added
    detach(case.target(ours))
    assert list(ours.state_dict()) == list(theirs)
    assert [type(m) for m in ours.modules()] == [type(m) for m in framework.modules()]
    assert torch.equal(case.loss(ours), case.loss(framework))


def check_every_parameter_is_used(case: AdapterCase) -> None:
    """In every step, as DistributedDataParallel needs it; nothing heavy is cut off."""
    framework = case.model()
    case.loss(framework).backward()
    unused_upstream = {name for name, g in _gradients(framework).items() if g is None}
    for aggregator in AGGREGATORS if case.weighted else AGGREGATORS[:-1]:
        model = case.attached(aggregator=aggregator)
        case.loss(model).backward()
        unused = {name for name, g in _gradients(model).items() if g is None}
        assert unused <= unused_upstream, (aggregator, unused)
        heavy = [p.grad for p in case.heavy(model).parameters() if p.requires_grad]
        assert all(g is not None and g.any() for g in heavy), aggregator
        learned = [p.grad for p in case.partial(model).parameters()]
        assert not learned or any(g is not None and g.any() for g in learned), aggregator


def check_deterministic_under_a_seed(case: AdapterCase) -> None:
    """The same seed gives the same tokens and loss, another one others."""
    for sampler in ('farthest', 'random', 'grid'):
        model = case.attached(sampler=sampler)
        with recorded_partitions(case.target(model)) as seen:
            first, second, other = case.loss(model), case.loss(model), case.loss(model, seed=9)
        assert torch.equal(first, second), sampler
        assert not torch.equal(first, other), sampler
        third = len(seen) // 3
        for (_, a), (_, b) in zip(seen[:third], seen[third : 2 * third], strict=True):
            assert torch.equal(a.thrown, b.thrown), sampler


def check_costs_fall_as_predicted(case: AdapterCase) -> None:
    """Multiply-adds fall as the closed form predicts; plain reconstruction costs no more."""
    framework, ours = _macs(case, case.model()), _macs(case, case.attached(aggregator='nearest'))
    assert ours < framework
    if case.weighted:
        assert _macs(case, case.attached(aggregator=None)) <= ours
    if case.saving is not None:
        saved = framework - ours  # the nearest neighbours' sums have no products
        assert math.isclose(saved, case.saving, rel_tol=0.01), (saved, case.saving)


def check_autocast(case: AdapterCase) -> None:
    """Bf16 autocast gives about the same loss, and finite gradients."""
    case.skip_if(not case.autocast, "the framework's own model fails under autocast")
    model = case.attached()
    exact = case.loss(model)
    with torch.autocast('cpu', torch.bfloat16):
        loss = case.loss(model)
    loss.backward()
    assert_close(loss.float(), exact, rtol=0.05, atol=0.05)
    assert all(g is None or g.isfinite().all() for g in _gradients(model).values())


def check_copies(case: AdapterCase) -> None:
    """Copies and pickles compute the same and share nothing."""
    model = case.attached()
    expected = case.loss(model)
    twins = [pickle.loads(pickle.dumps(model))]
    if case.copies:
        twins.append(copy.deepcopy(model))
    for twin in twins:
        assert torch.equal(case.loss(twin), expected)
        with torch.no_grad():
            next(case.partial(twin).parameters()).add_(1.0)
        assert torch.equal(case.loss(model), expected)


def check_two_losses_before_one_backward(case: AdapterCase) -> None:
    """Gradients of two steps add up: nothing of the first is lost to the second."""
    model, batch = case.attached(), case.fixed_batch()
    case.loss(model, 1, batch).backward()
    case.loss(model, 4, batch).backward()
    expected = {name: g.clone() for name, g in _gradients(model).items() if g is not None}
    model.zero_grad()
    (case.loss(model, 1, batch) + case.loss(model, 4, batch)).backward()
    _same_gradients({name: _gradients(model)[name] for name in expected}, expected)


def check_subclasses(case: AdapterCase) -> None:
    """A user's subclass of the framework's class, with nothing overridden, trains alike."""
    model = case.model()
    target = case.target(model)
    target.__class__ = type(f'My{type(target).__name__}', (type(target),), {})
    assert torch.equal(case.loss(case.attached(model)), case.loss(case.attached()))


def check_activation_checkpointing(case: AdapterCase) -> None:
    """The framework's own checkpointing changes nothing."""
    case.skip_if(not case.checkpointing, 'the framework has no activation checkpointing')
    plain, saving = case.attached(), case.attached()
    for path, value in case.checkpointing:
        holder, _, name = path.rpartition('.')
        setattr(saving.get_submodule(holder), name, value)
    same_step(case, saving, plain)


def check_compile(case: AdapterCase) -> None:
    """torch.compile computes the same, in one graph where the framework allows it."""
    case.skip_if(not case.compiles, "the framework's own model fails under torch.compile")
    model = case.attached()
    case.before_compile(model)
    expected = case.loss(model)  # eager: the number of masked tokens becomes known
    torch._dynamo.reset()
    compiled = torch.compile(case.losses, backend='aot_eager', fullgraph=case.compiles_whole)
    batch = case.fixed_batch()
    seed_everything(model, 1)
    actual = total(compiled(model, batch))
    assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    actual.backward()
    assert all(g.isfinite().all() for g in _gradients(model).values() if g is not None)


def check_bad_options_are_refused(case: AdapterCase) -> None:
    """With a message that names them."""
    refuses = TestCase().assertRaisesRegex
    for ratio, error in ((-0.1, ValueError), (float('nan'), ValueError), ('half', TypeError)):
        refuses(error, 'throw_ratio', case.attached, throw_ratio=ratio)
    if case.invalid_ratio is not None:
        with refuses(ValueError, 'throw.*mask'):
            case.loss(case.attached(throw_ratio=case.invalid_ratio))
    if not case.weighted:
        for options in (dict(aggregator=None), dict(thrown_weight=0.5)):
            with refuses(ValueError, 'aggregator=None and thrown_weight'):
                case.loss(case.attached(**options))
    refuses(ValueError, 'attached already', case.attached, case.attached())


def _macs(case: AdapterCase, model: Any) -> float:
    """Multiply-adds per image of products and convolutions in the forward pass of the loss."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # without gradients, views stop it
        case.loss(model)
    return counter.get_total_flops() / 2 / len(case.images(case.fixed_batch())[0])


def _gradients(model: Any) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def same_step(
    case: AdapterCase, ours: Any, framework: Any, rtol: float = 1e-6, share: float = 1e-6
) -> None:
    """One step of both: equal losses; gradients equal to a share of the largest one."""
    expected, actual = case.loss(framework), case.loss(ours)
    assert_close(actual, expected, rtol=rtol, atol=0)
    expected.backward()
    actual.backward()
    _same_gradients(_gradients(ours), _gradients(framework), share)


def _same_gradients(
    ours: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], share: float = 1e-6
) -> None:
    limit = share * max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in expected.items():
        assert_close(ours[name], gradient, rtol=1e-4, atol=limit, msg=f'{name}: {{}}'.format)
