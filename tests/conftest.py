# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def default_scope():
    """A Runner in one test leaves its scope behind; the next one builds by mmpretrain's names."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield
