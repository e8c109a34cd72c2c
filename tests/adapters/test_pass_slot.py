# SPDX-License-Identifier: Apache-2.0
"""The one slot in which a pass keeps its partition for the loss."""

import copy
import pickle

import pytest
import torch
from torch import nn
from users_mae import loss_of, mae

import prmim_adapters as prmim
from prmim_adapters.adapters import partial_of


def test_two_views_before_one_loss_are_refused_and_one_after_the_other_works():
    model = prmim.attach(mae())
    images = torch.randn(2, 3, 32, 32)

    def decode():
        latent, mask, ids_restore = model.backbone(images, mask=True)
        return model.neck(latent, ids_restore), mask

    pred, mask = decode()
    with pytest.raises(RuntimeError, match='two masks were partitioned before one loss'):
        decode()
    pred, mask = decode()
    first = model.head.loss(pred, images, mask)
    pred, mask = decode()
    assert model.head.loss(pred, images, mask) != first
    with pytest.raises(RuntimeError, match='no partition of this pass: the loss ran twice'):
        model.head.loss(pred, images, mask)
    pred, mask = decode()
    with pytest.raises(RuntimeError, match='a loss of 1 images after the partition of 2'):
        model.head.loss(pred[:1], images[:1], mask[:1])


def test_an_interrupted_step_leaves_nothing_behind():
    model = prmim.attach(mae())
    hook = model.head.register_forward_pre_hook(lambda *_: None)
    original, model.head.loss_module = model.head.loss_module, nn.Identity()
    with pytest.raises(TypeError):
        loss_of(model)
    model.head.loss_module = original
    hook.remove()
    expected = loss_of(prmim.attach(mae()))
    model.load_state_dict(prmim.attach(mae()).state_dict())
    assert loss_of(model).isfinite() and expected.isfinite()


def test_replicas_of_data_parallel_are_refused():
    model = prmim.attach(mae())
    neck = copy.copy(model.neck)  # a replica: the same parameters, submodules copied likewise
    neck._modules = {**neck._modules, 'partial': copy.copy(model.neck.partial)}
    images = torch.randn(2, 3, 32, 32)
    latent, mask, ids_restore = model.backbone(images, mask=True)
    pred = neck(latent, ids_restore)
    with pytest.raises(RuntimeError, match=r'replica of nn\.DataParallel'):
        model.head.loss(pred, images, mask)


def test_copies_in_the_middle_of_a_step_begin_anew():
    model = prmim.attach(mae())
    latent, _, ids_restore = model.backbone(torch.randn(2, 3, 32, 32), mask=True)
    model.neck(latent, ids_restore)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert partial_of(twin)._pass is None
    assert partial_of(model)._pass is not None
