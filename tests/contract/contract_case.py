# SPDX-License-Identifier: Apache-2.0
"""The frameworks of the contract: a file ``cases/<framework>.py`` defines ``CASES``."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from prmim_adapters.openmmlab.compat import make_compilable
from prmim_adapters.testing import AdapterCase


@dataclass(frozen=True)
class Absent:
    """A case that cannot run here, and why."""

    name: str
    reason: str


Case = partial(AdapterCase, before_compile=make_compilable)


def images(batch_size: int = 3, size: int | tuple[int, int] = 32, channels: int = 3) -> Tensor:
    """(B, channels, H, W) normal noise."""
    size = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch_size, channels, *size, generator=generator)


def collect() -> list[AdapterCase]:
    """The cases of all installed frameworks."""
    return [case for case in declared() if isinstance(case, AdapterCase)]


@cache
def declared() -> list[AdapterCase | Absent]:
    """The cases of all frameworks, loaded once: a second load would make other classes."""
    found: list[AdapterCase | Absent] = []
    for path in sorted((Path(__file__).parent / 'cases').glob('*.py')):
        spec = importlib.util.spec_from_file_location(f'contract_cases_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # so that the classes of a case can be pickled
        spec.loader.exec_module(module)
        found += module.CASES
    return found
