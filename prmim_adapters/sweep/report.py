# SPDX-License-Identifier: Apache-2.0
"""The report of a sweep: tables and verdicts in markdown, computed from the JSON files alone.

Unfinished and failed points are listed, so a report can be made at any time. All but its last
section, measured times, is the same however often the sweep was interrupted.
"""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from . import statistics as stats
from .collected import Cell, Sweep
from .verdicts import peer_rows, verdict_headers, verdict_rows, verdict_rule


def markdown(sweep: Sweep, title: str) -> str:
    """The report. ``title`` becomes its heading."""
    parts = [f'# {title}', _protocol(sweep), '## Accuracy', _accuracy_table(sweep)]
    verdicts = _table(verdict_rows(sweep), verdict_headers(sweep))
    parts += ['## Verdict', verdict_rule(sweep), verdicts]
    peers = peer_rows(sweep)
    if peers:
        headers = ['framework', 'arm', 'ratio', 'at', 'metric', 'peer', 'minus peer', '']
        parts += ['## Against peers', 'At the same budget.', _table(peers, headers)]
    parts += ['## Points without a result', _unfinished(sweep)]
    parts += ['## Measured time', _cost_table(sweep)]
    return '\n\n'.join(parts) + '\n'


def _protocol(sweep: Sweep) -> str:
    evaluation, seeds = sweep.spec.evaluation, ', '.join(map(str, sweep.spec.seeds))
    probe = f'; linear probe: logistic regression, C = {evaluation.regularization}'
    total = '; TMACs: of the whole training run' if sweep.knows_totals else ''
    return (
        f'Seeds {seeds}. Frozen features, standardised; kNN: cosine, k = {evaluation.k}, '
        f'temperature {evaluation.temperature}{probe if evaluation.linear_probe else ""}. '
        'Mean ± standard deviation over seeds, in per cent. '
        f'GMACs: per image, forward of the loss path and one whole training step{total}.'
    )


def _accuracy_table(sweep: Sweep) -> str:
    rows = []
    for cell in sweep.spec.cells():
        accuracies = [stats.mean_and_spread(sweep.values(cell, m)) for m in sweep.metrics]
        macs = [_number(sweep.cost(cell, key), 4) for key in ('forward_gmacs', 'training_gmacs')]
        macs += [_number(sweep.cost(cell, 'total_tmacs'), 2)] if sweep.knows_totals else []
        rows.append([*_labels(cell), len(sweep.results[cell]), *accuracies, *macs])
    headers = ['framework', 'arm', 'ratio', 'seeds', *(f'{t} %' for t in sweep.metrics.values())]
    headers += ['forward GMACs', 'training GMACs', 'total TMACs']
    return _table(rows, headers[: len(rows[0])])


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


def _labels(cell: Cell) -> list[str]:
    framework, arm, ratio = cell
    return [framework, arm, f'{ratio:.2f}']


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _table(rows: list[list[Any]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt='github', disable_numparse=True)
