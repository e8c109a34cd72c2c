# SPDX-License-Identifier: Apache-2.0
"""The schedule of the throw ratio, and real runs of it: whole, resumed, compiled, on two processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
import torch.distributed as dist
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from processes import on_two_processes
from torch._dynamo.testing import CompileCounter
from torch.utils.data import Dataset

from prmim_adapters import attach
from prmim_adapters.adapters import partial_of
from prmim_adapters.openmmlab.throw_ratio import RatioSchedule, ThrowRatioHook, ratio_hook

MODEL = dict(
    type='PRMIM',
    throw_ratio=0.5,
    framework=small_models.mae(32, 4, data_preprocessor=small_models.PREPROCESSOR),
)


class Images(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.rand(3, 32, 32, generator=generator), data_samples=DataSample())


def build(folder: Path, iterations: int, hook: dict[str, Any], **options: Any) -> Runner:
    import prmim_adapters.openmmlab  # noqa: F401

    init_default_scope('mmpretrain')
    return Runner(
        model=options.pop('model', MODEL),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=Images(),
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-2)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
        ),
        custom_hooks=[hook],
        randomness=dict(seed=0),
        default_scope='mmpretrain',
        experiment_name=f'{folder.parent.name}-{folder.name}-{iterations}',
        **options,
    )


def thrown_in_each_step(runner: Runner) -> list[int]:
    """Trains, and returns how many of the 64 tokens the decoder never saw, step by step."""
    model = getattr(runner.model, 'module', runner.model)
    seen: list[int] = []
    block = model.neck.decoder_blocks[0]
    block.register_forward_pre_hook(lambda module, args: seen.append(65 - args[0].shape[1]))
    runner.train()
    return seen


COSINE = dict(type='ThrowRatioHook', schedule='cosine', start=0.75 - 1 / 64, levels=3)
# 8 steps of it about an average of 32 of 64 tokens.
EXPECTED = [47, 47, 47, 32, 32, 17, 17, 17]


@pytest.mark.parametrize('steps', [1000, 999, 8])
@pytest.mark.parametrize('levels', [2, 3, 5])
def test_a_cosine_averages_the_two_ratios_and_takes_few_values(steps, levels):
    schedule = RatioSchedule('cosine', 0.7, 0.3, levels)
    shares = schedule.shares(steps)
    assert schedule.average(steps) == pytest.approx(0.5, abs=0.21 / steps)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == sorted(shares, reverse=True)
    assert len(shares) <= levels
    assert (schedule.ratio(0, steps), schedule.ratio(steps - 1, steps)) == pytest.approx((0.7, 0.3))


def test_steps_and_constants():
    step = RatioSchedule('step', 0.6, 0.2, at=0.75)
    assert [step.ratio(i, 8) for i in range(8)] == [0.6] * 6 + [0.2] * 2
    assert step.average(8) == pytest.approx(0.5)
    assert RatioSchedule('constant', 0.4, 0.4).shares(8) == {0.4: 1.0}


@pytest.mark.parametrize(
    ('options', 'end'),
    [
        (dict(schedule='cosine', start=0.7), 0.3),
        (dict(schedule='step', start=0.6, at=0.75), 0.2),
        (dict(schedule='constant', start=0.6), 0.6),
        (dict(schedule='cosine', start=0.7, end=0.1), 0.1),
    ],
)
def test_without_an_end_the_average_is_the_models_ratio(options, end):
    from mmpretrain.registry import MODELS

    model = attach(MODELS.build(MODEL['framework']), 0.5)
    assert ThrowRatioHook(**options).schedule_of(model).end == pytest.approx(end)
    assert partial_of(model).throw_ratio == 0.5


def test_an_end_of_zero_is_not_refused_for_its_rounding():
    """(0.3 - 0.75 * 0.4) / 0.25 is a little below 0; plain partial reconstruction ends there too."""
    from mmpretrain.registry import MODELS

    for options in ({}, dict(sampler='random', aggregator=None)):
        model = attach(MODELS.build(MODEL['framework']), 0.3, **options)
        schedule = ThrowRatioHook(schedule='step', start=0.4, at=0.75).schedule_of(model)
        assert schedule.shares(8) == {0.4: 0.75, 0.0: 0.25}
        assert partial_of(model).throw_ratio == 0.3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(schedule='linear', start=0.5),
            "schedule='linear': allowed are 'constant', 'step'",
        ),
        (dict(start=0.5, levels=1), 'levels=1 must be at least 2'),
        (dict(schedule='step', start=0.5, at=1.0), 'at=1.0 must be between 0 and 1'),
        (dict(start=0.6, end='0.2'), r"ThrowRatioHook: end='0.2' \(str\): expected a number"),
        (dict(start=0.5, levels=2.5), 'ThrowRatioHook: levels=2.5'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ThrowRatioHook(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(start=0.8), r'cosine from 0\.8 to 0\.2: .*masks 48'),
        (dict(start=0.6, end=-0.1), r'cosine from 0\.6 to -0\.1: .*must be between 0 and 1'),
    ],
)
def test_ratios_that_the_model_refuses_end_the_run_before_it_begins(tmp_path, options, message):
    runner = build(tmp_path, 4, dict(type='ThrowRatioHook', **options))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_the_model_throws_what_the_schedule_says_also_when_resumed(tmp_path):
    runner = build(tmp_path / 'whole', 8, COSINE)
    assert thrown_in_each_step(runner) == EXPECTED
    assert ratio_hook(runner.hooks) is not None
    checkpoint = str(tmp_path / 'whole' / 'iter_4.pth')
    resumed = build(tmp_path / 'resumed', 8, COSINE, load_from=checkpoint, resume=True)
    assert thrown_in_each_step(resumed) == EXPECTED[4:]
    logged, _ = runner.message_hub.get_scalar('train/throw_ratio').data
    assert [round(64 * value) for value in logged[-4:]] == EXPECTED[4:]


def test_a_ratio_may_fall_to_nothing(tmp_path):
    hook = dict(type='ThrowRatioHook', start=0.5, end=0.0, levels=3)
    assert thrown_in_each_step(build(tmp_path, 8, hook)) == [32, 32, 32, 16, 16, 0, 0, 0]


def test_a_compiled_model_is_compiled_once_for_each_ratio(tmp_path):
    torch._dynamo.reset()
    counter = CompileCounter()
    runner = build(tmp_path, 8, COSINE)
    neck, thrown = runner.model.neck, []
    neck.decoder_blocks[0].compile(backend=counter, dynamic=False)
    neck.register_forward_pre_hook(lambda *_: thrown.append(partial_of(runner.model).num_thrown))
    runner.train()
    assert thrown == EXPECTED
    assert counter.frame_count == 3


def two_processes(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    config = dict(model_wrapper_cfg=wrapper)
    runner = build(folder / 'run', 8, COSINE, launcher='pytorch', cfg=config)
    seen = thrown_in_each_step(runner)
    torch.save(seen, folder / f'{rank}.pt')
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_throw_alike(tmp_path, free_port):
    on_two_processes(two_processes, free_port, tmp_path)
    seen = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    assert seen[0] == seen[1] == EXPECTED


def test_the_hook_is_registered():
    assert HOOKS.get('mmpretrain.ThrowRatioHook') is ThrowRatioHook
