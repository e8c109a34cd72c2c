# SPDX-License-Identifier: Apache-2.0
"""``benchmarks/gpu.py --only captured`` compares whole adapters; these are the rules of the class."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prmim_adapters.core.cuda_graph import CapturedPass, is_capturing

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def test_only_a_device_captures_and_not_while_compiling(monkeypatch):
    """Dynamo cannot ask a stream, and a machine without CUDA has none."""
    there = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert is_capturing(there)
    assert not is_capturing(torch.zeros(2))
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert not is_capturing(there)


def passes(model):
    """One pass, ordinary or through a capture."""

    def run(tensors):
        loss = (model(tensors[0]) * tensors[1]).square().mean()
        loss.backward()
        return dict(loss=loss.detach())

    return run


@needs_cuda
def test_replays_are_passes():
    """Of three batches of one shape, one of another, and the first again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).cuda()
    run, captured = passes(model), CapturedPass(model)
    for rows in (3, 3, 3, 5, 5, 3):
        batch = [torch.randn(rows, 4).cuda(), torch.randn(rows, 2).cuda()]
        found = []
        for function in (run, lambda tensors: captured(tensors, run)):
            model.zero_grad(set_to_none=True)
            loss = function(batch)['loss'].clone()
            found.append((loss, [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(found[0], found[1])
    assert len(captured._captures) == 2


@needs_cuda
def test_another_key_is_another_graph():
    model = nn.Linear(2, 2).cuda()
    captured, scale = CapturedPass(model), 1.0

    def run(tensors):
        return tensors[0] * scale

    batch = [torch.ones(1, device='cuda')]
    for scale in (1.0, 1.0, 2.0, 2.0, 1.0):
        assert captured(batch, run, key=scale).item() == scale


@needs_cuda
def test_what_waits_for_the_device_is_refused():
    model = nn.Linear(2, 2).cuda()
    captured = CapturedPass(model)

    def run(tensors):
        return tensors[0] * tensors[0].sum().item()

    captured([torch.ones(1, device='cuda')], run)
    with pytest.raises(RuntimeError, match=r'the step cannot become a CUDA graph: .*do without'):
        captured([torch.ones(1, device='cuda')], run)
