# SPDX-License-Identifier: Apache-2.0
"""Weights that ``init_cfg`` names survive a module's own initialization, in all ways to write it."""

import pytest
import torch
from mmengine.model import PretrainedInit

from prmim_adapters.frameworks.cross_mae import CrossAttentionDecoder
from prmim_adapters.frameworks.fcmae import FCMAEPretrainDecoder
from prmim_adapters.frameworks.ibot import IBOTViT
from prmim_adapters.frameworks.simmim_vit import SimMIMViT

ARCH = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)


class MyInit(PretrainedInit):
    """A user's own way to read a checkpoint."""


MODULES = {
    'SimMIMViT': lambda init: SimMIMViT(arch=ARCH, img_size=16, patch_size=8, init_cfg=init),
    'IBOTViT': lambda init: IBOTViT(arch=ARCH, img_size=16, patch_size=8, init_cfg=init),
    'FCMAE': lambda init: FCMAEPretrainDecoder(8, 8, 1, 4, init_cfg=init),
    'CrossMAE': lambda init: CrossAttentionDecoder(
        num_patches=4, patch_size=8, embed_dim=16, decoder_embed_dim=8, decoder_depth=1,
        decoder_num_heads=2, init_cfg=init,
    ),
}  # fmt: skip
NORMAL = dict(type='TruncNormal', layer='Linear', std=0.02)
WAYS = {
    'name': lambda c: dict(type='Pretrained', checkpoint=c),
    'scoped': lambda c: dict(type='mmengine.Pretrained', checkpoint=c),
    'class': lambda c: dict(type=PretrainedInit, checkpoint=c),
    'subclass': lambda c: dict(type=MyInit, checkpoint=c),
    'qualified': lambda c: dict(
        type='mmengine.model.weight_init.PretrainedInit', checkpoint=c, map_location='cpu'
    ),
    'list': lambda c: [dict(type='Pretrained', checkpoint=c), NORMAL],
    'list of the class': lambda c: [NORMAL, dict(type=PretrainedInit, checkpoint=c)],
}


@pytest.mark.parametrize('name', MODULES)
@pytest.mark.parametrize('way', WAYS)
def test_weights_are_those_of_the_file(tmp_path, name, way):
    generator = torch.Generator().manual_seed(0)
    saved = {
        key: torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value.clone()
        for key, value in MODULES[name](None).state_dict().items()
    }
    torch.save(saved, tmp_path / 'a.pth')
    module = MODULES[name](WAYS[way](str(tmp_path / 'a.pth')))
    given = module.init_cfg
    module.init_weights()
    assert module.init_cfg is given
    for key, value in module.state_dict().items():
        assert torch.equal(value, saved[key]), key


@pytest.mark.parametrize('name', MODULES)
def test_another_initializer_loads_nothing(name):
    module = MODULES[name]([NORMAL])
    module.init_weights()
    assert module.mask_token.abs().max() < 0.2
