# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing of the heavy network, an option of PRMIM, in every case of mmpretrain."""

import pickle

import pytest
import torch
from mmpretrain.models import BaseSelfSupervisor, SparK

from prmim_adapters.openmmlab.activation_checkpointing import checkpoint_heavy_network
from prmim_adapters.testing.checks import same_step


def saved_bytes(case, model):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case.loss(model)
    return sum(storages.values())


def test_recomputing_saves_memory_and_changes_nothing_else(case):
    plain, saving = case.attached(), case.attached()
    model = case.target(saving)
    if not isinstance(model, BaseSelfSupervisor):
        pytest.skip('an option of mmpretrain configs; Hugging Face and timm have their own')
    if isinstance(model, SparK):
        with pytest.raises(
            ValueError, match='with_cp=True: PRSparKLightDecoder, the heavy network'
        ):
            checkpoint_heavy_network(model)
        return
    checkpoint_heavy_network(model)
    assert list(saving.state_dict()) == list(plain.state_dict())
    assert saved_bytes(case, saving) < saved_bytes(case, plain)
    same_step(case, saving, plain)
    twin = pickle.loads(pickle.dumps(saving))
    assert torch.equal(case.loss(twin), case.loss(plain))
