# SPDX-License-Identifier: Apache-2.0
"""A config means the same to every command, however its types are written."""

from __future__ import annotations

import pytest
import small_models
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmpretrain.models import MAE
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import nn
from torchvision import transforms

from prmim_adapters.accounting import make_batch
from prmim_adapters.accounting.variants import build_variants
from prmim_adapters.adapters import is_attached, partial_of
from prmim_adapters.core.aggregation import CrossAttention
from prmim_adapters.openmmlab import PRMIM
from prmim_adapters.openmmlab.config_files import ConfigError
from prmim_adapters.openmmlab.models import (
    attach_options,
    build_model,
    framework_settings,
    input_channels,
    is_prmim,
    load_config,
    own_ratio,
    preprocessor_settings,
    training_pipeline,
)
from prmim_adapters.openmmlab.types import is_a, resolved

FRAMEWORK = small_models.mae(64, 16, width=48, heads=3, backbone=dict(mask_ratio=0.75))
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='PackInputs'),
]

PURE = '''
from mmcv.transforms import LoadImageFromFile
from mmpretrain.datasets import CustomDataset, PackInputs, RandomResizedCrop
from mmpretrain.models import (
    MAE, MAEPretrainDecoder, MAEPretrainHead, MAEViT, PixelReconstructionLoss,
    SelfSupDataPreprocessor,
)
from prmim_adapters.openmmlab import PRMIM

arch = dict(embed_dims=48, num_layers=1, num_heads=3, feedforward_channels=96)
model = dict(
    type=PRMIM,
    framework=dict(
        type=MAE,
        backbone=dict(type=MAEViT, arch=arch, img_size=64, patch_size=16, mask_ratio=0.75),
        neck=dict(type=MAEPretrainDecoder, num_patches=16, embed_dim=48, decoder_embed_dim=48,
                  decoder_depth=1, decoder_num_heads=3),
        head=dict(type=MAEPretrainHead, patch_size=16,
                  loss=dict(type=PixelReconstructionLoss, criterion='L2'))),
    throw_ratio=0.25,
    aggregator='nearest',
)
data_preprocessor = dict(type=SelfSupDataPreprocessor, to_rgb=True)
pipeline = [dict(type=LoadImageFromFile), dict(type=RandomResizedCrop, scale=64),
            dict(type=PackInputs)]
train_dataloader = dict(dataset=dict(type=CustomDataset, pipeline=pipeline))
'''  # fmt: skip


@pytest.fixture
def config(tmp_path):
    """Function (type of the model, **changes) -> a config of throw ratio 0.25 and 'nearest'."""

    def build(kind, **changes):
        model = dict(type=kind, framework=FRAMEWORK, throw_ratio=0.25, aggregator='nearest')
        whole = dict(
            model={**model, **changes},
            data_preprocessor=dict(type='SelfSupDataPreprocessor', to_rgb=True),
            train_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=PIPELINE)),
        )
        return Config(whole)

    return build


KINDS = ['PRMIM', 'mmpretrain.PRMIM', 'prmim_adapters.openmmlab.prmim.PRMIM', PRMIM]


@pytest.mark.parametrize('kind', KINDS, ids=[*KINDS[:3], 'the object'])
def test_the_type_may_be_written_in_every_way_that_the_registry_takes(config, kind):
    settings = config(kind)
    assert is_prmim(settings)
    assert own_ratio(settings) == 0.25
    assert attach_options(settings) == dict(aggregator='nearest')
    assert resolved(framework_settings(settings), MODELS) is MAE
    assert partial_of(build_model(settings)).throw_ratio == 0.25
    variants = build_variants(settings)
    assert [v.label for v in variants] == ['framework', 'plain partial 0.25', 'PR-MIM 0.25']
    assert type(partial_of(variants[2].model).aggregators[0]).__name__ == 'Nearest'


def test_a_scope_may_be_given_beside_the_type_or_as_the_default(config):
    settings = config('PRMIM')
    settings.model['_scope_'] = 'mmpretrain'
    settings.default_scope = 'mmengine'
    assert own_ratio(settings) == 0.25
    settings = config('mmpretrain.PRMIM')
    settings.default_scope = 'mmengine'
    settings.model.framework.type = 'mmpretrain.MAE'
    assert resolved(framework_settings(settings), MODELS) is MAE
    assert own_ratio(settings) == 0.25


def test_pure_python_configs(tmp_path):
    (tmp_path / 'pure.py').write_text(PURE)
    settings = load_config(tmp_path / 'pure.py')
    assert is_prmim(settings)
    assert (own_ratio(settings), attach_options(settings)) == (0.25, dict(aggregator='nearest'))
    framework, plain, ours = build_variants(settings)
    assert not is_attached(framework.model)
    assert plain.throw_ratio == ours.throw_ratio == 0.25
    assert make_batch(settings, ours.model)['inputs'].shape == (2, 3, 64, 64)


def test_light_stages_of_pure_python_configs_may_be_the_classes_themselves(tmp_path):
    text = PURE.replace("'nearest'", '[CrossAttention, dict(type=CrossAttention, heads=2)]')
    imports = 'from prmim_adapters.core.aggregation import CrossAttention\n'
    (tmp_path / 'pure.py').write_text(imports + text)
    settings = load_config(tmp_path / 'pure.py')
    for model in (build_model(settings), build_variants(settings)[2].model):
        stages = partial_of(model).aggregators
        assert [type(stage) for stage in stages] == [CrossAttention, CrossAttention]


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        (
            'framework=dict(',
            'framework=MAE, other=dict(',
            r'framework=.*MAE.*: expected the model config',
        ),
        ('type=PixelReconstructionLoss,', 'type=PixelReconstructionLoss(),', r'as NAME\(\.\.\.\)'),
    ],
)
def test_mistakes_in_pure_python_configs(tmp_path, old, new, message):
    assert old in PURE
    (tmp_path / 'pure.py').write_text(PURE.replace(old, new))
    with pytest.raises((ConfigError, TypeError), match=message):
        build_model(load_config(tmp_path / 'pure.py'))


def test_a_framework_without_prmim_has_the_default_ratio():
    settings = Config(dict(model=FRAMEWORK))
    assert not is_prmim(settings)
    assert (own_ratio(settings), attach_options(settings)) == (0.5, {})
    assert framework_settings(settings) == FRAMEWORK


def test_types_are_compared_as_classes(config):
    class MyLoader(LoadImageFromFile):
        pass

    TRANSFORMS.register_module(name='ReadsMine', module=MyLoader, force=True)
    for kind in ('LoadImageFromFile', 'mmcv.LoadImageFromFile', MyLoader, 'ReadsMine'):
        assert is_a(dict(type=kind), TRANSFORMS, LoadImageFromFile), kind
    for kind in ('PackInputs', 'nowhere.at.all', 'NoSuchThing', None):
        assert not is_a(dict(type=kind), TRANSFORMS, LoadImageFromFile), kind
    jitter = dict(type='torchvision/ColorJitter', brightness=0.4)
    assert is_a(jitter, TRANSFORMS, transforms.ColorJitter)
    assert resolved(None, TRANSFORMS) is None


def test_settings_of_the_framework_are_handed_on(config):
    """As ``--cfg-options model.backbone.mask_ratio=0.6``, which mmpretrain's users write."""
    settings = config('PRMIM')
    settings.merge_from_dict(
        {'model.backbone.mask_ratio': 0.5, 'model.backbone.img_size': 128, 'model.init_cfg': None}
    )
    settings.merge_from_dict({'model.neck.num_patches': 64, 'model.throw_ratio': 0.125})
    model = build_model(settings)
    assert model.backbone.mask_ratio == 0.5
    assert partial_of(model).grid == (8, 8)
    assert partial_of(model).num_thrown == 8
    assert framework_settings(settings)['backbone']['mask_ratio'] == 0.5
    assert framework_settings(settings)['backbone']['arch'] == small_models.arch(48, 1, 3)
    assert settings.model.framework.backbone.mask_ratio == 0.75
    assert build_variants(settings)[0].model.backbone.mask_ratio == 0.5
    assert attach_options(settings) == dict(aggregator='nearest')


def test_a_setting_that_replaces_a_name_does_so_each_time_the_model_is_built(config):
    """Merging takes ``_delete_`` out: not out of the config, which is asked again."""
    arch = dict(_delete_=True, embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=64)
    framework = dict(FRAMEWORK, backbone=dict(FRAMEWORK['backbone'], arch='b'))
    made = config('PRMIM', framework=framework, backbone=dict(arch=arch))
    before = made.model.to_dict()
    for _ in range(2):
        assert framework_settings(made)['backbone']['arch']['embed_dims'] == 32
        assert own_ratio(made) == 0.25
        assert made.model.to_dict() == before


def test_a_setting_of_nobody_says_where_the_frameworks_live(config):
    settings = config('PRMIM', maskratio=0.5)
    message = (
        r"unknown setting 'maskratio'\. Its own are throw_ratio, sampler, .*; those of the framework "
        r'are backbone, data_preprocessor, head, init_cfg, neck, '
    )
    with pytest.raises(TypeError, match=message):
        build_model(settings)
    settings = config('PRMIM', mask_ratio=0.5)
    with pytest.raises(TypeError, match=r'Did you mean model\.backbone\.mask_ratio\?'):
        build_model(settings)


@pytest.mark.parametrize(
    'where',
    [
        lambda inner: inner,
        lambda inner: dict(type='RepeatDataset', times=2, dataset=inner),
        lambda inner: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner),
        lambda inner: dict(type='ConcatDataset', datasets=[inner, dict(type='CIFAR10')]),
        lambda inner: dict(type='ConcatDataset', datasets=[dict(type='Other'), inner]),
        lambda inner: dict(
            type='KFoldDataset', dataset=dict(type='ConcatDataset', datasets=(inner,))
        ),
        lambda inner: [inner, dict(type='CIFAR10', pipeline=[])],
        lambda inner: dict(type='Mine', sources=dict(first=inner)),
    ],
)
def test_the_first_pipeline_is_found_through_any_wrapper(config, where):
    settings = config('PRMIM')
    settings.train_dataloader.dataset = where(dict(type='CustomDataset', pipeline=PIPELINE))
    assert training_pipeline(settings) == PIPELINE
    batch = make_batch(settings, build_model(settings))
    assert batch['inputs'].shape == (2, 3, 64, 64)


def test_a_wrappers_own_steps_follow_those_inside(config):
    settings = config('PRMIM')
    inner = dict(type='CustomDataset', pipeline=PIPELINE[:1])
    settings.train_dataloader.dataset = dict(type='Mine', dataset=inner, pipeline=PIPELINE[1:])
    assert training_pipeline(settings) == PIPELINE


def test_a_data_set_in_memory_is_packed(config):
    settings = config('PRMIM')
    inner = dict(type='CustomDataset', pipeline=[dict(type='LoadImageFromFile')])
    settings.train_dataloader.dataset = dict(type='InMemoryImages', dataset=inner)
    augment = [dict(type='BatchRandomResizedCrop', size=64)]
    settings.data_preprocessor = dict(type='DeviceAugment', augment=augment)
    assert make_batch(settings, build_model(settings))['inputs'].shape == (2, 3, 64, 64)


def test_the_frameworks_own_preprocessor_comes_first(config):
    settings = config('PRMIM')
    assert preprocessor_settings(settings)['to_rgb'] is True
    own = dict(type='SelfSupDataPreprocessor', to_rgb=False)
    settings.model.framework = {**FRAMEWORK, 'data_preprocessor': own}
    assert preprocessor_settings(settings) == own
    assert preprocessor_settings(Config(dict(model=FRAMEWORK))) == {}


@pytest.mark.parametrize('channels', [1, 2, 4, 12])
def test_channels_are_the_models(config, channels):
    """A grey image has no third axis; a reader of band files has a name of its own."""
    settings = config('PRMIM')
    load = dict(type='LoadImageFromFile', color_type='grayscale' if channels == 1 else 'unchanged')
    settings.train_dataloader.dataset.pipeline[0] = load
    settings.data_preprocessor = dict(type='SelfSupDataPreprocessor')
    settings.model.framework.backbone.patch_cfg = dict(in_channels=channels)
    settings.model.framework.neck.in_chans = channels
    settings.model.framework.head.in_channels = channels
    model = build_model(settings)
    batch = make_batch(settings, model)
    assert batch['inputs'].shape == (2, channels, 64, 64)
    assert torch.isfinite(model.loss(**batch)['loss'])
    assert make_batch(model)['inputs'].shape == (2, channels, 64, 64)
    assert input_channels(model) == channels


def test_a_step_that_wants_a_file_is_left_out_whatever_it_is_called(config):
    class Bands:
        def __call__(self, results):
            results['img'] = results['img_path']
            return results

    class NeedsMore:
        def __call__(self, results):
            return dict(results, box=results['boxes'])

    settings = config('PRMIM')
    settings.train_dataloader.dataset.pipeline[0] = dict(type=Bands)
    model = build_model(settings)
    assert make_batch(settings, model)['inputs'].shape == (2, 3, 64, 64)
    settings.train_dataloader.dataset.pipeline.insert(1, dict(type=NeedsMore))
    with pytest.raises(KeyError, match='boxes'):
        make_batch(settings, model)


def test_a_model_without_a_convolution_does_not_say_its_channels():
    with pytest.raises(ValueError, match='Linear has no convolution that would tell'):
        input_channels(nn.Linear(2, 2))
