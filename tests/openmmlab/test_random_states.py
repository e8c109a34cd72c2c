# SPDX-License-Identifier: Apache-2.0
"""Random states come back, and a file's crafted ones do not lead beyond numpy's words."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from prmim_adapters.openmmlab.random_states import random_states, set_random_states


def draws() -> list[float]:
    return [torch.rand(1).item(), float(np.random.rand()), random.random(), np.random.randn()]


def test_states_come_back() -> None:
    np.random.randn()  # leaves the other half of a pair for the next call
    states = random_states(nn.Identity())
    expected = draws()
    set_random_states(states, nn.Identity())
    assert draws() == expected


@pytest.mark.parametrize('place', [-1, 625, 10**8, True, 0.5, None])
def test_a_place_beyond_numpys_words_is_refused(place: object) -> None:
    """numpy takes it, and the next draw reads foreign memory."""
    states = random_states(nn.Identity())
    states['numpy'][1] = place
    with pytest.raises((TypeError, ValueError), match='the place in numpy'):
        set_random_states(states, nn.Identity())
