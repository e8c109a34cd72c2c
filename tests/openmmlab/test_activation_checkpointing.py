# SPDX-License-Identifier: Apache-2.0
"""``PRMIM(with_cp=True)``; tests/contract/test_with_cp.py has every framework."""

import copy

import pytest
import torch
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.registry import MODELS
from test_models import FRAMEWORK

from prmim_adapters import detach
from prmim_adapters.accounting import activation_bytes, make_batch
from prmim_adapters.openmmlab.activation_checkpointing import RecomputedEncoderLayer


class OwnLayer(TransformerEncoderLayer):
    """A user's."""


class ClashingLayer(TransformerEncoderLayer):
    def forward(self, x):
        return x


def build(**settings):
    torch.manual_seed(0)
    return MODELS.build(dict(type='PRMIM', framework=copy.deepcopy(FRAMEWORK), **settings))


def test_the_blocks_of_the_heavy_network_are_computed_again_and_no_others():
    plain, saving = build(), build(with_cp=True)
    assert isinstance(saving.neck.decoder_blocks[0], RecomputedEncoderLayer)
    assert type(saving.backbone.layers[0]) is TransformerEncoderLayer
    batch = make_batch(plain)
    assert activation_bytes(saving, batch) < activation_bytes(plain, batch)
    assert type(detach(saving).neck.decoder_blocks[0]) is RecomputedEncoderLayer


def test_it_works_at_ratio_zero_too():
    plain, saving = build(throw_ratio=0), build(throw_ratio=0, with_cp=True)
    batch = make_batch(plain)
    assert activation_bytes(saving, batch) < activation_bytes(plain, batch)


def test_a_layer_of_the_users_own_is_computed_again_unless_its_forward_is(monkeypatch):
    from prmim_adapters.openmmlab import prmim

    attach = prmim.attach

    def with_layer(layer):
        def attached(model, **options):
            model.neck.decoder_blocks[0].__class__ = layer
            return attach(model, **options)

        monkeypatch.setattr(prmim, 'attach', attached)

    with_layer(OwnLayer)
    layer = build(with_cp=True).neck.decoder_blocks[0]
    assert isinstance(layer, RecomputedEncoderLayer) and isinstance(layer, OwnLayer)
    with_layer(ClashingLayer)
    with pytest.raises(TypeError, match='ClashingLayer overrides forward'):
        build(with_cp=True)


def test_the_option_is_true_or_false():
    with pytest.raises(TypeError, match=r"with_cp='yes' \(str\): expected True or False"):
        build(with_cp='yes')
