# SPDX-License-Identifier: Apache-2.0
"""Measurements are not asserted; that the right steps run, in the right order, is."""

from __future__ import annotations

import json
import multiprocessing
import re
import statistics

import pytest
import torch
from tiny_net import Build, batch_for, fails

from prmim_adapters.accounting import make_batch
from prmim_adapters.accounting.bench import Measured, Settings, Subject, measure
from prmim_adapters.accounting.peak import PeakMemory, _report, peak_memory
from prmim_adapters.accounting.throughput import (
    Times,
    Timing,
    time_interleaved,
    training_step,
)


def test_rounds_are_interleaved_and_the_first_ones_dropped():
    order = []
    steps = [lambda name=name: (order.append(name), torch.zeros(()))[1] for name in 'ab']
    times = time_interleaved(steps, Timing(steps=3, warmup=1), torch.device('cpu'))
    assert ''.join(order) == 'ab' + 'ba' + 'ab' + 'ba'
    assert [len(t.seconds) for t in times] == [3, 3]


def test_medians_and_ratios_within_rounds():
    slow = Times((1.0, 2.0, 4.0, 8.0))
    half = Times((0.5, 1.0, 2.0, 4.0))
    assert half.ratio_to(slow) == 0.5
    assert slow.median == 3.0
    assert slow.processor_ratio_to(half) is None
    assert Times((1.0,), (2.0,)).processor_ratio_to(Times((1.0,), (4.0,))) == 0.5
    low, _, high = statistics.quantiles(slow.seconds, n=4)
    assert slow.spread == (high - low) / 2 / 3.0


def test_a_loss_that_is_not_finite_stops_the_clock():
    with pytest.raises(RuntimeError, match='model 0 has a loss of nan'):
        time_interleaved([lambda: torch.tensor(float('nan'))], Timing(1, 0), torch.device('cpu'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'precision': 'fp16'}, "precision='fp16': allowed are 'fp32', 'bf16'"),
        ({'attention': 'flash'}, "attention='flash': allowed are 'fused', 'explicit'"),
        ({'steps': 0}, 'steps=0, warmup=2: need at least 1 and 0'),
        ({'captured': True, 'compiled': True}, 'captured=True with compiled=True, warmup=2: '),
        ({'captured': True, 'warmup': 1}, 'captured=True with compiled=False, warmup=1: '),
    ],
)
def test_timing_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Timing(**options)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_a_step_trains(small_mae, precision):
    model = small_mae()
    step = training_step(
        model, make_batch(model), Timing(precision=precision), {'type': 'SGD', 'lr': 1.0}
    )
    before = model.neck.decoder_pred.weight.clone()
    loss = step()
    assert loss.isfinite()
    assert not torch.equal(before, model.neck.decoder_pred.weight)
    assert model.neck.decoder_pred.weight.grad is None


def test_peak_memory_in_a_process_of_its_own():
    megabytes = 40
    width = megabytes * 10**6 // (256 * 4)
    memory = peak_memory(Build(width), batch_for, Timing(), 'cpu', {'type': 'SGD', 'lr': 0.1})
    assert memory.saved == pytest.approx(1e6 * megabytes, rel=0.01)  # relu's output, for both
    assert memory.peak > memory.saved


@pytest.mark.slow
def test_an_attached_model_compiles_without_graph_breaks(small_mae):
    import prmim_adapters as prmim
    from prmim_adapters.accounting.loss_path import LossPath
    from prmim_adapters.openmmlab.compat import make_compilable

    model = prmim.attach(small_mae(), 0.5)
    batch = make_batch(model)
    make_compilable(model)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(LossPath(model, batch))(batch['inputs'])
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        peak_memory(Build(4), fails, Timing(), 'cpu')


def asserts(model):
    raise AssertionError


def test_an_assertion_in_it_is_shown_with_its_place_and_line():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    _report(sender, Build(4), asserts, Timing(), None, None)
    message = r'AssertionError at .*test_throughput\.py, line \d+: raise AssertionError'
    assert re.fullmatch(message, receiver.recv())


def test_report():
    subjects = [Subject('wide', Build(64)), Subject('narrow', Build(8))]
    settings = Settings(batch_size=256, device='cpu', timing=Timing(3, 1), memory=False)
    report = measure('Net', subjects, batch_for, settings)
    data = json.loads(json.dumps(report.to_dict()))
    assert [m['label'] for m in data['measured']] == ['wide', 'narrow']
    assert data['measured'][0]['time_ratio'] == 1
    assert data['measured'][1]['images_per_second'] == pytest.approx(
        256 / data['measured'][1]['median_seconds']
    )
    assert data['environment']['packages']['torch'] == torch.__version__
    lines = report.markdown().splitlines()
    assert lines[2] == '|  | step ms | spread | img/s | time | CPU time | peak MB | memory |'
    assert lines[5].startswith('| narrow |')
    assert lines[5].endswith('| - | - |')
    assert lines[-1].endswith('- was not measured. Data: not measured.')


def test_devices_and_numbers_that_cannot_be_measured():
    with pytest.raises(ValueError, match="device='cuda:1': allowed are 'cpu' and 'cuda'"):
        Settings(device='cuda:1')
    for device, processes in (('cpu', 1), ('cuda', 2)):
        with pytest.raises(ValueError, match=f"a CUDA graph with device='{device}', processes="):
            Settings(8, device, Timing(captured=True), processes=processes)
    nine = [Subject(str(width), Build(width)) for width in range(1, 10)]
    compiled = Settings(4, 'cpu', Timing(compiled=True))
    with pytest.raises(ValueError, match=r'9 models to compile.*measure at most 8 at a time'):
        measure('Net', nine, batch_for, compiled)


def test_two_processes():
    subjects = [Subject('wide', Build(64)), Subject('narrow', Build(8))]
    settings = Settings(256, 'cpu', Timing(2, 1), threads=1, processes=2, memory=False)
    report = measure('Net', subjects, batch_for, settings)
    assert len(report.measured[1].times.seconds) == 2
    one = report.measured[0]
    assert report.images_per_second(one) == pytest.approx(2 * 256 / one.times.median)


def test_memory_ratio():
    measured = [
        Measured('a', Times((1.0,)), PeakMemory(resident=300, resident_before=100)),
        Measured('b', Times((1.0,)), PeakMemory(allocated=150, reserved=200)),
        Measured('c', Times((1.0,))),
    ]
    from prmim_adapters.accounting.bench import BenchReport

    report = BenchReport('x', Settings(), {'device': 'd', 'threads': 1, 'torch': '2'}, measured)
    assert [report.memory_ratio(m) for m in measured] == [1, 0.75, None]
