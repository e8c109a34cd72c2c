# SPDX-License-Identifier: Apache-2.0
"""Collects the cases of all frameworks."""

import importlib.util
import sys
from pathlib import Path

import pytest
from contract_case import Case


def _cases() -> list[Case]:
    found = []
    for path in sorted((Path(__file__).parent / 'cases').glob('*.py')):
        spec = importlib.util.spec_from_file_location(f'contract_cases_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # so that the classes of a case can be pickled
        spec.loader.exec_module(module)
        found += module.CASES
    return found


@pytest.fixture(params=_cases(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
