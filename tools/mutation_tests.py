# SPDX-License-Identifier: Apache-2.0
"""The tests that must notice a mutation, by pytest's node ids."""

from __future__ import annotations

EXACT, OWN_PATH = 'loss_is_exact_at_any_ratio', 'own_path_is_the_framework'
WEIGHTS, ORDER = 'masked_tokens_have_their_weights', 'features_follow_their_positions'
KEYS, PRESENT = 'light_stage_knows_positions', 'heavy_network_sees_present_tokens'


def contract(check: str, *cases: str) -> tuple[str, ...]:
    """Node ids of a check of the contract."""
    return tuple(f'tests/contract/test_matrix.py::test_adapter[{case}-{check}]' for case in cases)


def named(path: str, *names: str) -> tuple[str, ...]:
    """Node ids of tests in a file."""
    return tuple(f'tests/{path}.py::{name}' for name in names)
