# SPDX-License-Identifier: Apache-2.0
import os
import resource
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What fills the memory fails here, rather than the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What did not run, and why: cases of the contract by name, other tests by their number."""
    cases, tests = defaultdict(set), defaultdict(int)
    for report in terminalreporter.stats.get('skipped', []):
        reason = str(report.longrepr[2]).removeprefix('Skipped: ').removeprefix('SkipTest: ')
        case = dict(report.user_properties).get('absent')
        if case:
            cases[reason].add(case)
        else:
            tests[reason] += 1
    if cases or tests:
        terminalreporter.section('did not run')
    for reason, names in cases.items():
        terminalreporter.line(f'{len(names)} cases of the contract: {reason}')
        terminalreporter.line(f'    {", ".join(sorted(names))}')
    for reason, count in tests.items():
        terminalreporter.line(f'{count} tests: {reason}')
