# SPDX-License-Identifier: Apache-2.0
"""A batch of the wrong kind: what the pipeline gives, what the model takes, what to set."""

from __future__ import annotations

import pytest
import torch
from cases import beit, ibot, itpn, mae, simmim_vit, spark
from mmpretrain.structures import DataSample

import prmim_adapters as prmim
from prmim_adapters.openmmlab.misfit import misfit_named

BUILD = {
    'MAE': mae.build(),
    'EVA': mae.build_eva,
    'SimMIM': simmim_vit.build,
    'SparK': lambda: spark.build('SparseConvNeXt'),
    'BEiT': beit.build,
    'iTPN': itpn.build_clip,
    'IBOT': ibot.build,
}


def given(kind, views):
    if views is None:
        return torch.randn(3, 3, 128, 128)
    size = (32, 48) if kind == 'IBOT' else (64, 64)
    return [torch.randn(3, 3, *size) for _ in range(views)]


@pytest.mark.parametrize('ratio', [0, 0.25])
@pytest.mark.parametrize(
    ('kind', 'views', 'message'),
    [
        ('MAE', 1, 'gives a list of 1 views of each image, and MAE takes the image itself: remove'),
        ('EVA', 2, 'a list of 2 views .* EVA takes the image itself: remove MultiView'),
        ('SimMIM', 1, 'SimMIM takes the image itself: remove MultiView'),
        ('SparK', 1, 'SparK takes the image itself: remove MultiView'),
        (
            'BEiT',
            None,
            'gives one view of each image, and BEiT takes more: use Random.*TwoPic',
        ),
        ('BEiT', 1, 'gives a list of 1 views of each image, and BEiT takes more'),
        ('iTPN', 1, 'iTPN takes more'),
        ('IBOT', None, 'IBOT takes more: use .* MaskedMultiView for iBOT'),
    ],
)
def test_views(kind, views, message, ratio):
    model, inputs = BUILD[kind](), given(kind, views)
    if ratio:
        prmim.attach(model, ratio)
    masks = {'SimMIM': (4, 16), 'IBOT': (2, 4, 6)}.get(kind, (8, 8))
    mask = torch.arange(torch.Size(masks).numel()).view(masks) % 2
    samples = [DataSample(mask=mask.bool()) for _ in range(3)]
    with (
        pytest.raises(ValueError, match='the training pipeline .*' + message),
        misfit_named(model, inputs),
    ):
        model.loss(inputs, samples)


@pytest.mark.parametrize(('kind', 'views'), [('SimMIM', None), ('BEiT', 2), ('IBOT', 2)])
def test_masks(kind, views):
    model, inputs = prmim.attach(BUILD[kind](), 0.25), given(kind, views)
    with (
        pytest.raises(ValueError, match=f'makes no mask, and {kind} takes .*MaskGenerator'),
        misfit_named(model, inputs),
    ):
        model.loss(inputs, [DataSample() for _ in range(3)])


def test_other_errors_stay_as_they_are():
    model, inputs = mae.build()(), torch.randn(3, 3, 32, 32)
    with pytest.raises(AttributeError, match=r'no attribute .mask'), misfit_named(model, inputs):
        model.mask  # noqa: B018
    with pytest.raises(TypeError, match='a list'), misfit_named(model, inputs):
        raise TypeError('a list')
