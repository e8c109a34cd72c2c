# SPDX-License-Identifier: Apache-2.0
"""Tiny training runs that tests interrupt and resume; as a script, one of them to be killed.

python survivor.py KIND FOLDER NUM_WORKERS
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

import prmim_adapters.openmmlab  # noqa: F401, registers

ARCH = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
PREPROCESSOR = dict(type='SelfSupDataPreprocessor', mean=[0] * 3, std=[1] * 3)
MAE = dict(
    type='MAE',
    data_preprocessor=PREPROCESSOR,
    backbone=dict(type='MAEViT', arch=ARCH, img_size=32, patch_size=8),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=16,
        patch_size=8,
        embed_dim=16,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    ),
    head=dict(
        type='MAEPretrainHead',
        patch_size=8,
        loss=dict(type='PixelReconstructionLoss', criterion='L2'),
    ),
)
IBOT = dict(
    type='IBOT',
    data_preprocessor=PREPROCESSOR,
    backbone=dict(type='IBOTViT', arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.1),
    neck=dict(
        type='IBOTNeck', in_channels=16, hidden_channels=16, bottleneck_channels=8, out_channels=12
    ),
    head=dict(type='IBOTHead', out_channels=12),
    base_momentum=0.1,
)


@DATASETS.register_module()
class Drawn(Dataset):
    """Ten images, augmented by draws from every source of randomness that transforms use."""

    def __init__(self, views: int) -> None:
        self.views = views

    def __len__(self):
        return 10

    def view(self, index):
        image = torch.full((3, 32, 32), index / 10 + random.random() + np.random.rand())
        return image + torch.randn(3, 32, 32)

    def __getitem__(self, index):
        if not self.views:
            return dict(inputs=self.view(index), data_samples=DataSample())
        masks = torch.from_numpy(np.random.rand(self.views, 4, 4)).argsort(-1) < 3
        views = [self.view(index) for _ in range(self.views)]
        return dict(inputs=views, data_samples=DataSample().set_mask(masks))


class InterruptedRunError(Exception):
    pass


class InterruptHook(Hook):
    """Ends training when an iteration has begun, as a kill would; knows where training began.

    Args:
        iteration: None never ends it.
    """

    def __init__(self, iteration=None):
        self.iteration, self.first = iteration, None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.first is None:
            self.first = runner.iter
        if runner.iter == self.iteration:
            raise InterruptedRunError


#: by name: the framework, the loop, and when checkpoints are made. An epoch has 5 iterations.
KINDS = {
    'mae-by-epoch': (MAE, dict(by_epoch=True, max_epochs=4), dict(interval=1)),
    'mae-by-iteration': (
        MAE,
        dict(by_epoch=False, max_iters=20),
        dict(by_epoch=False, interval=3),
    ),
    'mae-mid-epoch': (
        MAE,
        dict(by_epoch=True, max_epochs=4),
        dict(by_epoch=False, interval=3),
    ),
    'ibot': (IBOT, dict(by_epoch=True, max_epochs=4), dict(by_epoch=False, interval=2)),
}


def settings(kind, folder, num_workers=0, seed=0, infinite=False, **options):
    """Config of a run in ``folder`` that resumes by itself."""
    framework, loop, checkpoint = KINDS[kind]
    checkpoint = dict(max_keep_ckpts=1, **checkpoint) | options.pop('checkpoint', {})
    base = dict(
        model=dict(type='PRMIM', framework=framework, throw_ratio=0.4, max_masked_share=0.6),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=dict(type='Drawn', views=2 if kind == 'ibot' else 0),
            batch_size=2,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            sampler=dict(type='InfiniteSampler' if infinite else 'DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(loop),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[
            dict(type='CosineAnnealingLR', T_max=4, by_epoch=True, convert_to_iter_based=True)
        ]
        if loop['by_epoch']
        else [dict(type='CosineAnnealingLR', T_max=20, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='ResumableCheckpointHook', **checkpoint)),
        default_scope='mmpretrain',
        experiment_name=f'{Path(folder).name}-{len(list(Path(folder).glob("*")))}-{random.random()}',
        randomness=dict(seed=seed, diff_rank_seed=True),
        resume=True,
        log_level='WARNING',
    )
    return {**base, **options}


def build(*args, hooks=(), **options):
    """The runner of :func:`settings`, with these hooks."""
    init_default_scope('mmpretrain')
    return Runner(**settings(*args, **options), custom_hooks=list(hooks))


if __name__ == '__main__':
    torch.set_num_threads(1)
    kind, folder, num_workers = sys.argv[1:]
    runner = build(kind, folder, int(num_workers))
    runner.train()
    torch.save(runner.model.state_dict(), Path(folder) / 'final')
