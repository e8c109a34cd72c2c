# SPDX-License-Identifier: Apache-2.0
"""What attach checks before it changes anything, where a user's class meets a seam, the one slot."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from users_mae import mae

import prmim_adapters as prmim
from prmim_adapters.adapters import ADAPTERS
from prmim_adapters.core import sampling


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(8, 8)


class PRLinear(nn.Linear):
    pass


GOOD = dict(host='decoder', classes={nn.Linear: PRLinear}, grid=(4, 4), width=8)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(host='decodr'), TypeError, "Small has no module 'decodr'"),
        (dict(guests=('decoder',)), ValueError, 'must be different modules'),
        (dict(guests=('head',)), TypeError, "Small has no module 'head'"),
        (dict(classes={nn.Conv2d: PRLinear}), TypeError, r'Small.decoder is a .*Linear: .*Conv2d'),
        (dict(classes={nn.Linear: nn.Conv2d}), TypeError, 'Conv2d must be a subclass of .*Linear'),
        (dict(grid=(4, 0)), ValueError, r'grid\[1\]=0: must be an integer of at least 1'),
        (dict(grid=(4, 4.0)), ValueError, r'grid\[1\]=4.0'),
        (dict(width=None), ValueError, 'width=None: must be an integer of at least 1'),
        (dict(num_masked=17), ValueError, r'num_masked=17, but the grid \(4, 4\) has 16 tokens'),
        (dict(num_prefix=-1), ValueError, 'num_prefix=-1: must be an integer of at least 0'),
    ],
)
def test_seams_are_checked(monkeypatch, changes, error, message):
    key = f'{Small.__module__}.Small'
    monkeypatch.setitem(ADAPTERS._entries, key, lambda model: prmim.Seams(**{**GOOD, **changes}))
    model = Small()
    with pytest.raises(error, match=message):
        prmim.attach(model)
    assert type(model.decoder) is nn.Linear and not prmim.is_attached(model)


@pytest.mark.parametrize('path', ['neck', 'head'])
def test_an_attribute_of_the_users_own_is_not_overwritten(path):
    model = mae()
    mine = model.get_submodule(path).partial = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=rf"MAE\.{path} has an attribute 'partial'"):
        prmim.attach(model)
    assert model.get_submodule(path).partial is mine


def test_what_an_adapter_forgot_is_named(monkeypatch):
    key = f'{Small.__module__}.Small'
    short = {name: value for name, value in GOOD.items() if name != 'width'}
    monkeypatch.setitem(ADAPTERS._entries, key, lambda model: prmim.Seams(**short))
    with pytest.raises(TypeError, match="required keyword-only argument: 'width'"):
        prmim.attach(Small())
    monkeypatch.setitem(ADAPTERS._entries, key, lambda model: None)
    with pytest.raises(TypeError, match=r'returned None: an adapter returns Seams\(...\)'):
        prmim.attach(Small())


def test_a_faulty_sampler_shows_at_attach(monkeypatch):
    from prmim_adapters.adapters import SAMPLERS

    monkeypatch.setitem(SAMPLERS._entries, 'all', lambda mask, num_kept, grid, noise: mask)
    with pytest.raises(
        ValueError, match=r'asked for \[4, 4\] of \[12, 12\] masked tokens.*\[12, 12\] kept'
    ):
        prmim.attach(mae(), sampler='all')
    with pytest.raises(ValueError, match="seeds='bogus'"):
        prmim.attach(mae(), sampler=dict(type='farthest', seeds='bogus'))


def test_samplers_are_tried_with_ragged_masks_where_the_framework_has_them(monkeypatch):
    """One that keeps equally many in every image would fail at some step, or train on others."""

    def as_many_as_the_first(mask, num_kept, grid, noise):
        count = int(num_kept[0]) if isinstance(num_kept, torch.Tensor) else num_kept
        return sampling.random(mask, count, grid, noise)

    prmim.attach(mae(), sampler=as_many_as_the_first)
    ragged = lambda model: replace(mae_adapter(model), num_masked=None, ragged=True)  # noqa: E731
    mae_adapter = ADAPTERS.get('mmpretrain.models.selfsup.mae.MAE')
    monkeypatch.setitem(ADAPTERS._entries, 'mmpretrain.models.selfsup.mae.MAE', ragged)
    with pytest.raises(ValueError, match=r'asked for \[4, 8\] of \[12, 16\] .*\[4, 4\] kept'):
        prmim.attach(mae(), sampler=as_many_as_the_first)
    for name in prmim.SAMPLERS:
        prmim.attach(mae(), sampler=name)
