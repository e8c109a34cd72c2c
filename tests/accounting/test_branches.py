# SPDX-License-Identifier: Apache-2.0
"""The passes of a step, counted one by one: nobody reads the student's saving as the whole."""

import copy

import pytest
from contract_case import collect

import prmim_adapters as prmim
from prmim_adapters.accounting.flops import branch_macs, count_macs
from prmim_adapters.accounting.report import compare
from prmim_adapters.accounting.variants import variants_of


@pytest.fixture(scope='module')
def ibot():
    return next(case for case in collect() if case.name == 'ibot')


def test_passes_add_up_and_only_the_students_global_crops_get_cheaper(ibot):
    framework = ibot.model()
    ours = prmim.attach(copy.deepcopy(framework), ibot.ratio)
    before, after = (branch_macs(model, ibot.batch()) for model in (framework, ours))
    assert list(before) == ['teacher', 'student_globals', 'student_locals']
    for model, branches in ((framework, before), (ours, after)):
        products = count_macs(model, ibot.batch()).products
        assert sum(branches.values()) == pytest.approx(products, rel=0.02)  # the rest is the loss
    assert after['teacher'] == before['teacher']
    assert after['student_locals'] == before['student_locals']
    assert after['student_globals'] < before['student_globals']


def test_the_table_has_a_line_for_each_pass(ibot):
    ours = prmim.attach(ibot.model(), ibot.ratio)
    table = compare(variants_of(ours), ibot.batch(), full=False).markdown()
    for name in ('teacher', 'student globals', 'student locals'):
        assert f'pass: {name} |' in table


def test_other_frameworks_have_no_passes():
    case = next(case for case in collect() if case.name == 'mae')
    assert branch_macs(case.model(), case.batch()) == {}


def test_a_model_that_has_been_run_can_be_counted():
    """mmpretrain's BEiT encoder keeps a tensor of the last step's graph."""
    case = next(case for case in collect() if case.name == 'simmim-vit')
    model = case.model()
    expected = count_macs(model, case.batch()).total
    case.loss(model)
    assert not model.backbone.shared_rel_pos_bias.is_leaf
    assert count_macs(model, case.batch()).total == expected
