# SPDX-License-Identifier: Apache-2.0
"""The contract: the same checks for the adapter of every framework."""

import pytest

from prmim_adapters.testing import CHECKS

SLOW = ('check_compile',)


@pytest.mark.parametrize(
    'check',
    [
        pytest.param(
            check,
            id=check.__name__.removeprefix('check_'),
            marks=[pytest.mark.slow] if check.__name__ in SLOW else [],
        )
        for check in CHECKS
    ],
)
def test_adapter(case, check):
    check(case)
