# SPDX-License-Identifier: Apache-2.0
"""Predictions against what is counted, on the small model of every framework in the contract."""

from __future__ import annotations

import pytest
from contract_case import collect
from mmpretrain.registry import MODELS

import prmim_adapters as prmim
from prmim_adapters.accounting import count_macs, make_batch
from prmim_adapters.accounting.closed_form import predicted_saving, token_counts
from prmim_adapters.accounting.report import Cost, CostReport
from prmim_adapters.testing.case import total

CASES = [case for case in collect() if not case.name.startswith('lightly')]  # only a decoder


@pytest.mark.parametrize(
    ('case', 'aggregator'),
    [
        *((case, aggregator) for case in CASES for aggregator in ('cross_attention', None)),
        *((case, 'last_blocks') for case in CASES if case.entering_last is not None),
    ],
    ids=lambda value: getattr(value, 'name', None),
)
def test_prediction_is_what_is_counted(case, aggregator):
    if aggregator is None and not case.weighted:
        pytest.skip('the loss weighs every masked token')
    model = prmim.attach(case.model(), case.ratio, aggregator=aggregator)
    batch = case.batch()
    if not isinstance(batch, dict):
        loss = lambda model, inputs: total(case.losses(model, inputs))  # noqa: E731
        batch = {'inputs': list(batch), 'data_samples': None, 'call': loss}
    predicted = predicted_saving(model, batch)
    if predicted is None:
        pytest.skip('no formula for this adapter')
    ours = count_macs(model, batch)
    light = sum(m for name, m in ours.by_module.items() if name.endswith('partial.aggregators'))
    counted = count_macs(case.model(), batch).total - (ours.total - light)
    assert counted == pytest.approx(predicted, rel=0.01)


def test_mae_vitb_by_hand(upstream_config):
    """27.85 % of 9.7945 GMACs: the figure for ratio 0.5 without any light stage."""
    config = upstream_config('mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py')
    model = prmim.attach(MODELS.build(config.model), 0.5)
    saved = predicted_saving(model, {'inputs': None, 'data_samples': None})
    linear = 8 * 98 * (4 * 512**2 + 2 * 512 * 2048)
    attention = 8 * 2 * 512 * (197**2 - 99**2)
    norms = 17 * 5 * 98 * 512
    prediction = (197 - 147) * 512 * 768
    assert saved == linear + attention + norms + prediction
    assert saved / 9.7945e9 == pytest.approx(0.2785, abs=5e-5)
    assert token_counts(model, 147).predicted == 147


def test_a_framework_of_your_own_has_no_formula(small_mae, monkeypatch):
    from prmim_adapters.accounting import closed_form

    monkeypatch.delitem(closed_form.FORMULAS, 'mmpretrain.models.selfsup.mae.MAE')
    model = prmim.attach(small_mae(), 0.5)
    assert predicted_saving(model, make_batch(model)) is None


def test_a_wrong_prediction_is_marked():
    costs = [
        Cost('framework', 'framework', 0.0, 10e9, {}, 0, 1, 1),
        Cost('PR-MIM 0.5', 'PR-MIM', 0.5, 8e9, {}, 0.1e9, 1, 1, predicted_saving=2.0e9),
    ]
    report = CostReport('MAE', (3, 8, 8), 2, costs)
    assert report.closed_form_error(costs[1]) == pytest.approx(0.05)
    assert 'off +5.00% **differs**' in report.markdown()
