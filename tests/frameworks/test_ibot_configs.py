# SPDX-License-Identifier: Apache-2.0
"""The iBOT configs: the original's recipe, read back from what the Runner would build."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS
from mmpretrain.utils import register_all_modules
from torch import nn

register_all_modules()

CONFIGS = Path(__file__).parents[2] / 'configs' / 'mmpretrain'
# arguments of the original: README for ViT-S, those published with the checkpoint for ViT-B
RECIPES = dict(
    vits=dict(
        width=384, images=64, lr=5e-4, min_lr=1e-6, epochs=800, scale=0.25, warm_up=30, frozen=1,
        clip=3.0, learnt_length=True,
    ),
    vitb=dict(
        width=768, images=32, lr=7.5e-4, min_lr=2e-6, epochs=400, scale=0.32, warm_up=50, frozen=3,
        clip=0.3, learnt_length=False,
    ),
)  # fmt: skip


def load(name):
    config = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(config.default_scope)
    return config


class Parameters(nn.Module):
    """Parameters named and shaped like the model's; 'backbone.ln1' is a norm."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.backbone.ln1 = nn.LayerNorm(4)
        self.neck = nn.Linear(4, 4)


def schedules(config, iterations=2):
    """Learning rate and weight decay of every epoch's first iteration, by parameter."""
    wrapper = dict(config.optim_wrapper)
    if wrapper.pop('loss_scale', None):  # the mixed-precision wrapper refuses a CPU
        wrapper['type'] = 'OptimWrapper'
    model = Parameters()
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {names[id(g['params'][0])]: g for g in optimizer.param_groups}
    options = dict(optimizer=optimizer, epoch_length=iterations)
    built = [
        PARAM_SCHEDULERS.build(dict(cfg), default_args=options) for cfg in config.param_scheduler
    ]
    rates, decays = [], []
    for step in range(config.train_cfg.max_epochs * iterations):
        if step % iterations == 0:
            rates.append(groups['neck.weight']['lr'])
            decays.append({name: group['weight_decay'] for name, group in groups.items()})
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    return np.array(rates), decays


@pytest.mark.parametrize('arch', RECIPES)
def test_optimisation_is_the_original_s(arch):
    config, recipe = load(f'ibot_{arch}'), RECIPES[arch]
    rates, decays = schedules(config)
    peak = recipe['lr'] * config.auto_scale_lr.base_batch_size / 256
    epochs = recipe['epochs']
    half = (epochs - 10) // 2

    assert rates[0] < 1e-4 * peak
    assert rates[10] == pytest.approx(peak, rel=0.02)
    assert rates[5] == pytest.approx(peak / 2, rel=0.06)
    assert rates[10 + half] == pytest.approx((peak + recipe['min_lr']) / 2, rel=0.01)
    assert rates[-1] < 5e-5 * peak + recipe['min_lr']
    for epoch in (0, epochs // 4, epochs // 2, epochs - 1):
        cosine = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * epoch / epochs))
        for name in ('neck.weight', 'backbone.pos_embed'):
            assert decays[epoch][name] == pytest.approx(cosine, rel=1e-3)
        for name in ('neck.bias', 'backbone.ln1.weight', 'backbone.ln1.bias'):
            assert decays[epoch][name] == 0

    hooks = [HOOKS.build(hook) for hook in config.custom_hooks]
    assert hooks[0].warmup_epochs == recipe['warm_up']
    assert (hooks[1].epochs, hooks[2].max_norm) == (recipe['frozen'], recipe['clip'])


@pytest.mark.parametrize('arch', RECIPES)
def test_model_and_crops_are_the_original_s(arch):
    config, recipe = load(f'ibot_{arch}'), RECIPES[arch]
    assert config.train_dataloader.batch_size == recipe['images']
    pipeline = [TRANSFORMS.build(step) for step in config.train_dataloader.dataset.pipeline[1:]]
    crops = [views[0] for views in config.train_dataloader.dataset.pipeline[1].transforms]
    assert [crop.crop_ratio_range for crop in crops] == [
        (recipe['scale'], 1.0),
        (recipe['scale'], 1.0),
        (0.05, recipe['scale']),
    ]
    np.random.seed(0)
    results = dict(img=np.random.randint(0, 256, (260, 300, 3), dtype=np.uint8))
    for step in pipeline:
        results = step(results)
    batch = default_collate([results])
    shapes = [tuple(crop.shape[2:]) for crop in batch['inputs']]
    assert shapes == [(224, 224)] * 2 + [(96, 96)] * 10
    assert batch['data_samples'][0].mask.shape == (2, 14, 14)

    with torch.device('meta'):
        model = MODELS.build(config.model)
    assert model.backbone.embed_dims == recipe['width']
    assert len(model.backbone.layers) == 12
    assert model.backbone.layers[-1].attn.out_drop.drop_prob == pytest.approx(0.1)
    assert model.neck.last_layer.weight_g.requires_grad == recipe['learnt_length']
    assert model.teacher.momentum == 0.004
    assert model.teacher.end_momentum == 0


@pytest.mark.parametrize('name', ['ibot_prmim_vits', 'ibot_prmim_vitb', 'ibot_prmim_vits_random'])
def test_prmim_configs_add_the_method_and_nothing_else(name):
    ours, framework = load(name), load(name.replace('prmim_', ''))
    assert ours.model.framework == framework.model
    assert ours.model.throw_ratio == 0.5
    for key in framework:
        if key != 'model':
            assert ours[key] == framework[key], key
    assert len((CONFIGS / f'{name}.py').read_text().splitlines()) <= 30


def test_random_masks_have_one_size():
    config = load('ibot_vits_random')
    mask = TRANSFORMS.build(config.train_dataloader.dataset.pipeline[1].transforms[0][-1])
    assert {int(mask.transform({})['mask'].sum()) for _ in range(5)} == {137}
