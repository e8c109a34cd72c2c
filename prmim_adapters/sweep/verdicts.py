# SPDX-License-Identifier: Apache-2.0
"""Rows of the report's tables of verdicts: differences that the seeds allow to judge."""

from __future__ import annotations

from collections.abc import Iterator

from . import statistics as stats
from .collected import Cell, Sweep
from .spec import FRAMEWORK_ARM


def verdict_rule(sweep: Sweep) -> str:
    """How the verdicts are made, as one paragraph."""
    verdict = sweep.spec.verdict
    return (
        f'Paired by seed, {100 * verdict.confidence:.0f} % t intervals. Against the framework: '
        f'*better* if the interval lies above 0, *worse* if below 0 (*by less than '
        f'{verdict.margin:g}* if also above -{verdict.margin:g} points), *lossless* if it lies above '
        f'-{verdict.margin:g} otherwise, else *undecided*. Against {verdict.baseline or "others"}: '
        '*better* or *worse* if the interval excludes 0. The intervals are not corrected for the '
        'number of comparisons.' + (_BUDGETS if _at_cost(sweep) else '')
    )


_BUDGETS = (
    ' At equal epochs all see as many images as the framework; at equal cost all spend as many '
    'training MACs as it does.'
)


def verdict_headers(sweep: Sweep) -> list[str]:
    """Of the columns of :func:`verdict_rows`."""
    headers = ['framework', 'arm', 'ratio', 'at', 'metric', 'minus framework', '']
    baseline = sweep.spec.verdict.baseline
    return headers if baseline is None else [*headers, f'minus {baseline}', '']


def verdict_rows(sweep: Sweep) -> list[list[str]]:
    """Every arm and peer against its framework, and against the baseline at the same budget."""
    return [
        [framework, arm, f'{ratio:.2f}', _at(sweep, cell), title, *_comparison(sweep, cell, metric)]
        for cell in _compared(sweep)
        for framework, arm, ratio in [cell]
        for metric, title in sweep.metrics.items()
    ]


def peer_rows(sweep: Sweep) -> list[list[str]]:
    """Every arm against the peers of its framework at the same budget."""
    rows = []
    for cell in _compared(sweep):
        framework, arm, ratio = cell
        for name, peer in sweep.spec.frameworks.items():
            if peer.peer_of != framework or _at(sweep, (name, FRAMEWORK_ARM, 0.0)) != _at(
                sweep, cell
            ):
                continue
            for metric, title in sweep.metrics.items():
                found = _against_arm(sweep, cell, (name, FRAMEWORK_ARM, 0.0), metric)
                rows.append([framework, arm, f'{ratio:.2f}', _at(sweep, cell), title, name, *found])
    return rows


def _compared(sweep: Sweep) -> Iterator[Cell]:
    """All cells but the frameworks themselves; peers are compared like arms."""
    for cell in sweep.spec.cells():
        if cell[1] != FRAMEWORK_ARM or sweep.spec.frameworks[cell[0]].peer_of is not None:
            yield cell


def _at(sweep: Sweep, cell: Cell) -> str:
    return f'equal {sweep.spec.budget(*cell[:2])}'


def _at_cost(sweep: Sweep) -> bool:
    return any(_at(sweep, cell) == 'equal cost' for cell in sweep.spec.cells())


def _comparison(sweep: Sweep, cell: Cell, metric: str) -> list[str]:
    """Difference and verdict against the framework, and against the baseline."""
    framework, arm, ratio = cell
    verdict = sweep.spec.verdict
    reference = sweep.spec.frameworks[framework].peer_of or framework
    to_base = stats.paired_difference(
        sweep.values(cell, metric),
        sweep.values((reference, FRAMEWORK_ARM, 0.0), metric),
        verdict.confidence,
    )
    row = ['-', '-']
    if to_base is not None:
        row = [str(to_base), stats.against_framework(to_base, verdict.margin)]
    baseline = (framework, verdict.baseline or '', ratio)
    if verdict.baseline is None:
        return row
    if arm in (FRAMEWORK_ARM, verdict.baseline) or baseline not in sweep.results:
        return [*row, '', '']
    if _at(sweep, baseline) != _at(sweep, cell):
        return [*row, '', '']
    return [*row, *_against_arm(sweep, cell, baseline, metric)]


def _against_arm(sweep: Sweep, cell: Cell, other: Cell, metric: str) -> list[str]:
    """Difference and verdict against another method, with no margin."""
    difference = stats.paired_difference(
        sweep.values(cell, metric), sweep.values(other, metric), sweep.spec.verdict.confidence
    )
    if difference is None:
        return ['-', '-']
    return [str(difference), stats.against_arm(difference)]
