# SPDX-License-Identifier: Apache-2.0
"""What each process of test_flexible_runner.py does: ten iterations under mmengine's FlexibleRunner."""

import os
from pathlib import Path

import torch
from contract_case import collect
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner
from scale_out import LAYERS, share
from torch.utils.data import DataLoader

import prmim_adapters.openmmlab  # noqa: F401, registers
from prmim_adapters.testing import AdapterCase

STEPS = 10


class LossHook(Hook):
    """Keeps the loss of every iteration."""

    def __init__(self) -> None:
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs['loss'].item())


def strategy_of(name, case, model):
    if name == 'ddp':
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
        return dict(type='DDPStrategy', model_wrapper=wrapper)
    classes = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    layers = [] if case.name.startswith('ibot') else sorted(LAYERS & classes)
    return dict(type='FullyShardStrategy', layers=layers)


def run(case: AdapterCase, name: str, rank: int, folder: Path) -> tuple[list[float], dict]:
    """Losses, and the weights at the end."""
    model, hook = case.attached(), LossHook()
    batch = case.fixed_batch()
    mine = share(batch, list(range(len(case.images(batch)[0])))[rank::2])
    runner = FlexibleRunner(
        model=model,
        work_dir=str(folder / f'{case.name}-{name}'),
        experiment_name=f'{case.name}-{name}',
        strategy=strategy_of(name, case, model),
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        train_dataloader=DataLoader([mine] * STEPS, collate_fn=lambda batches: batches[0]),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        randomness=dict(seed=0, diff_rank_seed=True),
        custom_hooks=[hook],
        default_scope='mmpretrain',
        log_level='ERROR',
        cfg={},
    )
    runner.train()
    weights = runner.strategy.model_state_dict()
    return hook.losses, {key.removeprefix('module.'): value for key, value in weights.items()}


def work(rank: int, port: int, folder: str, names: list[str]) -> None:
    """Both strategies for each case; rank 0 leaves what they gave."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2')
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    init_default_scope('mmpretrain')
    cases = {case.name: case for case in collect()}
    for name in names:
        found = [run(cases[name], strategy, rank, Path(folder)) for strategy in ('ddp', 'sharded')]
        if rank == 0:
            torch.save(found, Path(folder) / f'{name}.pt')
