# SPDX-License-Identifier: Apache-2.0
"""The hook inside mmengine's Runner, on random images."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import small_models
import torch
import torch.distributed as dist
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models import MAE
from mmpretrain.structures import DataSample
from processes import on_two_processes
from torch.utils.data import Dataset

from prmim_adapters.accounting import training_macs
from prmim_adapters.accounting.batch import first_batch
from prmim_adapters.accounting.cost_hook import CostHook
from prmim_adapters.adapters import AGGREGATORS, set_throw_ratio
from prmim_adapters.openmmlab.throw_ratio import ThrowRatioHook

MODEL = dict(
    type='PRMIM',
    throw_ratio=0.5,
    framework=small_models.mae(32, 4, width=32, data_preprocessor=small_models.PREPROCESSOR),
)


class Images(Dataset):
    def __init__(self, size: int, value: float = 1.0) -> None:
        self.size, self.value = size, value

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = torch.rand(3, self.size, self.size) * self.value
        return {'inputs': image, 'data_samples': DataSample()}


@pytest.fixture
def runner(tmp_path):
    def build(hook, size=32, value=1.0, aggregator='cross_attention'):
        import prmim_adapters.openmmlab  # noqa: F401

        init_default_scope('mmpretrain')
        return Runner(
            model={**MODEL, 'aggregator': aggregator},
            work_dir=str(tmp_path),
            train_dataloader={
                'dataset': Images(size, value),
                'batch_size': 2,
                'sampler': {'type': 'DefaultSampler', 'shuffle': True},
                'collate_fn': {'type': 'default_collate'},
            },
            train_cfg={'by_epoch': False, 'max_iters': 2},
            optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}},
            default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}},
            custom_hooks=[hook] if hook else [],
            default_scope='mmpretrain',
            experiment_name=f'{tmp_path.name}-{size}-{value}-{bool(hook)}-{aggregator}',
            randomness={'seed': 0},
        )

    return build


def test_the_table_is_logged_and_training_is_not_changed(runner, tmp_path):
    plain = runner(None)
    plain.train()
    watched = runner(CostHook(full=True))
    watched.train()
    log = next(tmp_path.rglob('*.log'))
    logs = ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
    assert log.exists()
    assert '|  | framework | plain partial 0.5 | PR-MIM 0.5 |' in logs
    costs = json.loads(next(tmp_path.rglob('cost.json')).read_text())['costs']
    assert costs[2]['saving']['forward'] > 0.1
    assert costs[2]['training'] > 2 * costs[2]['forward']
    for (name, expected), actual in zip(
        plain.model.state_dict().items(), watched.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


def test_a_schedule_of_the_ratio_is_averaged_over_the_run(runner, tmp_path):
    steps = runner(CostHook(full=True))
    steps.register_hook(ThrowRatioHook('step', start=0.625, end=0.25))
    steps.train()
    found = json.loads(next(tmp_path.rglob('cost.json')).read_text())
    batch = first_batch(steps.train_dataloader, steps.model)
    macs = [training_macs(set_throw_ratio(steps.model, r), batch) for r in (0.625, 0.25)]
    expected = sum(m.forward.total + m.backward.total for m in macs) / 2e9
    assert found['run']['training_gmacs'] == pytest.approx(expected)
    assert found['run']['throw_ratio'] == pytest.approx(0.4375)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert 'Average over the scheduled throw ratios of the run: ' in log


def test_images_of_another_size_are_refused_before_training(runner):
    with pytest.raises(ValueError, match='the first training images do not fit the model'):
        runner(CostHook(), size=36).train()


def test_an_error_of_a_framework_is_shown_with_type_and_place(runner, monkeypatch):
    def fail(self, *args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(MAE, 'loss', fail)
    with pytest.raises(
        ValueError, match=r'model: AssertionError at .*, line \d+: raise AssertionError'
    ):
        runner(CostHook()).train()


def test_a_loss_that_is_not_finite_is_refused(runner):
    with pytest.raises(ValueError, match='give a loss of nan before any update'):
        runner(CostHook(table=False), value=float('nan')).train()


def test_batch_size_is_checked():
    with pytest.raises(ValueError, match='batch_size=1 must be at least 2'):
        CostHook(batch_size=1)


IBOT = dict(
    type='PRMIM',
    throw_ratio=0.5,
    max_masked_share=0.75,
    framework=small_models.ibot(
        32,
        depth=1,
        hidden=32,
        prototypes=24,
        base_momentum=0.1,
        data_preprocessor=small_models.PREPROCESSOR,
    ),
)


class Views(Dataset):
    """Two global views, 11 of their 16 patches masked."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        mask = torch.arange(16).view(4, 4).expand(2, 4, 4) < 11
        views = [torch.rand(3, 32, 32) for _ in range(2)]
        return {'inputs': views, 'data_samples': DataSample().set_mask(mask)}


def train_ibot(rank, port, path):
    """One of two processes; a reduction that the other does not take part in ends in an error."""
    import prmim_adapters.openmmlab  # noqa: F401

    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2, timeout=timedelta(seconds=60))
    init_default_scope('mmpretrain')
    runner = Runner(
        model=IBOT,
        work_dir=str(path),
        launcher='pytorch',
        cfg={'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'device_ids': None}},
        train_dataloader={
            'dataset': Views(),
            'batch_size': 1,
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'collate_fn': {'type': 'default_collate'},
        },
        train_cfg={'by_epoch': False, 'max_iters': 2},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}, 'checkpoint': None},
        custom_hooks=[CostHook()],
        default_scope='mmpretrain',
        experiment_name='ibot',
        randomness={'seed': 0},
    )
    runner.train()
    dist.barrier()
    log = ' '.join(next(Path(path).rglob('*.log')).read_text().split())
    assert 'processes share 1 seed(s): those that do draw the same masks' in log
    torch.save(runner.model.module.head.center, f'{path}/{rank}.pth')
    dist.destroy_process_group()


def test_losses_that_reduce_over_processes_train_on(tmp_path, free_port):
    on_two_processes(train_ibot, free_port, tmp_path)
    centers = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    assert centers[0].abs().sum() > 0
    assert torch.equal(*centers)
    assert len(list(tmp_path.rglob('cost.json'))) == 1


@AGGREGATORS.register_module('uncountable')
class Uncountable(torch.nn.Module):
    """Its distances are an operator without a handle."""

    def __init__(self, width, grid):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(width))

    def forward(self, features, partition, queries):
        distance = torch.cdist(queries[partition.thrown], features)
        return distance.softmax(-1) @ features * self.scale


def test_an_uncounted_operator_gives_no_number_and_does_not_stop_training(runner, tmp_path):
    trained = runner(CostHook(), aggregator='uncountable')
    trained.train()
    assert trained.iter == 2
    logs = ''.join(path.read_text() for path in tmp_path.rglob('*.log'))
    assert 'not counted. the loss path of MAE calls aten::cdist' in ' '.join(logs.split())
    assert not list(tmp_path.rglob('cost.json'))
