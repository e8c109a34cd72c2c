# SPDX-License-Identifier: Apache-2.0
"""What a sweep has found so far: its spec and the JSON files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .files import read_json
from .results import FAILURE, result_of
from .spec import Spec

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
        frozen = {'knn': 'kNN'}
        if self.spec.evaluation.linear_probe:
            frozen['linear'] = 'linear probe'
        return frozen | {name: name for name in self.spec.transfers}

    @property
    def knows_totals(self) -> bool:
        """Whether results say what their whole training run cost."""
        return any(
            'total_tmacs' in r['cost'] for own in self.results.values() for r in own.values()
        )

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
            lines = str(failure.get('reason')).strip().splitlines()
            failures[point.name] = lines[-1] if lines else 'no reason given'
        else:
            missing.append(point.name)
    return Sweep(spec, results, failures, missing)
