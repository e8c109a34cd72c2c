# SPDX-License-Identifier: Apache-2.0
"""KNNHook in a Runner: what it logs and when, and what it refuses before training."""

import pytest
import torch
from knn_models import algorithm
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from mmpretrain.structures import DataSample
from PIL import Image

import prmim_adapters.openmmlab  # noqa: F401, registers InMemoryImages
from prmim_adapters.frameworks import packed_convnext  # noqa: F401, registers the backbone
from prmim_adapters.openmmlab.knn import KNNHook


class Blobs(torch.utils.data.Dataset):
    """Images of two colours, the class."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.full((3, 32, 32), 30.0 if index % 2 else 220.0)
        image += torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % 2))


def blobs():
    return dict(
        batch_size=4,
        dataset=Blobs(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=default_collate,
    )


def runner_with(hook, model, folder):
    return Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=blobs(),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=None),
        default_scope='mmpretrain',
        experiment_name=folder.name,
        log_level='ERROR',
    )


def test_hook_logs_the_accuracy_at_the_start_at_the_interval_and_at_the_end(tmp_path):
    seen = []

    class Watch(KNNHook):
        def evaluate(self, runner):
            seen.append((runner.epoch, super().evaluate(runner)))

    loader = blobs()
    hook = Watch(loader, loader, num_classes=2, interval=2, k=3, at_start=True)
    model = algorithm('MAE')
    runner = runner_with(hook, model, tmp_path)
    runner.train()

    assert seen == [(0, 100.0), (1, 100.0), (2, 100.0)]
    assert runner.message_hub.get_scalar('val/knn_top1').current() == 100.0
    assert model.training


class Labelled(Blobs):
    """Says its labels, as mmpretrain's data sets do."""

    def get_gt_labels(self):
        return [index % 2 for index in range(len(self))]


class Negative(Labelled):
    """Marks an image without class by -1."""

    def get_gt_labels(self):
        return [-1, *super().get_gt_labels()[1:]]


class TwoClasses(Labelled):
    """Several classes an image."""

    def get_data_info(self, index):
        return dict(gt_label=[0, 1])


class Unlabelled(Blobs):
    """As self-supervised pre-training has them."""

    def __getitem__(self, index):
        return dict(super().__getitem__(index), data_samples=DataSample())


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('SimMIM', dict(class_token=True), 'has no class token'),
        ('MAE', dict(k=13), r'k=13 neighbours asked of the 12 images of .*: choose 1 <= k <= 12'),
        ('MAE', dict(num_classes=1), 'num_classes=1, but .*_dataloader has the label 1'),
        ('MAE', dict(dataset=Unlabelled()), r'an image has no label \(gt_label\)'),
        ('MAE', dict(dataset=Negative()), 'train_dataloader has the label -1: labels count from 0'),
        ('MAE', dict(dataset=TwoClasses()), 'has the label .*: expected one class number'),
        (
            'MAE',
            dict(backbone='bakbone'),
            r"backbone='bakbone': MAE has no such .*parts are .*neck",
        ),
        ('MAE', dict(backbone='backbone.nothing'), 'has no such network'),
    ],
)
def test_settings_are_checked_before_training(tmp_path, name, options, message):
    loader = blobs()
    loader['dataset'] = options.pop('dataset', Labelled())
    settings = dict(num_classes=2, k=3, interval=100) | options
    runner = runner_with(KNNHook(loader, loader, **settings), algorithm(name), tmp_path)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('wrapper', ['none', 'InMemoryImages', 'RepeatDataset', 'ConcatDataset'])
@pytest.mark.parametrize('labelled', [True, False])
def test_data_sets_of_files_are_checked_through_any_wrapper(tmp_path, wrapper, labelled):
    for label in range(3):
        (tmp_path / str(label)).mkdir()
        Image.new('L', (32, 32), 20 * label).save(tmp_path / str(label) / 'a.png')
    pipeline = [dict(type='LoadImageFromFile')]
    dataset = dict(
        type='CustomDataset', data_prefix=str(tmp_path), with_label=labelled, pipeline=pipeline
    )
    if wrapper != 'InMemoryImages':
        pipeline.append(dict(type='PackInputs'))
    if wrapper == 'RepeatDataset':
        dataset = dict(type=wrapper, times=2, dataset=dataset)
    elif wrapper == 'ConcatDataset':
        dataset = dict(type=wrapper, datasets=[dataset, dataset])
    elif wrapper == 'InMemoryImages':
        dataset = dict(type=wrapper, dataset=dataset)
    loader = dict(blobs(), dataset=dataset)
    runner = runner_with(KNNHook(loader, loader, num_classes=2, k=3), algorithm('MAE'), tmp_path)
    message = r'num_classes=2, but .* label 2: set num_classes=3' if labelled else 'no label'
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_trying_the_network_leaves_the_random_state_and_its_mode(tmp_path):
    model = algorithm('MAE').train()
    hook = KNNHook(blobs(), blobs(), num_classes=2, k=3)
    runner = runner_with(hook, model, tmp_path)
    state = torch.get_rng_state()
    hook.before_train(runner)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ('option', 'error'),
    [
        (dict(k=0), ValueError),
        (dict(interval=0), ValueError),
        (dict(num_classes=0), ValueError),
        (dict(temperature=0.0), ValueError),
        (dict(k=2.5), TypeError),
        (dict(at_start=1), TypeError),
        (dict(backbone=''), ValueError),
        (dict(test_dataloader=None), TypeError),
    ],
)
def test_options_out_of_range_are_refused_when_the_hook_is_built(option, error):
    with pytest.raises(error, match=f'KNNHook: {next(iter(option))}'):
        KNNHook(**(dict(train_dataloader={}, test_dataloader={}, num_classes=2) | option))


def test_hook_is_registered_for_configs():
    hook = HOOKS.build(
        dict(type='KNNHook', train_dataloader={}, test_dataloader={}, num_classes=10, k=5)
    )
    assert isinstance(hook, KNNHook)
    assert (hook.k, hook.interval, hook.num_classes) == (5, 10, 10)
