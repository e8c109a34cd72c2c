# SPDX-License-Identifier: Apache-2.0
"""iBOT's schedule in a real Runner."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from prmim_adapters.openmmlab.hooks_ibot import (
    ClipEachGradHook,
    FreezeLastLayerHook,
    TeacherTempHook,
)


class Model(BaseModel):
    """The names that the hooks look for, and a loss with known gradients."""

    def __init__(self):
        super().__init__()
        self.head = nn.Module()
        self.head.teacher_temp = self.head.teacher_patch_temp = None
        self.neck = nn.Module()
        self.neck.last_layer = nn.Linear(2, 1, bias=False)
        self.backbone = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.backbone.weight, 1.0)
        nn.init.constant_(self.neck.last_layer.weight, 1.0)

    def forward(self, inputs, data_samples=None, mode='loss'):
        # Gradients: 10 in each of 4 entries (norm 20); 0.5 in each of 2 entries.
        return dict(loss=10 * self.backbone.weight.sum() + 0.5 * self.neck.last_layer.weight.sum())


class Recorder(Hook):
    def __init__(self):
        self.epochs = []

    def after_train_epoch(self, runner):
        model = runner.model
        self.epochs.append(
            (
                model.head.teacher_temp,
                model.head.teacher_patch_temp,
                model.backbone.weight[0, 0].item(),
                model.neck.last_layer.weight[0, 0].item(),
            )
        )


@pytest.fixture
def train(tmp_path):
    def run(*hooks, epochs, weight_decay=0.0, model=None, loop=None, optim_wrapper=None):
        recorder = Recorder()
        data = [dict(inputs=torch.zeros(1)) for _ in range(2)]
        runner = Runner(
            model=model or Model(),
            work_dir=str(tmp_path),
            train_dataloader=dict(
                batch_size=1,
                dataset=data,
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=default_collate,
            ),
            train_cfg=loop or dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=optim_wrapper
            or dict(optimizer=dict(type='SGD', lr=0.01, weight_decay=weight_decay, momentum=0.5)),
            custom_hooks=[*hooks, recorder],
            default_hooks=dict(checkpoint=None),
            default_scope='mmengine',
            experiment_name=f'{tmp_path.name}-{len(hooks)}-{epochs}',
            log_level='ERROR',
        )
        runner.train()
        return np.array(recorder.epochs, dtype=float), runner

    return run


def test_temperatures_warm_up_linearly_by_epoch(train):
    found, _ = train(TeacherTempHook((0.04, 0.07), (0.02, 0.1), warmup_epochs=4), epochs=6)
    assert found[:, 0] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert found[:, 1] == pytest.approx([*np.linspace(0.02, 0.1, 4), 0.1, 0.1])


def test_no_warm_up_starts_at_the_last_temperature(train):
    found, _ = train(TeacherTempHook(warmup_epochs=0), epochs=1)
    assert found[0, :2] == pytest.approx([0.07, 0.07])


def test_last_layer_is_frozen_in_the_first_epoch_even_against_weight_decay(train):
    found, runner = train(FreezeLastLayerHook(epochs=1), epochs=2, weight_decay=0.1)
    assert found[0, 3] == 1.0
    assert found[1, 3] < 1.0
    assert found[0, 2] < 1.0  # the rest trains from the start
    assert runner.model.neck.last_layer.weight.requires_grad


def test_each_gradient_is_clipped_by_itself(train):
    plain, _ = train(epochs=1)
    clipped, _ = train(ClipEachGradHook(max_norm=2.0), epochs=1)
    # Two steps of SGD with momentum 0.5 and lr 0.01 move by 2.5 * 0.01 * gradient.
    assert plain[0, 2:] == pytest.approx([1 - 0.025 * 10, 1 - 0.025 * 0.5])
    assert clipped[0, 2:] == pytest.approx([1 - 0.025 * 1, 1 - 0.025 * 0.5], abs=1e-6)


@pytest.mark.parametrize('fused', [False, True])
def test_gradients_are_clipped_in_true_units_under_a_scaler(fused):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
    runner = SimpleNamespace(
        model=model, optim_wrapper=OptimWrapper(optimizer)
    )  # Amp's wants a GPU
    ClipEachGradHook(max_norm=2.0).before_train(runner)
    scaler.scale(model(None)['loss']).backward()
    scaler.step(optimizer)
    assert model.backbone.weight[0, 0].item() == pytest.approx(1 - 0.01 * 1, abs=1e-6)
    assert model.neck.last_layer.weight[0, 0].item() == pytest.approx(1 - 0.01 * 0.5, abs=1e-6)


def test_the_optimizer_is_left_without_hooks(train):
    _, runner = train(FreezeLastLayerHook(), ClipEachGradHook(), epochs=1)
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


class Classifier(BaseModel):
    """No head with temperatures, and no prototypes."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.backbone.weight.sum())


@pytest.mark.parametrize(
    ('hook', 'options', 'message'),
    [
        (TeacherTempHook(), dict(model=Classifier()), 'head of Classifier .* has no teacher_temp'),
        (FreezeLastLayerHook(), dict(model=Classifier()), r"begins with prefix='neck\.last_layer'"),
        (FreezeLastLayerHook(prefix='neck.last'), dict(by_iter=True), 'FreezeLast.* counts epochs'),
        (TeacherTempHook(), dict(by_iter=True), 'TeacherTempHook counts epochs'),
    ],
)
def test_a_hook_that_would_do_nothing_is_refused_before_training(train, hook, options, message):
    if options.pop('by_iter', False):
        options['loop'] = dict(by_epoch=False, max_iters=2)
    recorded = []

    class Steps(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            recorded.append(batch_idx)

    with pytest.raises(ValueError, match=message):
        train(hook, Steps(), epochs=1, **options)
    assert recorded == []


@pytest.mark.parametrize(('interval', 'allowed'), [(1, False), (3, False), (2, True), (4, True)])
def test_a_teacher_waits_for_the_accumulated_step(train, interval, allowed):
    model = Model()
    model.teacher = nn.Module()
    model.teacher.interval = interval
    wrapper = dict(optimizer=dict(type='SGD', lr=0.01), accumulative_counts=2)
    expected = (
        nullcontext() if allowed else pytest.raises(ValueError, match='momentum_interval=2 in')
    )
    with expected:
        train(TeacherTempHook(), epochs=1, model=model, optim_wrapper=wrapper)


@pytest.mark.parametrize('hook', [ClipEachGradHook(), FreezeLastLayerHook()])
def test_several_optimizers_are_refused(train, hook):
    model = Model()
    wrappers = OptimWrapperDict(
        a=OptimWrapper(torch.optim.SGD(model.backbone.parameters(), 0.1)),
        b=OptimWrapper(torch.optim.SGD(model.neck.parameters(), 0.1)),
    )
    with pytest.raises(ValueError, match='acts on one optimizer, and the optim_wrapper has a, b'):
        train(hook, epochs=1, model=model, optim_wrapper=wrappers)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: TeacherTempHook(cls=0.07), 'expected the first and the last temperature'),
        (lambda: TeacherTempHook(patch=(0, 0.07)), 'TeacherTempHook: patch=0'),
        (lambda: TeacherTempHook(warmup_epochs=2.5), 'TeacherTempHook: warmup_epochs=2.5'),
        (lambda: FreezeLastLayerHook(epochs=-1), 'FreezeLastLayerHook: epochs=-1'),
        (lambda: FreezeLastLayerHook(prefix=''), "FreezeLastLayerHook: prefix='' is empty"),
        (lambda: ClipEachGradHook(max_norm=0), 'ClipEachGradHook: max_norm=0'),
    ],
)
def test_options_of_the_hooks_are_checked(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()
