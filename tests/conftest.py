# SPDX-License-Identifier: Apache-2.0
import os
import socket

import pytest
from mmengine.registry import DefaultScope


def pytest_runtest_setup(item):
    if item.get_closest_marker('slurm') and 'SLURM_CONF' not in os.environ:
        pytest.skip('needs Slurm; tools/slurm_test.sh starts one')


@pytest.fixture(autouse=True)
def default_scope():
    """A Runner in one test leaves its scope behind; the next one builds by mmpretrain's names."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def free_port():
    """A port on which the processes of a test can meet."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
