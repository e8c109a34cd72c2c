# SPDX-License-Identifier: Apache-2.0
"""Checkouts of the original repositories, where PRMIM_UPSTREAM_DIR names a folder of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest import SkipTest
from unittest.mock import patch

from prmim_adapters.upstream.shims import SHIMS

FOLDERS = {
    'mae': 'mae',
    'simmim': 'SimMIM',
    'convnextv2': 'ConvNeXt-V2',
    'ibot': 'ibot',
    'videomae': 'VideoMAE',
    'videomae-v2': 'VideoMAEv2',
    'mae-pytorch': 'MAE-pytorch',
    'mae-st': 'mae_st',
    'hiera': 'hiera',
    'satmae': 'SatMAE',
    'satmae-pp': 'satmae_pp',
    'terratorch': 'terratorch',
    'audiomae': 'AudioMAE',
    'hpm': 'HPM',
    'bootmae': 'BootMAE',
    'solo-learn': 'solo-learn',
}


def checkout_of(name: str) -> Path:
    """The folder of one repository.

    Raises:
        SkipTest: there is none, with the reason.
    """
    root = os.environ.get('PRMIM_UPSTREAM_DIR')
    if not root:
        raise SkipTest('needs the original repositories: PRMIM_UPSTREAM_DIR (see docs/upstream.md)')
    folder = Path(root).resolve() / FOLDERS[name]
    if not folder.is_dir():
        raise SkipTest(f'PRMIM_UPSTREAM_DIR has no folder {FOLDERS[name]} (see docs/upstream.md)')
    return folder


def _stubs(folder: Path) -> Iterator[tuple[str, ModuleType]]:
    """Packages whose own ``__init__`` needs much that their model does not, and missing ones."""
    if folder.name == 'terratorch':
        for package in ('terratorch', 'terratorch.models', 'terratorch.models.backbones'):
            yield package, _package(package, folder.joinpath(*package.split('.')))
    elif folder.name == 'mae_st' and find_spec('simplejson') is None:  # of its logger
        yield 'simplejson', _package('simplejson', folder)
    elif folder.name == 'solo-learn' and find_spec('lightning') is None:
        yield 'lightning', _package('lightning', folder)
        yield 'lightning.pytorch', import_module('pytorch_lightning')  # its other name


def _package(name: str, path: Path) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = [str(path)]
    return module


@contextmanager
def importable(name: str) -> Iterator[Path]:
    """Make a repository importable, with the shims that importing it needs."""
    from timm.models import vision_transformer

    folder, before = checkout_of(name), set(sys.modules)
    block = vision_transformer.Block
    # mae_st is imported by the name of its folder
    with patch.object(sys, 'path', [str(folder), str(folder.parent), *sys.path]):
        for shim in ('torch-six', 'numpy-float', 'timm-block', 'minkowski'):
            SHIMS[shim](folder / 'main.py', [])
        sys.modules.update(_stubs(folder))
        try:
            yield folder
        finally:
            vision_transformer.Block = block
            theirs = [name for name in set(sys.modules) - before if _is_of(name, folder)]
            for module in theirs:
                del sys.modules[module]


def _is_of(name: str, folder: Path) -> bool:
    """Whether a module is the repository's, or stands in for one that it misses."""
    module = sys.modules[name]
    places = [getattr(module, '__file__', None), *getattr(module, '__path__', [])]
    inside = any(f'{place}/'.startswith(f'{folder}/') for place in places)
    return inside or name in ('torch._six', 'MinkowskiEngine', 'MinkowskiOps', 'lightning.pytorch')
