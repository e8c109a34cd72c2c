# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys

import pytest
import torch

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs, make_batch
from prmim_adapters.accounting.report import compare, plot
from prmim_adapters.accounting.tracing import why_unavailable
from prmim_adapters.accounting.variants import variants_of


@pytest.fixture
def attached(small_mae):
    return prmim.attach(small_mae(), 0.5)


@pytest.fixture
def report(attached):
    return compare(variants_of(attached), make_batch(attached), {'type': 'AdamW', 'lr': 1e-3})


def test_variants_share_weights_and_leave_the_model_alone(attached, small_mae):
    framework, plain, ours = variants_of(attached)
    assert [v.label for v in (framework, plain, ours)] == [
        'framework',
        'plain partial 0.5',
        'PR-MIM 0.5',
    ]
    assert ours.model is attached
    assert not prmim.is_attached(framework.model)
    weights = [v.model.backbone.cls_token for v in (framework, plain, ours)]
    assert all(torch.equal(w, weights[0]) for w in weights)
    assert count_macs(framework.model, make_batch(attached)) == count_macs(
        small_mae(), make_batch(attached)
    )


def test_savings(report):
    framework, plain, ours = report.costs
    assert ours.aggregation > 0
    assert plain.aggregation == framework.aggregation == 0
    assert plain.forward < ours.forward < framework.forward
    assert plain.training < ours.training < framework.training
    assert plain.activations_fused < ours.activations_fused < framework.activations_fused
    assert ours.optimizer > framework.optimizer == plain.optimizer
    assert sum(ours.forward_by_module.values()) == pytest.approx(ours.forward)
    assert sum(ours.training_by_module.values()) == pytest.approx(ours.training)
    data = json.loads(json.dumps(report.to_dict()))
    assert data['costs'][2]['saving']['forward'] == 1 - ours.forward / framework.forward
    assert data['costs'][0]['saving']['training'] == 0


def test_table(report):
    lines = report.markdown().splitlines()
    assert lines[0] == 'MAE, 3x64x64, batch 2'
    assert report.framework == 'mmpretrain.models.selfsup.mae.MAE'
    assert lines[2] == '|  | framework | plain partial 0.5 | PR-MIM 0.5 |'
    cells = [cell.strip() for cell in lines[4].split('|')[1:-1]]
    ours = report.costs[2]
    share = ours.forward / report.costs[0].forward - 1
    assert cells[0] == 'forward GMACs'
    assert cells[3] == f'{ours.forward / 1e9:.3f} ({share:+.1%})'
    assert {line.count('|') for line in lines[2:-2]} == {5}
    assert lines[-1].startswith('Per image')


def test_plot(report, tmp_path):
    plot(report, tmp_path / 'cost.png')
    assert (tmp_path / 'cost.png').read_bytes()[:4] == b'\x89PNG'


def test_without_fvcore_the_second_counter_and_the_closed_form_carry_the_table(
    attached, report, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'fvcore', None)
    monkeypatch.setitem(sys.modules, 'fvcore.nn', None)
    alone = compare(variants_of(attached), make_batch(attached))
    for less, both in zip(alone.costs, report.costs, strict=True):
        assert less.training == both.training
        assert less.aggregation <= both.aggregation <= 1.2 * less.aggregation
        assert list(less.forward_by_module) == list(both.forward_by_module)
        assert 0.97 < less.forward / both.forward < 1  # without normalisation, a tiny model
        assert less.forward == pytest.approx(both.forward, rel=0.03)
    ours, counted = alone.costs[-1], report.costs[-1]
    assert ours.predicted_saving == counted.predicted_saving
    assert alone.closed_form_error(ours) == pytest.approx(0, abs=0.03)
    assert 'fvcore cannot be imported' in alone.notes
    assert 'without normalisation' in alone.notes
    assert 'fvcore' not in report.notes


def test_what_torch_takes_away_from_fvcore_counts_as_missing(monkeypatch):
    """fvcore imports names of torch.jit when it is imported."""
    for name in [name for name in sys.modules if name.split('.')[0] == 'fvcore']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr('torch.jit._get_trace_graph')
    assert '_get_trace_graph' in why_unavailable()
    assert not [name for name in sys.modules if name == 'fvcore.nn.jit_analysis']
