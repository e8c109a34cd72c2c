# SPDX-License-Identifier: Apache-2.0
"""Costs of several variants side by side: as data, as a markdown table, as a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..adapters import ADAPTERS, is_attached
from ..openmmlab.misfit import misfit_named
from ..progress import track
from ..tables import Table
from .closed_form import predicted_saving
from .flops import MacCount, branch_macs, count_macs, how_counted, training_macs
from .loss_path import Batch, num_images
from .memory import activation_bytes, parameter_bytes
from .variants import FRAMEWORK, OURS, PLAIN, Variant

NOT_COUNTED = (
    'Per image, on the loss path. 1 multiply-add = 1 MAC. Forward: matrix products, convolutions, '
    'attention, normalisation (5 per element). Training: forward and backward of products, '
    'convolutions and attention. Not counted: element-wise operations, softmax, gathers, the '
    'choice of tokens, the optimizer. Activations: bytes saved for backward, 1 MB = 1e6 bytes.'
)


NO_PLAIN = (
    'Plain partial reconstruction is left out: the loss of this model weighs every masked token.'
)


@dataclass(frozen=True)
class Cost:
    """What one variant costs, per image; None where it was not asked for.

    Attributes:
        label: as :attr:`Variant.label`; ``name`` and ``throw_ratio`` are its parts.
        forward: MACs of the forward pass, ``forward_by_module`` those by child of the model.
        aggregation: forward MACs of the light stage, part of ``forward``.
        branches: forward MACs of each network pass where a step has several (iBOT).
        training: MACs of forward and backward, ``training_by_module`` those by child.
        activations_fused: bytes saved for backward, ``activations_explicit`` with explicit
            attention.
        parameters: bytes, ``optimizer`` those of its state; of the model, not per image.
        predicted_saving: forward MACs that the closed form says are saved, aggregation left out.
    """

    label: str
    name: str
    throw_ratio: float
    forward: float
    forward_by_module: dict[str, float]
    aggregation: float
    parameters: int
    optimizer: int
    branches: dict[str, float] = field(default_factory=dict)
    training: float | None = None
    training_by_module: dict[str, float] = field(default_factory=dict)
    activations_fused: float | None = None
    activations_explicit: float | None = None
    predicted_saving: float | None = None


def cost_of(
    variant: Variant, batch: Batch, optimizer: dict | None = None, *, full: bool = True
) -> Cost:
    """Count one variant.

    Args:
        variant: framework, plain partial or PR-MIM.
        batch: preprocessed, B >= 2 images.
        optimizer: mmengine optimizer config.
        full: also training MACs and explicit attention, which take longer.
    """
    model = variant.model
    forward = count_macs(model, batch)
    training = training_macs(model, batch) if full else None
    size = parameter_bytes(model, optimizer)
    return Cost(
        label=variant.label,
        name=variant.name,
        throw_ratio=variant.throw_ratio,
        forward=forward.total,
        forward_by_module=forward.top(),
        aggregation=_aggregation(forward),
        branches=branch_macs(model, batch),
        parameters=size.parameters,
        optimizer=size.optimizer,
        training=training.total if training else None,
        training_by_module=training.top() if training else {},
        activations_fused=activation_bytes(model, batch),
        activations_explicit=activation_bytes(model, batch, 'explicit') if full else None,
        predicted_saving=predicted_saving(model, batch) if is_attached(model) else None,
    )


def _aggregation(count: MacCount) -> float:
    return sum(m for name, m in count.by_module.items() if name.endswith('partial.aggregators'))


@dataclass(frozen=True)
class CostReport:
    """Variants of one model, the framework first.

    Attributes:
        model: class name of the framework, ``framework`` its name in the registry of adapters.
        inputs: shape of one view (C, H, W).
        batch_size: of the counted batch; a light stage shares work among the images of a batch,
            so that larger ones cost less per image, slightly.
        costs: one for each variant.
    """

    model: str
    inputs: tuple[int, ...]
    batch_size: int
    costs: list[Cost]
    framework: str = ''
    notes: str = NOT_COUNTED

    def saving(self, cost: Cost, figure: Callable[[Cost], float | None]) -> float | None:
        """Share of the framework's figure that a variant saves, or None."""
        base, value = figure(self.costs[0]), figure(cost)
        return None if not base or value is None else 1 - value / base

    def closed_form_error(self, cost: Cost) -> float | None:
        """Deviation of counted from predicted saving, as a share of the predicted one."""
        if not cost.predicted_saving:
            return None
        counted = self.costs[0].forward - (cost.forward - cost.aggregation)
        return counted / cost.predicted_saving - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the fields, and savings beside them."""
        data = asdict(self)
        for entry, cost in zip(data['costs'], self.costs, strict=True):
            entry['saving'] = {
                name: self.saving(cost, attrgetter(name))
                for name in ('forward', 'training', 'activations_fused', 'activations_explicit')
            }
            entry['closed_form_error'] = self.closed_form_error(cost)
        return data

    def table(self) -> Table:
        """Figures in rows, variants in columns."""
        size = 'x'.join(map(str, self.inputs))
        title = f'{self.model}, {size}, batch {self.batch_size}'
        headers = ['', *(cost.label for cost in self.costs)]
        return Table(headers, self._rows(), title, self.notes)

    def markdown(self) -> str:
        """The table, and below it what is counted."""
        return self.table().markdown()

    def _rows(self) -> list[list[str]]:
        rows = [self._figures('forward GMACs', lambda c: c.forward, 1e9)]
        for name in self._children('forward_by_module'):
            rows.append(self._parts('forward_by_module', name))
        rows.append(self._figures('- light stage', lambda c: c.aggregation, 1e9, 4, False))
        for name in self._children('branches'):
            rows.append(self._branch(name))
        rows.append(self._figures('training GMACs', lambda c: c.training, 1e9))
        for name in self._children('training_by_module'):
            rows.append(self._parts('training_by_module', name))
        rows += [
            self._figures('activations MB, fused', lambda c: c.activations_fused, 1e6, 1),
            self._figures('activations MB, explicit', lambda c: c.activations_explicit, 1e6, 1),
            self._figures('parameters MB', lambda c: c.parameters, 1e6, 1, False),
            self._figures('optimizer MB', lambda c: c.optimizer, 1e6, 1, False),
            self._closed_form(),
        ]
        return [row for row in rows if any(row[1:])]

    def _children(self, attribute: str) -> list[str]:
        names: dict[str, None] = {}
        for cost in self.costs:
            names |= dict.fromkeys(getattr(cost, attribute))
        return list(names)

    def _parts(self, attribute: str, name: str) -> list[str]:
        return self._figures(f'- {name}', lambda c: getattr(c, attribute).get(name), 1e9, 3, False)

    def _branch(self, name: str) -> list[str]:
        title = f'- pass: {name.replace("_", " ")}'
        return self._figures(title, lambda c: c.branches.get(name), 1e9)

    def _figures(
        self,
        title: str,
        figure: Callable[[Cost], float | None],
        unit: float,
        digits: int = 3,
        savings: bool = True,
    ) -> list[str]:
        cells = []
        for cost in self.costs:
            value, saving = figure(cost), self.saving(cost, figure)
            text = '' if value is None else f'{value / unit:.{digits}f}'
            if savings and cost is not self.costs[0] and saving is not None:
                text += f' ({-saving:+.1%})'
            cells.append(text)
        return [title, *cells]

    def _closed_form(self) -> list[str]:
        cells = []
        for cost in self.costs:
            error = self.closed_form_error(cost)
            if error is None:
                cells.append('')
                continue
            mark = '' if abs(error) <= 0.01 else ' **differs**'
            cells.append(f'{-(cost.predicted_saving or 0) / 1e9:.3f}, off {error:+.2%}{mark}')
        return ['closed form, GMACs', *cells]


def compare(
    variants: Sequence[Variant], batch: Batch, optimizer: dict | None = None, *, full: bool = True
) -> CostReport:
    """Count every variant on one batch; arguments as in :func:`cost_of`."""
    inputs = batch['inputs']
    first = inputs if hasattr(inputs, 'shape') else inputs[0]
    framework = type(variants[0].model)
    plain = any(variant.name == PLAIN for variant in variants)
    with misfit_named(variants[0].model, inputs):
        costs = [
            cost_of(variant, batch, optimizer, full=full)
            for variant in track(variants, lambda variant: f'counting {variant.label}')
        ]
    return CostReport(
        model=framework.__name__,
        framework=ADAPTERS.find(framework) or f'{framework.__module__}.{framework.__qualname__}',
        inputs=tuple(first.shape[1:]),
        batch_size=num_images(batch),
        costs=costs,
        notes=' '.join(filter(None, (NOT_COUNTED, '' if plain else NO_PLAIN, how_counted()))),
    )


def plot(report: CostReport, path: str | Path) -> None:
    """Draw forward and training MACs and activations against the throw ratio."""
    from matplotlib.figure import Figure

    figures = {
        'forward GMACs': (1e9, lambda c: c.forward),
        'training GMACs': (1e9, lambda c: c.training),
        'activations MB (fused)': (1e6, lambda c: c.activations_fused),
    }
    canvas = Figure(figsize=(4 * len(figures), 3.2), layout='constrained')
    base = report.costs[0]
    for axes, (title, (unit, figure)) in zip(
        canvas.subplots(1, len(figures)), figures.items(), strict=True
    ):
        for name, style in ((PLAIN, 'o--'), (OURS, 's-')):
            points = sorted([c for c in report.costs if c.name == name], key=_ratio)
            points = [base, *points]
            if all(figure(c) is not None for c in points):
                axes.plot(
                    [c.throw_ratio for c in points],
                    [figure(c) / unit for c in points],
                    style,
                    label=name,
                )
        axes.set(title=f'{report.model}: {title}', xlabel='throw ratio', ylim=(0, None))
        axes.legend(title=f'{FRAMEWORK} at 0', fontsize='small')
    canvas.savefig(path, dpi=120)


def _ratio(cost: Cost) -> float:
    return cost.throw_ratio
