# SPDX-License-Identifier: Apache-2.0
"""A block of code with random states of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, numpy and torch inside the block and restores their states after it."""
    python = random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), _numpy_seeded(seed):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """The same for numpy, which torch does without."""
    try:
        import numpy as np
    except ModuleNotFoundError:
        yield
        return
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
