# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import SkipTest

import pytest
from contract_case import Absent, declared
from originals import ORIGINALS, Original
from originals_declared import DECLARED

from prmim_adapters.testing import AdapterCase


@pytest.fixture(params=declared() + ORIGINALS + DECLARED, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Iterator[AdapterCase]:
    with ExitStack() as stack:
        try:
            if isinstance(request.param, Absent):
                raise SkipTest(request.param.reason)
            if isinstance(request.param, Original):
                stack.enter_context(request.param.entered())
        except SkipTest as reason:  # tests/conftest.py sums these up
            request.node.user_properties.append(('absent', request.param.name))
            pytest.skip(str(reason))
        yield request.param
