# SPDX-License-Identifier: Apache-2.0
"""Pictures and losses that real runs leave in TensorBoard's event file, and runs without them."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prmim_adapters.adapters import partial_of
from prmim_adapters.openmmlab.models import build_model
from prmim_adapters.visualization.observe import losses_by_role, recorded
from prmim_adapters.visualization.reconstruction_hook import ReconstructionHook

PREPROCESSOR = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
PIXELS = dict(type='PixelReconstructionLoss', criterion='L2')
CONVNEXT = dict(depths=[1, 1, 1, 1], channels=[4, 8, 16, 32])
FRAMEWORKS: dict[str, tuple[int, dict[str, Any], list[dict[str, Any]]]] = {
    'mae': (
        32,
        small_models.mae(32, 4, head=dict(norm_pix=True)),
        [],
    ),
    'simmim': (
        128,
        small_models.simmim(
            dict(
                type='SimMIMSwinTransformer',
                arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
                img_size=128,
                drop_path_rate=0.1,
                stage_cfgs=dict(block_cfgs=dict(window_size=4)),
            ),
            width=64,
            stride=32,
            cell=4,
        ),
        [
            dict(
                type='SimMIMMaskGenerator',
                input_size=128,
                mask_patch_size=32,
                model_patch_size=4,
                mask_ratio=0.6,
            )
        ],
    ),
    'fcmae': (
        128,
        dict(
            type='FCMAE',
            backbone=dict(type='FCMAEConvNeXt', arch=CONVNEXT, img_size=128),
            neck=dict(type='FCMAEPretrainDecoder', embed_dim=32, decoder_embed_dim=16),
            head=dict(type='MAEPretrainHead', norm_pix=True, patch_size=32, loss=PIXELS),
        ),
        [],
    ),
    'spark': (
        128,
        dict(
            type='SparK',
            input_size=128,
            enc_dec_norm_cfg=dict(type='SparseLN2d', eps=1e-6),
            enc_dec_norm_dim=32,
            backbone=dict(
                type='SparseConvNeXt',
                arch=CONVNEXT,
                out_indices=[0, 1, 2, 3],
                gap_before_output=False,
                layer_scale_init_value=0.0,
                use_grn=True,
            ),
            neck=dict(
                type='SparKLightDecoder',
                feature_dim=32,
                upsample_ratio=32,
                norm_cfg=dict(type='BN'),
            ),
            head=dict(type='SparKPretrainHead', loss=PIXELS),
        ),
        [],
    ),
}
GRIDS = {'mae': (8, 16, 32), 'simmim': (4, 2, 8), 'fcmae': (4, 2, 8), 'spark': (4, 2, 8)}
"""Side of the grid; kept and thrown tokens of an image at a throw ratio of 0.5."""
STEPS, SIDE = 4, 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photographs' worth of noise."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for index in range(4):
        noise = rng.integers(0, 255, (140, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / 'images' / f'{index}.png')
    return tmp_path


def settings(name: str, folder: Path, hook: dict[str, Any] | None, work: str) -> Config:
    """Two epochs of two steps, as ``mim train`` runs them."""
    size, framework, masks = copy.deepcopy(FRAMEWORKS[name])
    crop = dict(type='RandomResizedCrop', scale=size)
    pipeline = [dict(type='LoadImageFromFile'), crop, *masks, dict(type='PackInputs')]
    hooks = [] if hook is None else [dict(type='ReconstructionHook', side=SIDE, **hook)]
    return Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(
                imports=[
                    'prmim_adapters.openmmlab',
                    'prmim_adapters.visualization.reconstruction_hook',
                ]
            ),
            model=dict(type='PRMIM', throw_ratio=0.5, framework=framework),
            data_preprocessor=PREPROCESSOR,
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=dict(
                    type='CustomDataset',
                    data_root=str(folder / 'images'),
                    with_label=False,
                    pipeline=pipeline,
                ),
            ),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            visualizer=dict(
                type='UniversalVisualizer', vis_backends=[dict(type='TensorboardVisBackend')]
            ),
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1), checkpoint=None),
            custom_hooks=hooks,
            randomness=dict(seed=0),
            log_level='ERROR',
            log_processor=dict(window_size=1),
            work_dir=str(folder / work),
            experiment_name=f'{folder.name}_{name}_{work}',
        )
    )


def trained(config: Config) -> Runner:
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def events(runner: Runner) -> EventAccumulator:
    (file,) = Path(runner.work_dir).rglob('events.out.tfevents.*')
    return EventAccumulator(str(file), dict(images=0, scalars=0)).Reload()


@pytest.mark.parametrize('name', FRAMEWORKS)
def test_event_file_holds_pictures_and_both_losses(name: str, folder: Path) -> None:
    """The pictures' partition is the model's; the losses make up the framework's own."""
    grid, kept, thrown = GRIDS[name]
    runner = trained(settings(name, folder, dict(num_images=2), 'hook'))
    found = events(runner)
    pictures = found.Images('reconstruction')
    assert [picture.step for picture in pictures] == [0, 2, 4]
    for picture in pictures:
        sheet = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)).convert('RGB'))
        assert sheet.shape[1] == 5 * (SIDE + 6) + 6
        for row in range(2):
            top, left = 22 + 6 + row * (SIDE + 6), 6 + 2 * (SIDE + 6)
            cell = SIDE // grid
            centres = sheet[top + cell // 2 : top + SIDE : cell, left + cell // 2 :: cell][:, :grid]
            assert (centres == (31, 102, 184)).all(-1).sum() == kept
            assert (centres == (245, 168, 64)).all(-1).sum() == thrown
    values = {
        tag: [event.value for event in found.Scalars(tag)]
        for tag in ('loss', 'loss_kept', 'loss_thrown')
    }
    assert [len(series) for series in values.values()] == [STEPS] * 3
    for loss, of_kept, of_thrown in zip(*values.values(), strict=True):
        mixed = (kept * of_kept + thrown * of_thrown) / (kept + thrown)
        assert math.isclose(loss, mixed, rel_tol=1e-5)
        assert of_kept != of_thrown


@pytest.mark.parametrize('name', FRAMEWORKS)
def test_training_is_the_same_without_it_to_the_bit(name: str, folder: Path) -> None:
    hook = dict(interval=1, by_epoch=False, images=str(folder / 'images'), num_images=3)
    with_it = trained(settings(name, folder, hook, 'with'))
    after = torch.rand(3), np.random.rand()
    without = trained(settings(name, folder, None, 'without'))
    assert torch.equal(after[0], torch.rand(3)) and after[1] == np.random.rand()
    theirs, ours = without.model.state_dict(), with_it.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert len(events(with_it).Images('reconstruction')) == STEPS + 1


def test_pictures_are_of_the_files_and_folders_given(folder: Path) -> None:
    file = str(folder / 'images' / '3.png')
    runner = Runner.from_cfg(settings('mae', folder, dict(images=file), 'one'))
    (hook,) = [h for h in runner.hooks if isinstance(h, ReconstructionHook)]
    hook._batch = hook._read(runner, runner.model)
    assert hook._batch['inputs'].shape[0] == 1
    assert hook._batch['data_samples'][0].img_path == file


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(interval=0), ValueError, 'interval=0 must be at least 1'),
        (dict(num_images=2.0), TypeError, r'num_images=2.0 \(float\): expected a whole number'),
        (dict(by_epoch='no'), TypeError, "by_epoch='no'"),
        (dict(channels=[0, 1]), ValueError, r'channels=\[0, 1\]: give three'),
        (dict(channels=3), ValueError, 'channels=3: give three'),
        (dict(channels='rgb'), ValueError, "channels='rgb': give three"),
        (dict(channels=[0, 1.5, 2]), TypeError, 'channels=1.5'),
        (dict(channels=[-1, 0, 1]), ValueError, 'channels=-1'),
        (dict(seed=-1), ValueError, 'seed=-1'),
        (dict(images=5), ValueError, 'images=5: give files and folders, or None'),
        (dict(images=''), ValueError, "images=''"),
        (dict(images=[]), ValueError, r'images=\[\]'),
        (dict(images=['a.png', 5]), ValueError, r"images=\['a.png', 5\]"),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        HOOKS.build(dict(type='mmpretrain.ReconstructionHook', **options))


CAPTURED = {'more_hooks': [{'type': 'mmpretrain.CUDAGraphHook'}]}


@pytest.mark.parametrize(
    ('changes', 'hook', 'error', 'message'),
    [
        ({}, dict(images='nowhere.png'), FileNotFoundError, 'nowhere.png: no such file or folder'),
        ({'visualizer.vis_backends': None}, {}, ValueError, 'the visualizer has no backend'),
        ({'compile': True}, {}, ValueError, r'with a compiled model.*: set losses=False, or leave'),
        (CAPTURED, {}, ValueError, 'losses=True with CUDAGraphHook: set losses=False, or leave'),
        (
            {'train_dataloader.dataset.pipeline.1.scale': 48},
            {},
            ValueError,
            'images of 48 x 48 pixels, the model takes 32 x 32',
        ),
    ],
    ids=['no image', 'no backend', 'compiled', 'captured', 'size'],
)
def test_mistakes_show_before_the_first_step(
    folder: Path,
    changes: dict[str, Any],
    hook: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    config = settings('mae', folder, hook, 'mistake')
    config.custom_hooks += changes.get('more_hooks', [])
    config.merge_from_dict({k: v for k, v in changes.items() if k != 'more_hooks'})
    runner = Runner.from_cfg(config)
    with pytest.raises(error, match=message):
        runner.train()
    assert runner.iter == 0


def test_other_processes_do_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        'prmim_adapters.visualization.reconstruction_hook.is_main_process', lambda: False
    )
    runner = trained(settings('mae', folder, {}, 'other'))
    assert events(runner).Tags()['images'] == []
    assert 'loss_kept' not in events(runner).Tags()['scalars']


def test_ratio_0_trains_and_says_that_nothing_is_drawn(folder: Path) -> None:
    config = settings('mae', folder, {}, 'zero')
    config.model.throw_ratio = 0.0
    assert events(trained(config)).Tags()['images'] == []


def test_losses_by_role_of_plain_partial_reconstruction(folder: Path) -> None:
    """Thrown tokens carry no loss: the kept ones' is the model's."""
    config = settings('mae', folder, None, 'plain')
    config.model.update(sampler='random', aggregator=None)
    model = build_model(config)
    with recorded(model) as (partitions, compared):
        loss = model(torch.rand(2, 3, 32, 32), mode='loss')['loss']
    assert partial_of(model).throw_ratio == 0.5
    found = losses_by_role(model, partitions[0], *compared[0])
    assert found == {'loss_kept': pytest.approx(loss.item())}
