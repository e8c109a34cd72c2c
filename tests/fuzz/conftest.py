# SPDX-License-Identifier: Apache-2.0
"""Properties tried on drawn inputs: a few, always the same, by default; many new ones with -m slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy


@pytest.fixture(params=['few', pytest.param('many', marks=pytest.mark.slow)])
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Function (check, strategy, few, many): ``check`` of that many draws; failures are shrunk."""
    long = request.param == 'many'

    def run(check: Callable[[Any], None], strategy: SearchStrategy, few: int, many: int) -> None:
        profile = settings(
            max_examples=many if long else few,
            derandomize=not long,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        profile(given(strategy)(check))()

    return run


@pytest.fixture(autouse=True)
def everything_in_little_memory(little_memory: None) -> None:
    """Whatever is drawn."""
