# SPDX-License-Identifier: Apache-2.0
"""One realistic batch for a config, without its data files.

The config's own training pipeline runs on random pixels in place of an image file, so image size,
views and mask are those of training; the model's data preprocessor then runs on the collated
samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from torch import nn

from .loss_path import Batch, seeded

_RAW_SIZE = (320, 400)  # height, width of the random "photograph"


def make_batch(
    config: Config | str | Path | nn.Module,
    model: nn.Module | None = None,
    *,
    batch_size: int = 2,
    seed: int = 0,
) -> Batch:
    """Build a preprocessed batch of random images for a pre-training config or model.

    Args:
        config: an mmpretrain config or its path; its training pipeline makes the samples. A model
            instead: images of its backbone's ``img_size`` and no ``data_samples``, for models
            that draw their own mask.
        model: whose data preprocessor and device to use; without it, one is built on the CPU.
        batch_size: number of images B, at least 1.
        seed: of the pixels, the augmentations and the masks.

    Returns:
        ``dict(inputs=..., data_samples=...)``; inputs (B, 3, H, W) float32, normalised, or a list
        of such views.

    Raises:
        ValueError: no training pipeline in the config, or the model does not say its image size.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1')
    if isinstance(config, nn.Module):
        return _from_model(config, batch_size, seed)
    if not isinstance(config, Config):
        config = Config.fromfile(config)
    import mmpretrain.datasets  # noqa: F401 (registers the transforms)

    init_default_scope(config.get('default_scope') or 'mmpretrain')
    pipeline, preprocessor = _pipeline_without_files(config), _preprocessor(config, model)
    with seeded(seed):
        samples = [pipeline(_raw_sample(index)) for index in range(batch_size)]
        return preprocessor(default_collate(samples), True)


def _from_model(model: nn.Module, batch_size: int, seed: int) -> Batch:
    size = getattr(getattr(model, 'backbone', model), 'img_size', None)
    if size is None:
        raise ValueError(
            f'{type(model).__name__} does not say its image size (no `img_size` on its '
            'backbone); give make_batch the config instead'
        )
    height, width = (size, size) if isinstance(size, int) else size
    with seeded(seed):
        inputs = torch.randn(batch_size, 3, height, width)
    return {'inputs': inputs.to(next(model.parameters()).device), 'data_samples': None}


def _pipeline_without_files(config: Config) -> Any:
    from mmcv.transforms import Compose

    dataset = config.get('train_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:  # RepeatDataset and the like
        dataset = dataset['dataset']
    steps = [step for step in dataset.get('pipeline', ()) if not _reads_files(step)]
    if not steps:
        raise ValueError(
            f'{config.filename or "the config"} has no `train_dataloader.dataset.pipeline`: '
            'image size and mask are unknown, so no batch can be made'
        )
    return Compose(steps)


def _reads_files(step: dict) -> bool:
    return str(step['type']).rpartition('.')[2].startswith('Load')


def _raw_sample(index: int) -> dict[str, Any]:
    image = np.random.randint(0, 256, (*_RAW_SIZE, 3), dtype=np.uint8)
    return {
        'img': image,
        'img_shape': _RAW_SIZE,
        'ori_shape': _RAW_SIZE,
        'gt_label': 0,
        'sample_idx': index,
    }


def _preprocessor(config: Config, model: nn.Module | None) -> Any:
    if model is not None:
        return model.data_preprocessor
    from mmpretrain.registry import MODELS

    settings = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    if settings is None:
        raise ValueError(f'{config.filename or "the config"} has no `data_preprocessor`')
    return MODELS.build(settings)
