# SPDX-License-Identifier: Apache-2.0
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from upstream_checkout import FOLDERS, checkout_of, importable


@pytest.fixture
def checkout(tmp_path, request) -> Path:
    """A copy of the checkout named by the test's parameter, free to be changed."""
    source = checkout_of(request.param)
    folder = tmp_path / FOLDERS[request.param]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns('.git', 'figures', 'notebooks'))
    return folder


@pytest.fixture
def upstream_modules() -> Iterator[object]:
    """``enter(name)`` makes a repository importable."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(importable(name))
