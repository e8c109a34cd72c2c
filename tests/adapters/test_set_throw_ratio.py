# SPDX-License-Identifier: Apache-2.0
"""The ratio changed after attach."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from mmpretrain.models import MAE, MAEPretrainDecoder, MAEPretrainHead, MAEViT
from users_mae import loss_of, mae

import prmim_adapters as prmim
from prmim_adapters.adapters import ADAPTERS, partial_of


def test_set_throw_ratio_is_attach_at_that_ratio():
    model, expected = prmim.attach(mae(), 0.5), prmim.attach(mae(), 0.25)
    expected.load_state_dict(model.state_dict())
    assert prmim.set_throw_ratio(model, 0.25) is model
    assert torch.equal(loss_of(model), loss_of(expected))


def test_ratio_zero_is_the_framework_and_every_parameter_stays_in_the_graph():
    framework, model = mae(), prmim.attach(mae(), 0.5)
    names = [name for name, _ in model.named_parameters()]
    prmim.set_throw_ratio(model, 0)
    ours = type(model.neck), type(model.head), type(model)
    assert ours == (MAEPretrainDecoder, MAEPretrainHead, MAE)
    assert isinstance(model.backbone, MAEViT)
    loss = loss_of(model)
    assert torch.equal(loss, loss_of(framework))
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert not any(p.grad.any() for name, p in trained.items() if '.partial.' in name)
    prmim.set_throw_ratio(model, 0.5)
    assert [name for name, _ in model.named_parameters()] == names
    assert not torch.equal(loss_of(model), loss_of(framework))
    prmim.detach(model)
    assert torch.equal(loss_of(model), loss_of(framework))
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_copies_switch_by_themselves():
    model = prmim.attach(mae(), 0.5)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        prmim.set_throw_ratio(twin, 0)
        assert type(twin.neck) is MAEPretrainDecoder
        assert type(model.neck) is not MAEPretrainDecoder
        loss_of(twin).backward()
        assert all(p.grad is not None for p in partial_of(twin).parameters())


def test_the_ratio_is_checked():
    model = prmim.attach(mae(), 0.5)
    for ratio, error in ((0.75, ValueError), (-1, ValueError), ('0.3', TypeError)):
        with pytest.raises(error, match='throw_ratio'):
            prmim.set_throw_ratio(model, ratio)
    assert partial_of(model).throw_ratio == 0.5
    model.backbone.mask_ratio = 0.5  # changed while training
    with pytest.raises(ValueError, match=r'mask ratio 0.5\)'):
        prmim.set_throw_ratio(model, 0.6)
    with pytest.raises(ValueError, match=r'attached at throw_ratio=0 .*largest ratio'):
        prmim.set_throw_ratio(prmim.attach(mae(), 0), 0.25)


@pytest.mark.parametrize('begin', [0, 0.5])
def test_plain_partial_reconstruction_has_no_light_stage_to_lack(begin):
    options = dict(sampler='random', aggregator=None)
    model, expected = prmim.attach(mae(), begin, **options), prmim.attach(mae(), 0.25, **options)
    prmim.set_throw_ratio(model, 0)
    assert torch.equal(loss_of(model), loss_of(mae()))
    prmim.set_throw_ratio(model, 0.25)
    assert torch.equal(loss_of(model), loss_of(expected))


def test_plain_partial_reconstruction_from_zero_wants_a_loss_of_the_model(monkeypatch):
    adapter = ADAPTERS.get('mmpretrain.models.selfsup.mae.MAE')
    outside = lambda model: replace(adapter(model), owns_loss=False)  # noqa: E731
    monkeypatch.setitem(ADAPTERS._entries, 'mmpretrain.models.selfsup.mae.MAE', outside)
    model = prmim.attach(mae(), 0, aggregator=None)
    with pytest.raises(ValueError, match='aggregator=None and thrown_weight are not supported'):
        prmim.set_throw_ratio(model, 0.25)
    assert partial_of(model).throw_ratio == 0


def test_a_class_changed_by_others_is_not_overwritten():
    model = prmim.attach(mae(), 0.5)

    class Sharded(type(model.neck)):
        pass

    model.neck.__class__ = Sharded
    prmim.set_throw_ratio(model, 0.25)
    assert torch.isfinite(loss_of(model))
    with pytest.raises(ValueError, match=r'neck has become a .*Sharded since attach'):
        prmim.set_throw_ratio(model, 0)
    assert partial_of(model).throw_ratio == 0.25
