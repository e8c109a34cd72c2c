# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of the loss path: what one training step of a model really computes.

Unit: 1 multiply-add = 1 MAC, per image. Two independent counters:

* fvcore traces ``model.loss`` forward and counts matrix products, convolutions, attention, and
  normalisation (5 per element);
* ``torch.utils.flop_counter`` watches forward and backward and counts the first three.

What both count must agree, and an operator that computes but has no handle is an error: a saving
is never reported from an undercount. Where fvcore cannot be imported, the second counts alone, and
:func:`how_counted` says so. Neither counts element-wise arithmetic, softmax, gathers,
the choice of tokens, or the optimizer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .loss_path import Batch, LossPath, num_images, scratch
from .tracing import LIGHT, trace, uncounted_heavy_ops, why_unavailable
from .watching import watch

OTHER = '(other)'
"""Name of what runs outside the ``__call__`` of any child of the model: losses, mostly."""


class UndercountError(RuntimeError):
    """An operator of the loss path was not counted, or the two counters disagree."""


@dataclass(frozen=True)
class MacCount:
    """MACs per image.

    Attributes:
        total: of the whole loss path.
        by_module: name as in ``model.named_modules()``, root left out, to the MACs that run inside
            that module's ``__call__``, its children's included.
        by_operator: operator to MACs.
        unsupported: light operator that is not counted, to its number of calls in the batch.
    """

    total: float
    by_module: dict[str, float] = field(default_factory=dict)
    by_operator: dict[str, float] = field(default_factory=dict)
    unsupported: dict[str, int] = field(default_factory=dict)

    def top(self) -> dict[str, float]:
        """MACs by child of the model, and ``'(other)'``; the sum is :attr:`total`."""
        children = {name: macs for name, macs in self.by_module.items() if '.' not in name}
        other = self.total - sum(children.values())
        return {**children, OTHER: other} if other > 0.5 else children

    @property
    def products(self) -> float:
        """MACs of matrix products, convolutions and attention only."""
        return sum(macs for op, macs in self.by_operator.items() if not op.startswith(LIGHT))


@dataclass(frozen=True)
class TrainingMacs:
    """MACs per image of products, convolutions and attention in one training step."""

    forward: MacCount
    backward: MacCount

    @property
    def total(self) -> float:
        """Forward + backward."""
        return self.forward.total + self.backward.total

    def top(self) -> dict[str, float]:
        """Forward + backward by child of the model."""
        forward, backward = self.forward.top(), self.backward.top()
        names = [*forward, *(name for name in backward if name not in forward)]
        return {name: forward.get(name, 0) + backward.get(name, 0) for name in names}


def count_macs(model: nn.Module, batch: Batch) -> MacCount:
    """Forward MACs per image of the model's loss path; the model stays as it was.

    Args:
        model: any mmpretrain algorithm, with or without partial reconstruction.
        batch: ``dict(inputs=..., data_samples=...)``, preprocessed, B images; see ``make_batch``.

    Raises:
        UndercountError: a heavy operator has no handle, or the two counters disagree.

    MAE ViT-B/16 at 224: 9.795 GMACs = backbone 4.413 + neck 5.381; 9.781 without fvcore.
    """
    images = num_images(batch)
    if why_unavailable():
        with scratch(model, batch) as (path, views), torch.no_grad():
            return _watched(path, lambda: path(*views), images)
    with scratch(model, batch) as (path, views):
        analysis = trace(path, views)
    missed = uncounted_heavy_ops(analysis.unsupported_ops())
    if missed:
        raise UndercountError(
            f'the loss path of {type(model).__name__} calls {", ".join(missed)}, which nobody '
            'counts. Give each a handle in `prmim_adapters.accounting.tracing.OP_HANDLES`, as in '
            'fvcore: (inputs, outputs) -> MACs'
        )
    count = MacCount(
        total=analysis.total() / images,
        by_module=_within_model(analysis.by_module(), images),
        by_operator={op: macs / images for op, macs in analysis.by_operator().items() if macs},
        unsupported=dict(analysis.unsupported_ops()),
    )
    with scratch(model, batch) as (path, views):  # without gradients, views stop its counter
        _refuse_disagreement(count, _watched(path, lambda: path(*views), images))
    return count


def how_counted() -> str:
    """A sentence where :func:`count_macs` has one counter only, else ''."""
    reason = why_unavailable()
    return reason and (
        f'fvcore cannot be imported ({reason}): forward is counted by torch.utils.flop_counter alone, '
        'without normalisation, and an operator that it does not know goes unnoticed; the closed '
        'form, with normalisation, is the check.'
    )


def training_macs(model: nn.Module, batch: Batch) -> TrainingMacs:
    """Forward and backward MACs per image of one training step, by ``FlopCounterMode``.

    What activation checkpointing computes again counts as backward. Arguments as in
    :func:`count_macs`. MAE ViT-B/16 at 224: 29.228 GMACs = forward 9.781 + backward 19.447.
    """
    images = num_images(batch)
    with scratch(model, batch) as (path, views):
        forward = _watched(path, lambda: path(*views), images)
    with scratch(model, batch) as (path, views):
        both = _watched(path, lambda: path(*views).backward(), images)
    return TrainingMacs(forward, _difference(both, forward))


def branch_macs(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Forward MACs per image of each network pass of a step, products only.

    For models that offer ``branches(inputs, data_samples)``, a dict of functions: iBOT's teacher,
    student on global crops, student on local crops. Others have none. Arguments as in
    :func:`count_macs`.
    """
    if not hasattr(model, 'branches'):
        return {}
    images = num_images(batch)
    with scratch(model, batch) as (path, views), torch.no_grad():
        passes = path.model.branches(list(views), batch['data_samples'])
        return {name: _watched(path, run, images).total for name, run in passes.items()}


def _watched(path: LossPath, step: Callable[[], Any], images: int) -> MacCount:
    by_operator, own = watch(path, step)
    inclusive: Counter[str] = Counter()
    for name, flops in own.items():
        parts = name.split('.')
        for depth in range(len(parts)):
            inclusive['.'.join(parts[: depth + 1])] += flops
    return MacCount(
        total=sum(by_operator.values()) / 2 / images,
        by_module=_within_model(inclusive, 2 * images),
        by_operator={op: flops / 2 / images for op, flops in by_operator.items()},
    )


def _within_model(counts: Counter[str], divisor: int) -> dict[str, float]:
    """Names relative to the model, which is the loss path's child ``model``."""
    prefix = 'model.'
    return {
        name.removeprefix(prefix): value / divisor
        for name, value in counts.items()
        if name.startswith(prefix) and value
    }


def _refuse_disagreement(traced: MacCount, watched: MacCount) -> None:
    if math.isclose(traced.products, watched.total, rel_tol=1e-6, abs_tol=1):
        return
    raise UndercountError(
        f'fvcore counts {traced.products / 1e9:.6f} GMACs of products, convolutions and attention '
        f'in the forward pass, FlopCounterMode {watched.total / 1e9:.6f}: one of them misses an '
        f'operator. fvcore: {traced.by_operator}. FlopCounterMode: {watched.by_operator}'
    )


def _difference(both: MacCount, forward: MacCount) -> MacCount:
    def minus(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
        return {name: value - right.get(name, 0) for name, value in left.items()}

    return MacCount(
        total=both.total - forward.total,
        by_module=minus(both.by_module, forward.by_module),
        by_operator=minus(both.by_operator, forward.by_operator),
    )
