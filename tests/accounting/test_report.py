# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
import torch

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs, make_batch
from prmim_adapters.accounting.report import compare, plot
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
    assert {line.count('|') for line in lines[2:]} == {5}


def test_plot(report, tmp_path):
    plot(report, tmp_path / 'cost.png')
    assert (tmp_path / 'cost.png').read_bytes()[:4] == b'\x89PNG'
