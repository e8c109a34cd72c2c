# SPDX-License-Identifier: Apache-2.0
"""Checkouts of the original repositories, where PRMIM_UPSTREAM_DIR names a folder of them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest
from unittest.mock import patch

from prmim_adapters.upstream.shims import SHIMS

FOLDERS = {'mae': 'mae', 'simmim': 'SimMIM', 'convnextv2': 'ConvNeXt-V2', 'ibot': 'ibot'}
# names that the repositories share; namespace packages, which have no file, among them
PACKAGES = ('models', 'utils', 'util', 'data', 'evaluation', 'loader', 'config')


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


@contextmanager
def importable(name: str) -> Iterator[Path]:
    """Make a repository importable, with the shims that importing it needs."""
    from timm.models import vision_transformer

    folder, before = checkout_of(name), set(sys.modules)
    block = vision_transformer.Block
    with patch.object(sys, 'path', [str(folder), *sys.path]):
        for shim in ('torch-six', 'numpy-float', 'timm-block', 'minkowski'):
            SHIMS[shim](folder / 'main.py', [])
        try:
            yield folder
        finally:
            vision_transformer.Block = block
            for module in set(sys.modules) - before:
                path = getattr(sys.modules[module], '__file__', None) or ''
                shimmed = module in ('torch._six', 'MinkowskiEngine', 'MinkowskiOps')
                if shimmed or module in PACKAGES or f'/{folder.name}/' in path:
                    del sys.modules[module]
