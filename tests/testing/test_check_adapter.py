# SPDX-License-Identifier: Apache-2.0
"""``check_adapter`` out of tree: the documentation's own framework passes, faulty ones do not."""

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from prmim_adapters.core import PartialReconstruction, TokenPartition
from prmim_adapters.testing import adapter_checks, check_adapter

EXAMPLE = Path(__file__).parents[2] / 'docs' / 'examples' / 'own_framework'

reconstruct, loss_mask = PartialReconstruction.reconstruct, PartialReconstruction.loss_mask


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from my_mim import MyMIM

    return partial(
        check_adapter,
        MyMIM,
        lambda: dict(inputs=torch.randn(3, 3, 16, 16), data_samples=None),
        heavy=lambda model: model.backbone.blocks,
        ratio=0.25,
        invalid_ratio=0.625,
    )


def test_own_framework_passes(check):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        check()
    left_out = [str(w.message) for w in caught if 'was not checked' in str(w.message)]
    assert left_out == [
        'activation_checkpointing was not checked: the framework has no activation checkpointing'
    ]


def test_the_documented_mae_passes(monkeypatch):
    """Its decoder gets visible tokens in shuffled order, on a grid that is no square."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from my_mae import MyMAE

    with pytest.warns(UserWarning, match='no activation checkpointing'):
        check_adapter(
            MyMAE,
            lambda: (torch.randn(3, 3, 8, 12),),
            heavy=lambda model: model.decoder.blocks,
            ratio=0.5,
            invalid_ratio=0.75,
        )


FAULTS = {
    'queries without positions': dict(
        reconstruct=lambda self, p, f, queries: reconstruct(
            self, p, f, queries[:1].expand_as(queries)
        )
    ),
    'queries of other values': dict(
        reconstruct=lambda self, p, f, queries: reconstruct(self, p, f, queries.roll(1, 1))
    ),
    'features in another order': dict(
        reconstruct=lambda self, p, f, queries: reconstruct(self, p, f.flip(1), queries)
    ),
    'visible features in another order': dict(
        reconstruct=lambda self, p, f, queries: reconstruct(
            self, p, torch.cat((f[:, :6].flip(1), f[:, 6:]), 1), queries
        )
    ),
    'thrown features detached': dict(
        reconstruct=lambda self, p, f, queries: reconstruct(self, p, f.detach(), queries)
    ),
    'weights forgotten': dict(loss_mask=lambda self, mask, *_: mask),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_are_found(check, monkeypatch, fault):
    for name, method in FAULTS[fault].items():
        monkeypatch.setattr(PartialReconstruction, name, method)
    with pytest.raises(AssertionError):
        check()


def test_kept_and_thrown_swapped(check, monkeypatch):
    swapped = property(lambda self: torch.cat((self.thrown, self.kept), dim=1))
    monkeypatch.setattr(TokenPartition, 'masked', swapped)
    with pytest.raises(AssertionError):
        check()


def test_one_test_for_each_check(check):
    checks = adapter_checks(*check.args, **check.keywords)
    names = [str(one) for one in checks]
    assert len(set(names)) == len(names) and 'loss_is_exact_at_any_ratio' in names
    checks[names.index('partition_covers_the_grid')]()
