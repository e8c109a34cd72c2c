# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.runner import save_checkpoint

from prmim_adapters.sweep import SpecError, load_spec
from prmim_adapters.sweep.checking import check_arms, check_configs
from prmim_adapters.sweep.configs import (
    merge,
    write_base,
    write_point,
    write_transfer,
)
from prmim_adapters.sweep.spec import Evaluation, Framework, Point, Spec, Transfer

PAIRING = 'mmpretrain.PairedDrawsHook'
WATCHING = ['mmpretrain.FiniteLossHook', 'mmpretrain.EndWithLauncherHook']
EVALUATION = 'mmpretrain.FrozenFeatureHook'
IMAGENET_MAE = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'


def spec_of(framework, folder, **changes):
    fields = dict(
        frameworks={'mae': framework},
        arms={'near': dict(sampler='random', aggregator=dict(type='nearest', neighbours=3))},
        ratios=(0.5,),
        seeds=(0,),
        evaluation=Evaluation(train={}, test={}, num_classes=10),
        folder=folder,
    )
    return Spec(**{**fields, **changes})


@pytest.fixture
def own_config(tmp_path, monkeypatch):
    (tmp_path / 'users_mim.py').write_text('')
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'mae.py').write_text(
        "custom_imports = dict(imports=['users_mim'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='EMAHook')]\n"
        "model = dict(type='MAE', neck=dict(depth=4, width=8))\n"
        'randomness = dict(diff_rank_seed=True)\n'
    )
    return Framework('mae.py', options=dict(model=dict(neck=dict(depth=2))))


def test_base_keeps_the_frameworks_own_hooks_and_imports(own_config, tmp_path):
    spec = spec_of(own_config, tmp_path, options=dict(train_cfg=dict(max_epochs=3)))
    write_base(tmp_path / 'out' / 'base.py', own_config, spec)
    base = Config.fromfile(tmp_path / 'out' / 'base.py', import_custom_modules=False)
    assert base.custom_imports.imports == [
        'users_mim',
        'prmim_adapters.openmmlab',
        'prmim_adapters.sweep.equal_cost',
        'prmim_adapters.sweep.evaluation',
        'prmim_adapters.sweep.pairing',
    ]
    hooks = [hook.type for hook in base.custom_hooks]
    assert hooks == [PAIRING, 'EMAHook', *WATCHING, EVALUATION]
    assert base.model.neck == dict(depth=2, width=8)
    assert base.train_cfg.max_epochs == 3
    assert base.randomness == dict(diff_rank_seed=True)
    assert base.default_hooks.checkpoint == dict(
        type='mmpretrain.ResumableCheckpointHook', interval=1
    )


@pytest.mark.parametrize(
    ('decided', 'differ'), [(dict(seed=1), True), (dict(diff_rank_seed=False), False)]
)
def test_seeds_differ_by_rank_unless_the_spec_decides(own_config, tmp_path, decided, differ):
    (tmp_path / 'tune.py').write_text("model = dict(backbone=dict(type='ViT'))\n")
    tune = Transfer('tune.py', options=dict(randomness=decided))
    spec = spec_of(own_config, tmp_path, options=dict(randomness=decided))
    write_base(tmp_path / 'base.py', own_config, spec)
    write_transfer(tmp_path / 't.py', tune, tmp_path / 'a.pth', Point('mae', 'near', 0.5, 7), spec)
    for name in ('base', 't'):
        config = Config.fromfile(tmp_path / f'{name}.py', import_custom_modules=False)
        assert config.randomness.diff_rank_seed is differ


@pytest.mark.parametrize(
    ('own', 'expected'),
    [
        (
            dict(type='CheckpointHook', interval=5, save_best='auto'),
            'mmpretrain.ResumableCheckpointHook',
        ),
        (dict(type='MyCheckpointHook', interval=5), 'MyCheckpointHook'),
        (None, None),
    ],
)
def test_checkpoints_keep_their_settings(own_config, tmp_path, own, expected):
    spec = spec_of(own_config, tmp_path, options=dict(default_hooks=dict(checkpoint=own)))
    write_base(tmp_path / 'base.py', own_config, spec)
    hook = Config.fromfile(
        tmp_path / 'base.py', import_custom_modules=False
    ).default_hooks.checkpoint
    assert hook == (own and {**own, 'type': expected})


def test_point_wraps_the_framework_with_the_arms_options(own_config, tmp_path):
    spec = spec_of(own_config, tmp_path)
    base, path = tmp_path / 'out' / 'base.py', tmp_path / 'out' / 'point' / 'config.py'
    write_base(base, own_config, spec)
    write_point(path, base, Point('mae', 'near', 0.5, 7), spec)
    config = Config.fromfile(path, import_custom_modules=False)
    assert config.model == dict(
        type='mmpretrain.PRMIM',
        framework=dict(type='MAE', neck=dict(depth=2, width=8)),
        sampler='random',
        aggregator=dict(type='nearest', neighbours=3),
        throw_ratio=0.5,
    )
    assert config.randomness == dict(seed=7, diff_rank_seed=True)
    write_point(path, base, Point('mae', 'framework', 0.0, 7), spec)
    assert Config.fromfile(path, import_custom_modules=False).model.type == 'MAE'


def test_a_base_from_mmpretrain_gets_a_collate_function_without_scope(tmp_path):
    framework = Framework(IMAGENET_MAE)
    write_base(tmp_path / 'base.py', framework, spec_of(framework, tmp_path))
    base = Config.fromfile(tmp_path / 'base.py', import_custom_modules=False)
    assert base.train_dataloader.collate_fn == dict(type='default_collate')
    assert base.train_dataloader.batch_size == 512


def test_transfer_starts_from_the_encoder(tmp_path):
    (tmp_path / 'linear.py').write_text("model = dict(backbone=dict(type='ViT'))\n")
    transfer = Transfer('linear.py', options=dict(train_cfg=dict(max_epochs=1)))
    spec = spec_of(Framework('mae.py'), tmp_path)
    checkpoint = tmp_path / 'epoch_3.pth'
    point = Point('mae', 'near', 0.5, 7)
    write_transfer(tmp_path / 'out.py', transfer, checkpoint, point, spec)
    config = Config.fromfile(tmp_path / 'out.py', import_custom_modules=False)
    expected = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
    assert config.model.backbone == dict(type='ViT', init_cfg=expected)
    assert config.train_cfg.max_epochs == 1


BACKBONE = "type='VisionTransformer', arch=ARCH, img_size=16, patch_size=8, out_type='avg_featmap'"
TINY = 'dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8)'


@pytest.mark.parametrize(
    'init_cfg',
    [
        None,
        "dict(type='Constant', val=7.0, layer='Linear')",
        "[dict(type='Constant', val=7.0, layer='Linear')]",
    ],
)
def test_a_config_without_the_import_loads_a_checkpoint_of_mmengine(init_cfg, tmp_path):
    backbone = BACKBONE.replace('ARCH', TINY) + (f', init_cfg={init_cfg}' if init_cfg else '')
    (tmp_path / 'linear.py').write_text(
        "default_scope = 'mmpretrain'\n"
        "custom_imports = dict(imports='mmpretrain', allow_failed_imports=False)\n"
        f"model = dict(type='ImageClassifier', backbone=dict({backbone}))\n"
    )
    hub = MessageHub('a run')
    hub.update_scalar('train/loss', 1.0)
    state = {'backbone.layers.0.attn.proj.bias': torch.full((8,), 3.0)}
    save_checkpoint(dict(state_dict=state, message_hub=hub.state_dict()), str(tmp_path / 'a.pth'))
    spec = spec_of(Framework('mae.py'), tmp_path)
    config = tmp_path / 'out.py'
    point = Point('mae', 'near', 0.5, 7)
    write_transfer(config, Transfer('linear.py'), tmp_path / 'a.pth', point, spec)
    code = (
        'import sys; from mmengine.config import Config\n'
        'config = Config.fromfile(sys.argv[1])\n'
        'from mmpretrain.registry import MODELS\n'
        'model = MODELS.build(config.model); model.init_weights()\n'
        'print(model.backbone.layers[0].attn.proj.bias.tolist())\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', code, str(config)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str([3.0] * 8)


def test_a_delete_that_replaces_nothing_does_not_stay(own_config, tmp_path):
    hooks = dict(checkpoint=dict(_delete_=True, interval=4))
    options = dict(default_hooks=hooks, model=dict(neck=dict(_delete_=True, type='Other')))
    spec = spec_of(own_config, tmp_path, options=options)
    write_base(tmp_path / 'base.py', Framework('mae.py'), spec)
    base = Config.fromfile(tmp_path / 'base.py', import_custom_modules=False)
    assert base.default_hooks == dict(checkpoint=dict(interval=4))
    assert base.model.neck == dict(type='Other')


def test_hooks_in_the_options_do_not_displace_the_evaluation(own_config, tmp_path):
    spec = spec_of(own_config, tmp_path, options=dict(custom_hooks=[dict(type='NaNHook')]))
    write_base(tmp_path / 'base.py', own_config, spec)
    base = Config.fromfile(tmp_path / 'base.py', import_custom_modules=False)
    hooks = [hook.type for hook in base.custom_hooks]
    assert hooks == [PAIRING, 'NaNHook', *WATCHING, EVALUATION]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(frameworks={'mae': Framework('x.py')}), r"frameworks\.mae: 'x\.py' .*No such file"),
        (
            dict(frameworks={'m': Framework('nowhere::a/b.py')}),
            r"frameworks\.m: 'nowhere::a/b\.py'",
        ),
        (
            dict(options=dict(randomness=dict(diff_rank_seed=dict(a=1)))),
            r'frameworks\.mae: .*diff_',
        ),
        (dict(arms={'a': {'not-a-name': 1}}), r"arms\.a: {'not-a-name': 1} with its options"),
        (dict(transfers={'tune': Transfer('y.py')}), r"transfers\.tune: 'y\.py' .*No such file"),
    ],
)
def test_mistakes_in_configs_are_named_before_training(own_config, tmp_path, changes, message):
    with pytest.raises(SpecError, match=message) as caught:
        check_configs(spec_of(own_config, tmp_path, **changes))
    assert f'relative to {tmp_path}, or package::name' in str(caught.value)


@pytest.mark.parametrize(
    ('checkpoint', 'saves'),
    [
        (dict(type='CheckpointHook', interval=-1), True),
        (dict(type='CheckpointHook', interval=-1, save_last=False), False),
        (dict(type='CheckpointHook', interval=2, save_last=False), True),
        (dict(type='CheckpointHook', interval=3, save_last=False), False),
        (None, False),
    ],
)
def test_transfers_need_the_last_checkpoint(own_config, tmp_path, checkpoint, saves):
    (tmp_path / 'tune.py').write_text(
        "model = dict(backbone=dict(type='ViT'))\nval_cfg = dict()\n"
        "val_evaluator = dict(type='mmpretrain.Accuracy')\n"
    )
    options = dict(train_cfg=dict(max_epochs=4), default_hooks=dict(checkpoint=checkpoint))
    check_configs(spec_of(own_config, tmp_path, options=options))
    spec = spec_of(own_config, tmp_path, options=options, transfers={'t': Transfer('tune.py')})
    if saves:
        check_configs(spec)
    else:
        with pytest.raises(
            SpecError, match=r'frameworks\.mae: transfers start from the checkpoint'
        ):
            check_configs(spec)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(ratios=(0.5, 0.8)),
            r'arms\.plain at ratio 0\.8 with frameworks\.mae: throw_ratio=0\.8',
        ),
        (dict(ratios=(0.004,)), r'arms\.plain at ratio 0\.004 .*throws none of the 64 tokens'),
        (
            dict(arms=dict(a=dict(aggregator=dict(type='convolution', kernel='present')))),
            r"arms\.a at ratio 0\.5 .*kernel='present'",
        ),
        (
            dict(arms=dict(a=dict(sampler='near'))),
            r"arms\.a at ratio 0\.5 .*unknown sampler 'near'",
        ),
        (
            dict(arms=dict(a=dict(hooks=[dict(type='ThrowRatioHook', start=0.6, end=0.2)]))),
            r'arms\.a at ratio 0\.5 .*throws 0\.400 on average over the run',
        ),
        (
            dict(arms=dict(a=dict(hooks=[dict(type='ThrowRatioHook', start=0.8)]))),
            r'arms\.a at ratio 0\.5 .*cosine from 0\.8 to 0\.2: throw_ratio=0\.8',
        ),
        (dict(arms=dict(a=dict(step=1))), r"arms\.a: unknown option 'step'; .*, sampler, aggre"),
    ],
)
def test_arms_and_ratios_that_do_not_attach_are_named(changes, message):
    spec = load_spec(Path(__file__).parents[2] / 'sweeps' / 'cifar10_mae_cpu.yaml')
    with pytest.raises(SpecError, match=message):
        check_arms(replace(spec, **changes))


def test_a_point_has_its_arms_hooks_and_budget_and_attach_sees_neither(own_config, tmp_path):
    hook = dict(type='ThrowRatioHook', start=0.7)
    arms = dict(falling=dict(hooks=[hook], budget='cost', thrown_weight=0.5))
    options = dict(train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=2))
    spec = spec_of(own_config, tmp_path, arms=arms, options=options)
    write_base(tmp_path / 'mae' / 'base.py', own_config, spec)
    path = tmp_path / 'mae' / 'falling' / 'config.py'
    write_point(path, tmp_path / 'mae' / 'base.py', Point('mae', 'falling', 0.5, 7), spec)
    base, config = (
        Config.fromfile(file, import_custom_modules=False)
        for file in (tmp_path / 'mae' / 'base.py', path)
    )
    assert config.custom_hooks == [*base.custom_hooks, hook]
    framework = base.model.to_dict()
    assert config.model == dict(
        type='mmpretrain.PRMIM', framework=framework, thrown_weight=0.5, throw_ratio=0.5
    )
    assert config.train_cfg == dict(
        type='mmpretrain.EqualCostEpochLoop', max_epochs=3, val_interval=2, framework=framework
    )


def test_a_peer_trains_for_the_cost_of_its_framework(own_config, tmp_path):
    (tmp_path / 'peer.py').write_text(
        "model = dict(type='Peer')\ntrain_cfg = dict(by_epoch=False, max_iters=9)\n"
    )
    peer = Framework('peer.py', peer_of='mae', budget='cost')
    spec = spec_of(own_config, tmp_path, frameworks=dict(mae=own_config, peer=peer))
    for name, framework in spec.frameworks.items():
        write_base(tmp_path / name / 'base.py', framework, spec)
    path = tmp_path / 'peer' / 'config.py'
    write_point(path, tmp_path / 'peer' / 'base.py', Point('peer', 'framework', 0.0, 7), spec)
    config = Config.fromfile(path, import_custom_modules=False)
    mae = Config.fromfile(tmp_path / 'mae' / 'base.py', import_custom_modules=False).model
    assert config.model.type == 'Peer'
    assert config.train_cfg == dict(
        type='mmpretrain.EqualCostIterLoop', max_iters=9, framework=mae.to_dict()
    )


def test_equal_cost_wants_a_loop_that_it_knows(own_config, tmp_path):
    options = dict(train_cfg=dict(type='MyLoop', max_epochs=3))
    spec = spec_of(own_config, tmp_path, arms=dict(a=dict(budget='cost')), options=options)
    with pytest.raises(SpecError, match=r"frameworks\.mae: budget: cost .* type='MyLoop'"):
        check_configs(spec)


def test_merge_is_mmengines():
    first = dict(a=dict(x=1, y=2), b=[1, 2], c=3)
    second = dict(a=dict(y=5), b=[9], d=dict(z=1))
    assert merge(first, second) == dict(a=dict(x=1, y=5), b=[9], c=3, d=dict(z=1))
    replaced = merge(first, dict(a=dict(_delete_=True, q=1)))
    assert replaced['a'] == dict(_delete_=True, q=1)
    assert first == dict(a=dict(x=1, y=2), b=[1, 2], c=3)
