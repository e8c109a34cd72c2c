# SPDX-License-Identifier: Apache-2.0
"""The contract of an adapter, checked: for those of this package, and for anybody's.

In pytest::

    def test_my_adapter():
        check_adapter(build, batch, heavy=lambda model: model.backbone.blocks)

or, with a test for each check::

    @pytest.mark.parametrize('check', adapter_checks(build, batch, heavy=...), ids=str)
    def test_my_adapter(check):
        check()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

from . import checks, positions
from .access import recorded_partitions, seed_everything
from .case import AdapterCase
from .token_wise import make_token_wise

__all__ = [
    'CHECKS',
    'AdapterCase',
    'Check',
    'adapter_checks',
    'check_adapter',
    'make_token_wise',
    'recorded_partitions',
    'seed_everything',
]

CHECKS: tuple[Callable[[AdapterCase], None], ...] = tuple(
    function
    for module in (positions, checks)
    for name, function in vars(module).items()
    if name.startswith('check_') and function.__module__ == module.__name__
)
"""All checks; each takes a case and raises AssertionError, or SkipTest where it does not apply."""


@dataclass(frozen=True)
class Check:
    """One check of one case, to be called."""

    function: Callable[[AdapterCase], None]
    case: AdapterCase

    def __call__(self) -> None:
        """Run it."""
        self.function(self.case)

    def __str__(self) -> str:
        return self.function.__name__.removeprefix('check_')


def adapter_checks(build: Callable[[], Any], batch: Callable[[], Any], **case: Any) -> list[Check]:
    """The checks of an adapter, for ``pytest.mark.parametrize``.

    Args:
        build: makes the framework's model.
        batch: makes a batch.
        case: everything else that :class:`AdapterCase` knows, ``heavy`` at least.
    """
    found = AdapterCase(build, batch, **case)
    return [Check(function, found) for function in CHECKS]


def check_adapter(build: Callable[[], Any], batch: Callable[[], Any], **case: Any) -> None:
    """Run all checks of an adapter; arguments as in :func:`adapter_checks`.

    Warns of each check that does not apply, with the reason.

    Raises:
        AssertionError: of the first check that fails.
    """
    for check in adapter_checks(build, batch, **case):
        try:
            check()
        except SkipTest as reason:
            warnings.warn(f'{check} was not checked: {reason}', stacklevel=2)
