# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from prmim_adapters.sweep.statistics import (
    Difference,
    against_arm,
    against_framework,
    mean_and_spread,
    paired_difference,
)


def test_interval_is_that_of_a_paired_t_test():
    """Differences 1, 2, 4, of standard deviation sqrt(7 / 3); t is 2.919986 at 90 % and 2 degrees."""
    got = paired_difference({0: 51.0, 1: 44.0, 2: 54.0}, {0: 50.0, 1: 42.0, 2: 50.0}, 0.9)
    half = 2.919986 * math.sqrt(7 / 3) / math.sqrt(3)
    assert got.mean == pytest.approx(7 / 3)
    assert (got.low, got.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-5)


def test_only_shared_seeds_are_compared():
    got = paired_difference({0: 1.0, 1: 5.0, 2: 9.0}, {1: 4.0, 2: 6.0, 7: 0.0})
    assert (got.mean, got.seeds) == (2.0, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_seed_decides_nothing():
    got = paired_difference({0: 60.0}, {0: 40.0})
    assert (got.low, got.high) == (-math.inf, math.inf)
    assert against_framework(got, margin=0.3) == 'undecided'
    assert against_arm(got) == 'undecided'
    assert str(got) == '+20.00'


@pytest.mark.parametrize(
    ('low', 'high', 'framework', 'plain'),
    [
        (0.1, 0.9, 'better', 'better'),
        (-0.2, 0.4, 'lossless', 'undecided'),
        (-0.2, -0.1, 'worse by less than 0.3', 'worse'),
        (-0.2, 0.0, 'lossless', 'undecided'),
        (-0.9, -0.1, 'worse', 'worse'),
        (-0.9, 0.5, 'undecided', 'undecided'),
    ],
)
def test_verdicts(low, high, framework, plain):
    difference = Difference((low + high) / 2, low, high, 3)
    assert against_framework(difference, margin=0.3) == framework
    assert against_arm(difference) == plain


def test_mean_and_spread():
    assert mean_and_spread({0: 40.0, 1: 42.0}) == '41.00 ± 1.41'
    assert mean_and_spread({0: 40.0}) == '40.00'
    assert mean_and_spread({}) == '-'
