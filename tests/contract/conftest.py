# SPDX-License-Identifier: Apache-2.0
import pytest
from contract_case import Case, collect


@pytest.fixture(params=collect(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
