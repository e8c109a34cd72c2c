# SPDX-License-Identifier: Apache-2.0
"""Options of ``attach``: a finite loss and gradients, or a documented error that names the option."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import small_models
import torch
from hypothesis import strategies as st
from mmpretrain.registry import MODELS
from torch import nn

import prmim_adapters as prmim
import prmim_adapters.openmmlab

NUMBERS = st.one_of(
    st.floats(0, 1),
    st.sampled_from([0, 0.5, 0.7, 0.75, 1, -1, 2, 1e-9, 1e39, math.inf, -math.inf, math.nan]),
    st.sampled_from([True, None, '0.5', [0.5], 1j]),
)
WHOLE = st.sampled_from([1, 2, 3, 4, 0, -1, 2.0, True, None, 'present', 10**9])
NAMES = st.sampled_from(
    [
        'farthest',
        'random',
        'grid',
        'cross_attention',
        'cross_blocks',
        'last_blocks',
        'nearest',
        'distance',
        'convolution',
        'x',
        '',
    ]
)
OPTION_NAMES = (
    'inner',
    'heads',
    'depth',
    'neighbours',
    'radius',
    'kernel',
    'sources',
    'seeds',
    'other',
)
SPECS = st.one_of(
    NAMES,
    st.builds(
        lambda name, options: dict(options, type=name),
        NAMES,
        st.dictionaries(st.sampled_from(OPTION_NAMES), WHOLE, max_size=2),
    ),
    st.sampled_from([None, 3, {}, {'type': 3}, {'inner': 4}]),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        throw_ratio=NUMBERS,
        sampler=SPECS,
        aggregator=SPECS | st.lists(SPECS, max_size=3),
        thrown_weight=NUMBERS,
        max_masked_share=NUMBERS,
        stop_gradient=st.booleans(),
    ),
)


def mae() -> nn.Module:
    return MODELS.build(small_models.mae(16, 4, width=8, heads=1, type='mmpretrain.MAE'))


def named(error: Exception, options: dict[str, Any]) -> bool:
    """Whether an error says which option is wrong, by its name or by an unknown name's."""
    names = {*options, *OPTION_NAMES}
    return any(name in str(error) for name in names)


def test_attach(fuzz: Callable[..., None]) -> None:
    torch.manual_seed(0)
    model, images = mae(), torch.randn(2, 3, 16, 16)
    classes = [type(module) for module in model.modules()]

    def check(options: dict[str, Any]) -> None:
        twin = copy.deepcopy(model)
        try:
            prmim.attach(twin, **options)
        except (KeyError, TypeError, ValueError) as error:
            if not named(error, options):
                raise
            assert [type(module) for module in twin.modules()] == classes  # nothing half done
            return
        loss = twin.loss(images, None)['loss']
        loss.backward()
        gradients = [p.grad for p in twin.parameters() if p.requires_grad and p.grad is not None]
        assert loss.isfinite()
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert [type(module) for module in prmim.detach(twin).modules()] == classes

    fuzz(check, OPTIONS, few=80, many=2500)
