# SPDX-License-Identifier: Apache-2.0
"""FlexibleRunner with FSDP2 on two gloo processes: DDP's losses, and checkpoints for every run."""

import copy
import json
import os

import numpy as np
import pytest
import survivor
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner
from mmpretrain.models.utils import CosineEMA
from mmpretrain.registry import MODELS
from processes import on_two_processes
from torch import nn

from prmim_adapters.accounting import cost_hook  # noqa: F401, registers
from prmim_adapters.openmmlab.checkpoints import read_checkpoint, weights_of
from prmim_adapters.openmmlab.fully_shard import FullyShardStrategy
from prmim_adapters.openmmlab.whole_files import newest_whole

LAYERS = ['TransformerEncoderLayer', 'CrossAttention']
SHARDED = dict(type='FullyShardStrategy', layers=LAYERS)
DDP = dict(
    type='DDPStrategy',
    model_wrapper=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
)
STRATEGIES = dict(ddp=DDP, sharded=SHARDED)
HOOKS = [dict(type='CostHook'), dict(type='FiniteLossHook')]


def train(kind, folder, strategy, hooks=HOOKS, **options):
    """A run of the survivor under FlexibleRunner; the runner at its end."""
    init_default_scope('mmpretrain')
    settings = survivor.settings(kind, folder, **options)
    settings.update(
        strategy=copy.deepcopy(strategy),  # mmengine adds to it
        launcher='pytorch' if 'RANK' in os.environ else 'none',
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0)),
        log_processor=dict(window_size=1),
    )
    settings['model']['with_cp'] = strategy is SHARDED and kind != 'ibot'
    settings['default_hooks']['logger'] = dict(type='LoggerHook', interval=1)
    runner = FlexibleRunner(cfg=dict(settings), custom_hooks=hooks, **settings)
    runner.train()
    return runner


def work(rank, port, folder, plan):
    """What each process does: runs, those of two strategies interrupted between them."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2')
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    for kind, *before, strategy in plan:
        path = folder / '-'.join([kind, *before, strategy])
        for first in before:
            with pytest.raises(survivor.InterruptedRunError):
                train(kind, path, STRATEGIES[first], hooks=[survivor.InterruptHook(7)])
        train(kind, path, STRATEGIES[strategy])


@pytest.fixture
def run(tmp_path, free_port):
    """Function (plan): the runs, each a kind and one or two strategies, on two processes."""

    def start(*plan):
        on_two_processes(work, free_port, tmp_path, plan)
        return [tmp_path / '-'.join(names) for names in plan]

    return start


def logs(folder):
    """Of each start: iteration, loss and norm of the gradient."""
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    entries = [map(json.loads, path.read_text().splitlines()) for path in files]
    return [[(e['step'], e['loss'], e['grad_norm']) for e in start] for start in entries]


def last(folder):
    """The checkpoint of the end, as all commands read it: weights, and the optimizer's state."""
    path = newest_whole(folder)[0]
    checkpoint = read_checkpoint(path)
    return weights_of(checkpoint, path), checkpoint['optimizer']['state']


def assert_close(folder, other):
    (weights, states), (expected, others) = last(folder), last(other)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(states, others, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['mae-by-epoch', pytest.param('ibot', marks=pytest.mark.slow)])
def test_losses_and_weights_are_those_of_ddp(run, kind):
    folders = run((kind, 'ddp'), (kind, 'sharded'))
    (ddp,), (sharded,) = map(logs, folders)
    assert len(ddp) == 12
    np.testing.assert_allclose(sharded, ddp, rtol=0, atol=1e-5)
    assert_close(*folders)
    costs = [json.loads(next(path.glob('*/cost.json')).read_text())['costs'] for path in folders]
    assert len({str([entry['forward'] for entry in each]) for each in costs}) == 1


@pytest.mark.slow
def test_each_resumes_from_the_other(run):
    plan = [('ddp', 'sharded'), ('sharded', 'ddp'), ('sharded', 'sharded'), ('ddp',)]
    *resumed, uninterrupted = run(*[('mae-by-epoch', *strategies) for strategies in plan])
    for folder in resumed:
        assert [len(start) for start in logs(folder)] == [7, 6]
        assert_close(folder, uninterrupted)


def wrapped(model, **options):
    """What the strategy says to a model, without processes."""
    strategy = FullyShardStrategy(work_dir=options.pop('folder'), **options)
    return strategy._wrap_model(MODELS.build(model))


def test_layers_that_the_model_has_not(tmp_path):
    with pytest.raises(ValueError, match=r'MAE has no module of class SwinBlock; it has .*MAEViT'):
        wrapped(survivor.MAE, layers=['SwinBlock'], folder=str(tmp_path))
    with pytest.raises(TypeError, match="layers='SwinBlock': give a list of class names"):
        wrapped(survivor.MAE, layers='SwinBlock', folder=str(tmp_path))


def test_a_teacher_that_moves_in_the_forward_pass(tmp_path):
    model = MODELS.build(survivor.MAE)
    model.teacher = CosineEMA(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='CosineEMA moves a teacher during the forward pass'):
        FullyShardStrategy(work_dir=str(tmp_path))._wrap_model(model)
