# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from prmim_adapters.accounting import activation_bytes, make_batch, parameter_bytes


@pytest.mark.slow
def test_mae_vitb_golden(mae_vitb):
    """86.3 and 107.5 MB per image: mmpretrain 1.2.0, fp32, torch 2.14."""
    batch = make_batch(mae_vitb)
    assert activation_bytes(mae_vitb, batch) / 1e6 == pytest.approx(86.3, abs=0.05)
    assert activation_bytes(mae_vitb, batch, 'explicit') / 1e6 == pytest.approx(107.5, abs=0.05)


class Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def loss(self, inputs, data_samples):
        hidden = self.first(inputs)
        hidden = hidden.view(len(inputs), 2, 8).flatten(1)  # a view: the same storage
        return {'loss': self.second(hidden.relu()).square().sum()}

    def parse_losses(self, losses):
        return losses['loss'], losses


def test_storages_count_once_and_parameters_not_at_all():
    batch = {'inputs': torch.randn(5, 8), 'data_samples': None}
    # inputs for the first weight, relu's result for itself and the second weight, square's input
    assert activation_bytes(Probe(), batch) == 4 * (8 + 16 + 4)


def test_explicit_attention_saves_the_attention_matrices(small_mae):
    model = small_mae()
    batch = make_batch(model, batch_size=4)
    fused, explicit = (activation_bytes(model, batch, kind) for kind in ('fused', 'explicit'))
    matrices = 4 * (2 * 4 * 17**2 + 2 * 2 * 65**2)
    # Beside them: fused attention saves one number per row of them, the log of its sum.
    assert explicit - fused == pytest.approx(matrices, rel=0.05)


def test_unknown_attention_is_refused(small_mae):
    with pytest.raises(ValueError, match="attention='flash': allowed are 'fused', 'explicit'"):
        activation_bytes(small_mae(), {'inputs': torch.zeros(1), 'data_samples': None}, 'flash')


@pytest.mark.parametrize(
    ('optimizer', 'per_parameter'),
    [
        (None, 0),
        ({'type': 'SGD', 'lr': 0.1}, 0),
        ({'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}, 1),
        ({'type': 'AdamW', 'lr': 1e-3}, 2),
    ],
)
def test_optimizer_state(optimizer, per_parameter):
    model = Probe()
    model.first.weight.requires_grad_(False)
    result = parameter_bytes(model, optimizer)
    trained = 16 + 16 * 4 + 4
    steps = 4 * 3 if per_parameter == 2 else 0  # AdamW counts its steps, one number per tensor
    assert result.parameters == 4 * (8 * 16 + trained)
    assert result.optimizer == 4 * per_parameter * trained + steps
    assert result.buffers == 0
