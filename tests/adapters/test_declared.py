# SPDX-License-Identifier: Apache-2.0
"""Declarations that are wrong; the contract of right ones is in tests/contract/cases/declared.py."""

import pickle
import sys

import pytest
import torch
from cases.declared import GRID, LENGTH, MASKED, THROWN, UsersMAE

import prmim_adapters as prmim
from prmim_adapters.adapters import ADAPTERS
from prmim_adapters.testing import seed_everything

IMAGES = torch.randn(2, 3, 8, 12)
GOOD = dict(
    method='decode',
    arguments=('x', 'ids_restore'),
    blocks='blocks',
    prefix=1,
    mask=prmim.masks.Restore(),
    grid=lambda model: GRID,
    loss=('compare', 'mask'),
)


class Other(UsersMAE):
    """Another name for each declaration."""


@pytest.fixture
def declared(monkeypatch):
    def make(**changes):
        name = f'{Other.__module__}.Other'
        ADAPTERS._entries.pop(name, None)
        prmim.declare(name, **{**GOOD, **changes})
        return prmim.attach(Other(), throw_ratio=THROWN / LENGTH)

    yield make
    ADAPTERS._entries.pop(f'{Other.__module__}.Other', None)


def loss_of(model):
    seed_everything(model, 0)
    return model(IMAGES)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(blocks='blcks'), TypeError, "has no module 'blcks', as declared"),
        (dict(host='decoder'), TypeError, "has no module 'decoder', as declared"),
        (dict(method='decod'), TypeError, "Other has no method 'decod', as declared"),
        (dict(arguments=('x', 'mask')), TypeError, r'is decode\(self, x, ids_restore\), but'),
        (dict(blocks='norm'), TypeError, r'Other.norm is a .*LayerNorm: the adapter .*ModuleList'),
        (dict(order='shuffled'), ValueError, "order='shuffled': allowed are 'grid'"),
        (dict(prefix=-1), ValueError, 'prefix=-1: must be a number of rows'),
        (dict(prefix=True), ValueError, 'prefix=True: must be a number of rows'),
    ],
)
def test_wrong_at_attach(declared, changes, error, message):
    with pytest.raises(error, match=message):
        declared(**changes)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(prefix=0), ValueError, r'the first block got \(2, 25, 12\), but .*0 \+ 24'),
        (dict(grid=lambda model: (5, 5)), ValueError, r'does not fit the 5x5 patch grid'),
        (
            dict(mask=prmim.masks.Argument('ids_restore', masked=False)),
            ValueError,
            'cannot throw 12 tokens',
        ),
    ],
)
def test_wrong_in_the_first_step(declared, changes, error, message):
    with pytest.raises(error, match=message):
        loss_of(declared(**changes))


def test_blocks_that_are_not_iterated_over(declared, monkeypatch):
    model = declared()
    every = lambda blocks: iter(blocks._modules.values())  # noqa: E731, by index, for example
    monkeypatch.setattr(type(model.blocks), '__iter__', every)
    with pytest.raises(RuntimeError, match="did not iterate over 'blocks', so that all tokens"):
        loss_of(model)


def test_without_a_loss_weights_are_refused(declared):
    assert loss_of(declared(loss=None)).isfinite()
    with pytest.raises(ValueError, match='aggregator=None and thrown_weight are not supported'):
        prmim.attach(Other(), throw_ratio=0.25, aggregator=None)


def test_twice(declared):
    declared()
    with pytest.raises(KeyError, match='registered already'):
        prmim.declare(f'{Other.__module__}.Other', **GOOD)


def test_a_class_made_anew_in_another_process(declared):
    from prmim_adapters.adapters import between

    model = declared()
    name = type(model).__qualname__
    made = between._MADE.copy()
    between._MADE.clear()
    try:
        again = getattr(sys.modules[type(model).__module__], name)
        names = [[cls.__qualname__ for cls in c.__mro__] for c in (again, type(model))]
        assert names[0] == names[1]
        assert again is not type(model)
    finally:
        between._MADE.update(made)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(loss_of(twin), loss_of(model))
    assert MASKED > THROWN
