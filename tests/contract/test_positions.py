# SPDX-License-Identifier: Apache-2.0
"""Item 5 of the contract: every token in its place, at any ratio."""

from prmim_adapters.testing import positions


def test_loss_is_exact_at_any_ratio(case):
    positions.check_loss_is_exact_at_any_ratio(case)


def test_own_path_is_the_framework(case):
    positions.check_own_path_is_the_framework(case)


def test_features_follow_their_positions(case):
    positions.check_features_follow_their_positions(case)


def test_light_stage_knows_positions(case):
    positions.check_light_stage_knows_positions(case)
