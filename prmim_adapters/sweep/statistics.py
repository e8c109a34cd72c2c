# SPDX-License-Identifier: Apache-2.0
"""Paired differences over seeds, their confidence intervals, and the verdicts they allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of (this arm - the other), with its confidence interval.

    ``low`` and ``high`` are infinite with fewer than two shared seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds < 2:
            return f'{self.mean:+.2f}'
        return f'{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]'


def paired_difference(
    this: Mapping[int, float], other: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """Difference over the seeds that both have, by Student's t; None if they share none.

    Args:
        this: seed to value.
        other: seed to value.
        confidence: of the two-sided interval.
    """
    shared = sorted(this.keys() & other.keys())
    if not shared:
        return None
    values = [this[seed] - other[seed] for seed in shared]
    centre = mean(values)
    if len(values) < 2:
        return Difference(centre, -math.inf, math.inf, 1)
    from scipy.stats import ttest_rel

    test = ttest_rel(*([side[seed] for seed in shared] for side in (this, other)))
    low, high = test.confidence_interval(confidence)
    return Difference(centre, float(low), float(high), len(values))


def against_framework(difference: Difference, margin: float) -> str:
    """What the interval of (arm - framework) allows to say.

    * better: the whole interval lies above 0;
    * worse: it lies below 0;
    * worse by less than the margin: it lies between ``-margin`` and 0;
    * lossless: it lies above ``-margin``, or begins there, and reaches 0;
    * undecided: none of these.

    ``margin`` is in the unit of the difference, at least 0.
    """
    if difference.low > 0:
        return 'better'
    within = difference.low >= -margin
    if difference.high < 0:
        return f'worse by less than {margin:g}' if within else 'worse'
    return 'lossless' if within else 'undecided'


def against_arm(difference: Difference) -> str:
    """What the interval of (arm - another arm) allows to say."""
    if difference.low > 0:
        return 'better'
    if difference.high < 0:
        return 'worse'
    return 'undecided'


def mean_and_spread(values: Mapping[int, float]) -> str:
    """'41.23 ± 0.40' (standard deviation over seeds); the mean alone for one seed."""
    numbers = list(values.values())
    if not numbers:
        return '-'
    if len(numbers) == 1:
        return f'{numbers[0]:.2f}'
    return f'{mean(numbers):.2f} ± {stdev(numbers):.2f}'
