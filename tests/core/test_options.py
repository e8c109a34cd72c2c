# SPDX-License-Identifier: Apache-2.0
"""What each check lets through, and what it says otherwise."""

import math

import numpy as np
import pytest

from prmim_adapters.core.options import (
    LARGEST,
    check_choice,
    check_flag,
    check_number,
    check_whole,
)


def test_values_that_are_allowed():
    assert check_whole('n', np.int64(3), 3, 3) == 3
    assert type(check_whole('n', np.int64(3), 0)) is int
    assert check_number('x', 1) == 1.0
    assert check_number('x', np.float32(0.5), 0, 1) == 0.5
    assert check_number('x', LARGEST) == LARGEST
    assert check_flag('f', False) is False
    assert check_choice('c', 'a', ('a', 'b')) == 'a'


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: check_whole('n', 2, 3), ValueError, 'n=2 must be at least 3'),
        (lambda: check_whole('n', 2**40, 3), ValueError, 'n=1099511627776 must be at most'),
        (lambda: check_whole('n', '2', 3), TypeError, r"n='2' \(str\): expected a whole number"),
        (lambda: check_number('x', math.nan), ValueError, 'x=nan is not finite'),
        (lambda: check_number('x', math.inf), ValueError, 'x=inf is not finite'),
        (lambda: check_number('x', 1e39), ValueError, 'x=1e[+]39: must be between'),
        (lambda: check_number('x', 10**400, 0, 1), ValueError, 'x=10+: must be between 0 and 1'),
        (lambda: check_number('x', True), TypeError, 'x=True'),
        (lambda: check_number('x', 1j), TypeError, 'expected a number'),
        (lambda: check_flag('f', 1), TypeError, r'f=1 \(int\): expected True or False'),
        (lambda: check_choice('c', 'd', ('a', 'b')), ValueError, "c='d': allowed are 'a', 'b'"),
        (lambda: check_choice('c', ['a'], ('a', 'b')), TypeError, 'expected a name'),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
