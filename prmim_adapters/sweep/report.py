# SPDX-License-Identifier: Apache-2.0
"""The report of a sweep: tables and verdicts in markdown, computed from the JSON files alone.

Unfinished and failed points are listed, so a report can be made at any time. All but its last
section, measured times, is the same however often the sweep was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from . import statistics as stats
from .results import FAILURE, read_json, result_of
from .spec import FRAMEWORK_ARM, Spec

Cell = tuple[str, str, float]


@dataclass(frozen=True)
class Sweep:
    """A spec and the results found for it.

    Attributes:
        results: cell to seed to the content of ``result.json``.
        failures: name of the point to the last line of the reason.
        missing: names of points without result or failure.
    """

    spec: Spec
    results: dict[Cell, dict[int, dict[str, Any]]]
    failures: dict[str, str]
    missing: list[str]

    @property
    def metrics(self) -> dict[str, str]:
        """Key in ``accuracy`` to its title."""
        transfers = {name: name for name in self.spec.transfers}
        return _frozen_metrics(self.spec) | transfers

    def values(self, cell: Cell, metric: str, part: str = 'accuracy') -> dict[int, float]:
        """Seed to value, of the seeds that have one."""
        results = self.results[cell]
        return {seed: r[part][metric] for seed, r in results.items() if metric in r[part]}

    def cost(self, cell: Cell, key: str) -> float | None:
        """Median over seeds."""
        values = self.values(cell, key, 'cost')
        return median(values.values()) if values else None


def collect(spec: Spec, out: Path) -> Sweep:
    """Read the results in ``out``.

    Raises:
        ChangedSettingsError: a result was made with other settings than the spec's.
    """
    results: dict[Cell, dict[int, dict[str, Any]]] = {cell: {} for cell in spec.cells()}
    failures, missing = {}, []
    for point in spec.points():
        folder = out / point.name
        result = result_of(point, spec.settings(point), folder)
        failure = read_json(folder / FAILURE)
        if result is not None:
            results[point.cell][point.seed] = result
        elif failure is not None:
            failures[point.name] = failure['reason'].strip().splitlines()[-1]
        else:
            missing.append(point.name)
    return Sweep(spec, results, failures, missing)


def markdown(sweep: Sweep, title: str) -> str:
    """The report. ``title`` becomes its heading."""
    parts = [f'# {title}', _protocol(sweep), '## Accuracy', _accuracy_table(sweep)]
    parts += ['## Verdict', _verdict_rule(sweep), _verdict_table(sweep)]
    parts += ['## Points without a result', _unfinished(sweep)]
    parts += ['## Measured time', _cost_table(sweep)]
    return '\n\n'.join(parts) + '\n'


def _protocol(sweep: Sweep) -> str:
    evaluation, seeds = sweep.spec.evaluation, ', '.join(map(str, sweep.spec.seeds))
    probe = f'; linear probe: logistic regression, C = {evaluation.regularization}'
    return (
        f'Seeds {seeds}. Frozen features, standardised; kNN: cosine, k = {evaluation.k}, '
        f'temperature {evaluation.temperature}{probe if evaluation.linear_probe else ""}. '
        'Mean ± standard deviation over seeds, in per cent. '
        'GMACs: per image, forward of the loss path and one whole training step.'
    )


def _accuracy_table(sweep: Sweep) -> str:
    rows = []
    for cell in sweep.spec.cells():
        accuracies = [stats.mean_and_spread(sweep.values(cell, m)) for m in sweep.metrics]
        macs = [_number(sweep.cost(cell, key), 4) for key in ('forward_gmacs', 'training_gmacs')]
        rows.append([*_labels(cell), len(sweep.results[cell]), *accuracies, *macs])
    headers = ['framework', 'arm', 'ratio', 'seeds', *(f'{t} %' for t in sweep.metrics.values())]
    return _table(rows, [*headers, 'forward GMACs', 'training GMACs'])


def _verdict_rule(sweep: Sweep) -> str:
    verdict = sweep.spec.verdict
    return (
        f'Paired by seed, {100 * verdict.confidence:.0f} % t intervals. Against the framework: '
        f'*lossless* if the interval lies above -{verdict.margin} points, *better* if above 0, '
        '*worse* if below 0, else *undecided*. Against plain partial reconstruction: *better* or '
        '*worse* if the interval excludes 0. The intervals are not corrected for the number of '
        'comparisons.'
    )


def _verdict_table(sweep: Sweep) -> str:
    rows = []
    for framework, arm, ratio in sweep.spec.cells():
        if arm != FRAMEWORK_ARM:
            for metric, title in sweep.metrics.items():
                row = _comparison(sweep, (framework, arm, ratio), metric)
                rows.append([framework, arm, f'{ratio:.2f}', title, *row])
    headers = ['framework', 'arm', 'ratio', 'metric', 'minus framework', '', 'minus plain', '']
    return _table(rows, headers)


def _comparison(sweep: Sweep, cell: Cell, metric: str) -> list[str]:
    """Difference and verdict against the framework, and against the plain arm."""
    framework, arm, ratio = cell
    verdict, own = sweep.spec.verdict, sweep.values(cell, metric)
    base = sweep.values((framework, FRAMEWORK_ARM, 0.0), metric)
    to_base = stats.paired_difference(own, base, verdict.confidence)
    row = (
        ['-', '-']
        if to_base is None
        else [
            str(to_base),
            stats.against_framework(to_base, verdict.margin),
        ]
    )
    if verdict.plain is None or arm == verdict.plain:
        return [*row, '', '']
    plain = sweep.values((framework, verdict.plain, ratio), metric)
    to_plain = stats.paired_difference(own, plain, verdict.confidence)
    if to_plain is None:
        return [*row, '-', '-']
    return [*row, str(to_plain), stats.against_plain(to_plain)]


def _unfinished(sweep: Sweep) -> str:
    lines = [f'* failed: {name}: {reason}' for name, reason in sweep.failures.items()]
    lines += [f'* not run: {name}' for name in sweep.missing]
    return '\n'.join(lines) or 'None: all points finished.'


def _cost_table(sweep: Sweep) -> str:
    rows = []
    for cell in sweep.spec.cells():
        step, data = (sweep.cost(cell, key) for key in ('step_seconds', 'data_seconds'))
        times = [_number(value and 1000 * value, 1) for value in (step, data)]
        speed = _number(sweep.cost(cell, 'images_per_second'), 1)
        total = _number(sweep.cost(cell, 'wall_seconds'), 0)
        loss = _number(sweep.cost(cell, 'last_loss'), 4)
        rows.append([*_labels(cell), *times, speed, total, loss])
    headers = ['framework', 'arm', 'ratio', 'step ms', 'of it data ms', 'img/s', 'point s', 'loss']
    machines = {
        str(r['environment']['gpu'] or r['environment']['processor'])
        for cell in sweep.results.values()
        for r in cell.values()
    }
    where = ', '.join(sorted(machines)) or 'nothing'
    note = (
        f'Medians over steps, then over seeds, on {where}. They vary from run to run, and compare '
        'arms only if the machine had nothing else to do.'
    )
    return f'{note}\n\n{_table(rows, headers)}'


def _frozen_metrics(spec: Spec) -> dict[str, str]:
    metrics = {'knn': 'kNN'}
    return metrics | {'linear': 'linear probe'} if spec.evaluation.linear_probe else metrics


def _labels(cell: Cell) -> list[str]:
    framework, arm, ratio = cell
    return [framework, arm, f'{ratio:.2f}']


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _table(rows: list[list[Any]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt='github', disable_numparse=True)
