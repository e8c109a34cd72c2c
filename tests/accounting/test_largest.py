# SPDX-License-Identifier: Apache-2.0
"""The search for the largest batch; what is counted on a CPU runs out of memory as a device does."""

from __future__ import annotations

import pytest
import torch
from tiny_net import Build, batch_for

from prmim_adapters.accounting.batch import repeated
from prmim_adapters.accounting.bench import Settings, Subject
from prmim_adapters.accounting.largest import Trial, _reason, largest_batches, search
from prmim_adapters.accounting.memory import activation_bytes, parameter_bytes
from prmim_adapters.accounting.throughput import Timing

SGD = {'type': 'SGD', 'lr': 0.1}


def attempts(peak, capacity):
    def attempt(size):
        return Trial(size, peak(size)) if peak(size) <= capacity else Trial(size, reason='full')

    return attempt


def linear(size):
    return 10**9 + 50 * 10**6 * size


def fragmented(size):
    """Nearly linear until memory is short, then more."""
    return linear(size) + (size > 1200) * 5 * 10**9


@pytest.mark.parametrize(
    ('peak', 'first', 'expected'), [(linear, 8, 1576), (linear, 64, 1536), (fragmented, 8, 1480)]
)
def test_search_ends_at_the_wall(peak, first, expected):
    """80 GB: 1,580 images in a straight line, 1,480 with the fragments; to a step or one per cent."""
    trials = search(attempts(peak, 80 * 10**9), 80 * 10**9, first)
    best = max(t.batch_size for t in trials if t.peak)
    refused = min(t.batch_size for t in trials if not t.peak)
    step = max(first, best // 100 // first * first)
    assert expected - step <= best <= expected
    assert best % first == 0
    assert refused - best <= step
    assert len(trials) <= 9


def test_search_gives_up_where_nothing_fits():
    trials = search(attempts(lambda size: 2, 1), 1, 8)
    assert [t.batch_size for t in trials] == [8]


def test_counted_memory_agrees_with_the_closed_form():
    """Static bytes plus those saved per image; every refused trial leaves a new model behind."""
    limit, found = 4e6, {}
    builds = []

    class Counted(Build):
        def __call__(self):
            builds.append(self.width)
            return super().__call__()

    subjects = [Subject('wide', Counted(512)), Subject('narrow', Counted(128))]
    settings = Settings(32, 'cpu', Timing(attention='explicit'))
    report = largest_batches('Net', subjects, batch_for, settings, SGD, limit)
    for subject, result in zip(subjects, report.found, strict=True):
        model = Build(subject.build.width)()
        static = parameter_bytes(model, SGD)
        held = static.parameters * 2 + static.buffers + static.optimizer
        each = activation_bytes(model, batch_for(model))
        expected = int((limit - held) / each) // 32 * 32
        assert expected - 32 <= result.best.batch_size <= expected
        assert result.refused.reason == 'out of memory'
        assert result.best.peak == pytest.approx(held + each * result.best.batch_size, rel=0.01)
        refused = [t for t in result.trials if t.peak is None]
        assert builds.count(subject.build.width) == len(refused) + (
            result.trials[-1].peak is not None
        )
        found[subject.label] = result.best.batch_size
    assert found['narrow'] > 3 * found['wide']
    data = report.to_dict()
    assert data['found'][1]['ratio'] == found['narrow'] / found['wide']
    assert f'| narrow | {found["narrow"]} |' in report.markdown()


@pytest.mark.parametrize(
    ('settings', 'limit', 'message'),
    [
        (Settings(8, 'cpu'), None, 'name a limit in GB'),
        (Settings(8, 'cpu', Timing(precision='bf16')), 1e9, 'counted in fp32 only'),
        (Settings(8, 'cpu', Timing(compiled=True)), 1e9, 'without torch.compile'),
        (Settings(8, 'cpu', processes=2), 1e9, 'in one process'),
        (Settings(8, 'cpu'), 0.0, 'must be above 0'),
    ],
)
def test_what_cannot_be_searched_is_refused(settings, limit, message):
    with pytest.raises(ValueError, match=message):
        largest_batches('Net', [Subject('a', Build(8))], batch_for, settings, SGD, limit)


def test_errors_that_are_not_memory_stay_errors():
    assert _reason(torch.OutOfMemoryError('CUDA out of memory. Tried ...')) == 'out of memory'
    assert _reason(RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when')) == 'out of memory'
    with pytest.raises(RuntimeError, match='illegal memory access'):
        _reason(RuntimeError('CUDA error: an illegal memory access was encountered'))


def test_repeated_images():
    batch = {'inputs': torch.arange(3.0).view(3, 1), 'data_samples': ['a', 'b', 'c']}
    more = repeated(batch, 5)
    assert more['inputs'].flatten().tolist() == [0, 1, 2, 0, 1]
    assert more['data_samples'] == ['a', 'b', 'c', 'a', 'b']
    views = repeated({'inputs': [torch.ones(2, 1), torch.zeros(2, 3)], 'data_samples': None}, 1)
    assert [tuple(v.shape) for v in views['inputs']] == [(1, 1), (1, 3)]
    assert views['data_samples'] is None


def test_the_command_says_what_it_needs(tmp_path):
    from click.testing import CliRunner

    from prmim_adapters.commands.bench import bench

    result = CliRunner().invoke(bench, ['any.py', '--memory-limit', '1'])
    assert result.exit_code == 2
    assert '--memory-limit is for --largest-batch' in result.output
