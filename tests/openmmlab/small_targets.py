# SPDX-License-Identifier: Apache-2.0
"""The shipped configs of MILAN, CAE and iTPN made small: 64 pixels, 8 x 8 patches, one layer or two.

Their target networks are mmpretrain's own classes, small and with random weights. The images are
tiles of photographs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.models.utils.clip_generator_helper import CLIP

CONFIGS = Path(__file__).parents[2] / 'configs' / 'mmpretrain'
STEPS, IMAGES = 10, 8  # of an epoch, of a step
_WIDTH, _TARGET, _GRID, _MASKED = 48, 16, 8, 26
_ARCH = dict(embed_dims=_WIDTH, num_layers=2, num_heads=2, feedforward_channels=96)
_BACKBONE = dict(img_size=8 * _GRID, patch_size=8)
_HIVIT = dict(
    **_BACKBONE, arch=dict(embed_dims=_WIDTH, depths=[1, 1, 2], num_heads=2), out_indices=[1]
)
_PYRAMID = dict(num_patches=_GRID**2, patch_size=8, embed_dim=_WIDTH, fpn_dim=16, fpn_depth=1)
_DECODER = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)

SMALL: dict[str, dict[str, Any]] = {
    'milan_prmim_vitb': dict(
        backbone=dict(**_BACKBONE, arch=_ARCH),
        neck=dict(
            num_patches=_GRID**2,
            patch_size=8,
            embed_dim=_WIDTH,
            predict_feature_dim=_TARGET,
            **_DECODER,
        ),
    ),
    'cae_prmim_vitb': dict(
        backbone=dict(**_BACKBONE, arch=_ARCH),
        neck=dict(
            num_classes=32,
            embed_dims=_WIDTH,
            num_heads=2,
            regressor_depth=1,
            decoder_depth=1,
            mask_tokens_num=_MASKED,
        ),
        target_generator=dict(n_hid=4, n_blk_per_group=1, vocab_size=32, init_cfg=None),
    ),
    'itpn_prmim_pixel_hivitb': dict(
        backbone=_HIVIT, neck=dict(**_PYRAMID, **_DECODER), head=dict(patch_size=8)
    ),
    'itpn_prmim_clip_hivitb': dict(
        backbone=_HIVIT,
        neck=dict(**_PYRAMID, decoder_embed_dim=_WIDTH),
        head=dict(embed_dims=_WIDTH, num_embed=_TARGET),
    ),
}
"""Config to changes of the framework's config."""


def small_config(name: str, folder: Path, tiles: Path) -> Config:
    """A config of ``SMALL`` that trains on tiles below ``tiles`` and works in ``folder``."""
    config = Config.fromfile(CONFIGS / f'{name}.py')
    framework = config.model.framework
    framework.backbone.pop('arch')
    for part, changes in SMALL[name].items():
        framework[part].update(changes)
    if framework.get('target_generator', {}).get('type') == 'CLIPGenerator':
        framework.target_generator.tokenizer_path = str(_small_clip(folder / 'clip.pth'))
    config.model.pop('neck', None)  # MILAN's width is set above
    pipeline = config.train_dataloader.dataset.pipeline
    for step in pipeline:
        _shrink(step)
    config.train_dataloader = dict(
        batch_size=IMAGES,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='CustomDataset',
            data_root=str(tiles),
            with_label=False,
            indices=STEPS * IMAGES,
            pipeline=pipeline,
        ),
    )
    config.optim_wrapper = dict(  # AmpOptimWrapper, which most of the recipes ask for, wants a GPU
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05),
        paramwise_cfg=config.optim_wrapper.paramwise_cfg,
    )
    config.param_scheduler = None
    config.train_cfg = dict(by_epoch=True, max_epochs=2)
    config.default_hooks.checkpoint.interval = 1
    config.default_hooks.logger.interval = 1
    config.resume = True
    config.work_dir = str(folder / 'work')
    return config


def _shrink(step: Any) -> None:
    """One step of a pipeline, in place."""
    if step.type == 'RandomResizedCrop':
        step.scale = 8 * _GRID
    elif step.type == 'RandomResizedCropAndInterpolationWithTwoPic':
        step.size = step.second_size = 8 * _GRID
    elif step.type == 'BEiTMaskGenerator':
        step.update(input_size=_GRID, num_masking_patches=_MASKED, min_num_patches=4)
        step.max_num_patches = None


def _small_clip(path: Path) -> Path:
    """Random weights of a CLIP for images of that size."""
    torch.manual_seed(0)
    vision = dict(image_resolution=8 * _GRID, vision_layers=2, vision_width=64)
    text = dict(context_length=4, vocab_size=8, transformer_width=64, transformer_heads=1)
    clip = CLIP(_TARGET, vision_patch_size=8, transformer_layers=1, **vision, **text)
    torch.save(clip.state_dict(), path)
    return path
