# SPDX-License-Identifier: Apache-2.0
"""Checkouts of the original repositories, where PRMIM_UPSTREAM_DIR names a folder of them."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prmim_adapters.upstream.shims import SHIMS

FOLDERS = {'mae': 'mae', 'simmim': 'SimMIM', 'convnextv2': 'ConvNeXt-V2', 'ibot': 'ibot'}


def checkout_of(name: str) -> Path:
    """The folder of one repository, or skip the test."""
    root = os.environ.get('PRMIM_UPSTREAM_DIR')
    if not root:
        pytest.skip('needs the original repositories: PRMIM_UPSTREAM_DIR (see docs/upstream.md)')
    folder = Path(root).resolve() / FOLDERS[name]
    if not folder.is_dir():
        pytest.skip(f'PRMIM_UPSTREAM_DIR has no folder {FOLDERS[name]} (see docs/upstream.md)')
    return folder


@pytest.fixture
def checkout(tmp_path, request) -> Path:
    """A copy of the checkout named by the test's parameter, free to be changed."""
    source = checkout_of(request.param)
    folder = tmp_path / FOLDERS[request.param]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns('.git', 'figures', 'notebooks'))
    return folder


@pytest.fixture
def upstream_modules(monkeypatch) -> Iterator[object]:
    """``enter(name)`` makes a repository importable, with the shims that importing it needs."""
    vision_transformer = pytest.importorskip('timm.models.vision_transformer')
    monkeypatch.setattr(vision_transformer, 'Block', vision_transformer.Block)
    before = set(sys.modules)

    def enter(name: str) -> Path:
        folder = checkout_of(name)
        monkeypatch.syspath_prepend(str(folder))
        for shim in ('torch-six', 'numpy-float', 'timm-block', 'minkowski'):
            SHIMS[shim](folder / 'main.py', [])
        return folder

    yield enter
    for module in set(sys.modules) - before:
        path = getattr(sys.modules[module], '__file__', None) or ''
        if any(f'/{folder}/' in path for folder in FOLDERS.values()):
            del sys.modules[module]
    for module in ('torch._six', 'MinkowskiEngine', 'MinkowskiOps'):
        sys.modules.pop(module, None)
    # namespace packages (a repository's folder without __init__.py) have no file
    for module in ('models', 'utils', 'util', 'data', 'evaluation', 'loader', 'config'):
        if module not in before:
            sys.modules.pop(module, None)
