# SPDX-License-Identifier: Apache-2.0
"""The states of every source of randomness that a training process has."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.options import check_whole
from ..core.randomness import Randomness


def random_states(model: nn.Module) -> dict[str, Any]:
    """States of torch (CPU and the current GPU), numpy, Python, and the samplers in ``model``.

    Tensors, numbers and lists only, so that ``weights_only`` loads them.
    """
    _, key, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states = dict(
        torch=torch.get_rng_state(),
        numpy=[torch.tensor(np.asarray(key, np.int64)), *rest],
        python=[version, torch.tensor(words), gauss],
        samplers={name: state.clone() for name, state in _sampler_states(model).items()},
    )
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any], model: nn.Module) -> None:
    """Go back to what :func:`random_states` returned.

    Raises:
        TypeError, ValueError: numpy's place among its words is none. numpy does not look, and would
            read beyond them; torch and Python refuse states that are none by themselves.
    """
    key, place, *rest = states['numpy']
    check_whole("the place in numpy's random state in the checkpoint", place, 0, key.numel())
    version, words, gauss = states['python']
    torch.set_rng_state(states['torch'].cpu())
    np.random.set_state(('MT19937', key.cpu().numpy().astype(np.uint32), place, *rest))
    random.setstate((version, tuple(words.tolist()), gauss))
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())
    for name, state in _sampler_states(model).items():
        if name in states['samplers']:
            state.copy_(states['samplers'][name])


def _sampler_states(model: nn.Module) -> dict[str, Tensor]:
    """The counters that samplers draw by."""
    return {n: m.state for n, m in model.named_modules() if isinstance(m, Randomness)}
