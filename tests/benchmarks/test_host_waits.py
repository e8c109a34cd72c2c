# SPDX-License-Identifier: Apache-2.0
"""Where a training step would make the host wait for a GPU."""

from __future__ import annotations

import pytest
import torch
from gpu_stages.randomness import SameRandomness
from gpu_stages.waiting import HostWaits
from torch.nn import functional

X = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize(
    ('call', 'what'),
    [
        (lambda: X.sum().item(), '_local_scalar_dense'),
        (lambda: int(X.sum()), '_local_scalar_dense'),
        (lambda: bool((X > 3).any()), '_local_scalar_dense'),
        (lambda: X.nonzero(), 'nonzero'),
        (lambda: X.unique(), '_unique2'),
        (lambda: X[X > 3], 'index.Tensor by a mask'),
        (lambda: X.masked_select(X > 3), 'masked_select'),
        (lambda: torch.equal(X, X), 'equal'),
        (lambda: X.repeat_interleave(torch.tensor([1, 2, 0]), dim=0), 'repeat_interleave.Tensor'),
        (lambda: X.sum(1).tolist(), 'tolist'),
        (lambda: torch.tensor([1, 2], device='cpu'), 'tensor to the device'),
    ],
)
def test_waits_are_found_where_they_are(call, what):
    with HostWaits() as waits:
        call()
    assert [place.split(' (')[1] for place in waits.places] == [f'{what})']
    assert all('test_host_waits.py' in place for place in waits.places)


def test_work_on_the_device_is_none():
    x = X.clone().requires_grad_()
    with HostWaits() as waits:
        index = torch.rand(3, 4).argsort(1)
        y = x.gather(1, index) + functional.embedding(index, x.T).sum(-1)
        y = (
            y.scatter(1, index, torch.zeros_like(y)).where(y > 0, 1.0)
            + x[torch.arange(3)[:, None], index]
        )
        y.square().sum().backward()
    assert not waits.places


def test_the_hosts_own_tensors_are_not_waited_for():
    with HostWaits('meta') as waits:
        X.nonzero(), X[X > 3], X.sum().item()
        X.to('meta').repeat_interleave(
            torch.ones(3, dtype=torch.long, device='meta'), 0, output_size=3
        )
    assert [place.split(' (')[1] for place in waits.places] == ['repeat_interleave.Tensor)']


STILL = {
    'mae_prmim_vitb': [],
    'convnextv2_prmim_tiny': [],
    'simmim_prmim_vitb': ['count_masked'],
    'simmim_prmim_vitb_last_block': ['count_masked'],
    'simmim_prmim_swinb': ['count_masked', 'unit_mask'],
    'maskfeat_prmim_vitb': ['count_masked'],
    'beit_prmim_vitb': ['count_masked'],
    'beitv2_prmim_vitb': ['count_masked'],
    'spark_prmim_convnextv2_tiny': ['active_units'],
    'ibot_prmim_vits': ['_counts', 'partition_ragged', 'partition_ragged'],
    'ibot_prmim_vits_random': ['_counts', 'partition_ragged', 'partition_ragged'],
    'milan_prmim_vitb': [],
    'cae_prmim_vitb': ['count_masked'],
    'itpn_prmim_pixel_hivitb': ['count_masked'],
    'itpn_prmim_clip_hivitb': ['count_masked'],
}
"""Functions of this package in which a step still waits, once: the masks come from the data."""

UPSTREAM = (
    'heads/',
    'selfsup/cae',
    'utils/vector_quantizer',
    'utils/sparse_modules',
    'model/averaged_model',
)


HOSTS_OWN = ('ragged_places', '_image_of_rows')
"""Functions that make indices of sizes which the host knows: a CPU cannot tell them apart."""


def test_no_adapter_waits_elsewhere(stage_result):
    for name, entry in stage_result('agreement').items():
        waits = {p: n for p, n in entry['waits'].items() if not p.startswith(UPSTREAM)}
        waits = {p: n for p, n in waits.items() if p.split()[1] not in HOSTS_OWN}
        own = sorted(p.split()[1] for p in waits if 'agreement.py' not in p)  # its own: backward
        assert own == sorted(STILL[name]), (name, entry['waits'])
        assert all(times == 1 for place, times in waits.items() if 'agreement.py' not in place)


def test_randomness_is_the_same_everywhere():
    def draw():
        with SameRandomness(3):
            values = [torch.rand(2, 3), torch.randint(9, (4,)), torch.rand_like(X, dtype=None)]
            values.append(torch.multinomial(torch.ones(2, 9), 9))
            return [*values, torch.empty(2).bernoulli_(0.5), torch.randn(2, dtype=torch.float64)]

    torch.manual_seed(1)
    first = draw()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    for a, b in zip(first, draw(), strict=True):
        assert torch.equal(a, b)
    assert first[-1].dtype == torch.float64
    torch.set_rng_state(state)
    with SameRandomness():
        assert torch.rand(2, device='meta').device.type == 'meta'


def test_weighted_draws_are_those_of_torch():
    weights = torch.tensor([1.0, 3.0, 6.0]).expand(4000, -1)
    with SameRandomness():
        drawn = torch.multinomial(weights, 2, replacement=False)
    torch.manual_seed(0)
    for ours, theirs in zip(
        drawn.T, torch.multinomial(weights, 2, replacement=False).T, strict=True
    ):
        shares = [x.bincount(minlength=3) / 4000 for x in (ours, theirs)]
        torch.testing.assert_close(*shares, rtol=0, atol=0.03)
    assert (drawn[:, 0] != drawn[:, 1]).all()
