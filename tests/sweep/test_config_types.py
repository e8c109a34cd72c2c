# SPDX-License-Identifier: Apache-2.0
"""Sweeps of configs whose types are written in other ways than bare names."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import HOOKS, LOOPS, MODELS

from prmim_adapters.adapters import partial_of
from prmim_adapters.openmmlab.models import build_model, is_prmim, load_config
from prmim_adapters.openmmlab.types import resolved
from prmim_adapters.sweep import SpecError
from prmim_adapters.sweep.checking import check_arms, check_configs
from prmim_adapters.sweep.configs import write_base, write_point
from prmim_adapters.sweep.equal_cost import EqualCostEpochLoop
from prmim_adapters.sweep.spec import Evaluation, Framework, Point, Spec, Transfer

PURE = '''
from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.models import (
    MAE, MAEPretrainDecoder, MAEPretrainHead, MAEViT, PixelReconstructionLoss,
)

arch = dict(embed_dims=48, num_layers=1, num_heads=3, feedforward_channels=96)
model = dict(
    type=MAE,
    backbone=dict(type=MAEViT, arch=arch, img_size=64, patch_size=16),
    neck=dict(type=MAEPretrainDecoder, num_patches=16, embed_dim=48, decoder_embed_dim=48,
              decoder_depth=1, decoder_num_heads=3),
    head=dict(type=MAEPretrainHead, patch_size=16,
              loss=dict(type=PixelReconstructionLoss, criterion='L2')))
custom_hooks = [dict(type=EMAHook, momentum=0.01)]
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=2)
'''  # fmt: skip


def spec_of(folder, config='mae.py', **changes):
    fields = dict(
        frameworks={'mae': Framework(config)},
        arms={'near': dict(aggregator='nearest'), 'equal': dict(budget='cost')},
        ratios=(0.25,),
        seeds=(0,),
        evaluation=Evaluation(train={}, test={}, num_classes=10),
        folder=folder,
    )
    return Spec(**{**fields, **changes})


def test_a_pure_python_config_is_inherited_by_its_text(tmp_path):
    (tmp_path / 'mae.py').write_text(PURE)
    spec = spec_of(tmp_path)
    check_configs(spec)
    check_arms(spec)
    base = tmp_path / 'out' / 'mae' / 'base.py'
    write_base(base, spec.frameworks['mae'], spec)
    for arm in spec.arms:
        point = base.parent / arm / 'seed0' / 'config.py'
        write_point(point, base, Point('mae', arm, 0.25, 3), spec)
        config = load_config(point)
        assert is_prmim(config)
        assert partial_of(build_model(config)).throw_ratio == 0.25
        assert config.custom_hooks[1].momentum == 0.01
        assert config.randomness.seed == 3
    assert resolved(config.train_cfg, LOOPS) is EqualCostEpochLoop
    assert config.train_cfg.max_epochs == 2


def test_classes_in_a_config_with_a_base_are_written_by_name(tmp_path):
    (tmp_path / 'first.py').write_text('train_cfg = dict(max_epochs=4)\n')
    (tmp_path / 'mae.py').write_text(
        "_base_ = 'first.py'\n"
        'from mmengine.hooks import EMAHook\n'
        'from mmpretrain.models import MAE\n'
        'model = dict(type=MAE, depth=(1, 2))\n'
        'custom_hooks = [dict(type=EMAHook)]\n'
    )
    spec = spec_of(tmp_path)
    write_base(tmp_path / 'base.py', spec.frameworks['mae'], spec)
    base = Config.fromfile(tmp_path / 'base.py')
    assert resolved(base.custom_hooks[1], HOOKS).__name__ == 'EMAHook'
    assert resolved(base.model, MODELS).__name__ == 'MAE'


class MyCheckpointHook(CheckpointHook):
    pass


@pytest.mark.parametrize('name', ['MyCheckpointHook', 'mmengine.CheckpointHook', 'SavesNothing'])
def test_a_hook_that_saves_is_one_by_its_class(tmp_path, name):
    HOOKS.register_module(name='MyCheckpointHook', module=MyCheckpointHook, force=True)
    (tmp_path / 'mae.py').write_text(
        f'default_hooks = dict(checkpoint=None)\ncustom_hooks = [dict(type={name!r})]\n'
        "model = dict(type='MAE')\n"
    )
    (tmp_path / 'tune.py').write_text(
        "model = dict(backbone=dict(type='ViT'))\nval_cfg = dict()\n"
        "val_evaluator = dict(type='mmpretrain.Accuracy')\n"
    )
    spec = spec_of(tmp_path, transfers={'tune': Transfer('tune.py')}, arms={})
    if name == 'SavesNothing':
        with pytest.raises(SpecError, match='transfers start from the checkpoint'):
            check_configs(spec)
    else:
        check_configs(spec)


@pytest.mark.parametrize('kind', ['PRMIM', 'mmpretrain.PRMIM'])
def test_a_config_of_type_prmim_is_no_framework(tmp_path, kind):
    text = f"model = dict(type={kind!r}, framework=dict(type='MAE'), throw_ratio=0.25)\n"
    (tmp_path / 'mae.py').write_text(text)
    with pytest.raises(SpecError, match=r"frameworks\.mae: 'mae\.py' is of type PRMIM; name the"):
        check_configs(spec_of(tmp_path))
