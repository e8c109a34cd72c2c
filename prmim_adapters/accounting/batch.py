# SPDX-License-Identifier: Apache-2.0
"""One realistic batch for a config, without its data files.

The config's own training pipeline runs on random pixels in place of an image file, so that image size, number of
views and mask are those of training; then the model's data preprocessor runs on the collated samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from torch import nn

Batch = dict[str, Any]
"""What ``model.loss`` takes: ``inputs``, a tensor (B, 3, H, W) or a list of them (views), and ``data_samples``."""

_RAW_SIZE = (320, 400)  # height, width of the random "photograph"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python, numpy and torch inside the block and restores their states after it."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def make_batch(
    config: Config | str | nn.Module,
    model: nn.Module | None = None,
    *,
    batch_size: int = 2,
    seed: int = 0,
) -> Batch:
    """Builds a preprocessed batch of random images for a pre-training config or model.

    Args:
        config: an mmpretrain config or its path; its ``train_dataloader.dataset.pipeline`` makes the samples. A model
            instead: images of its backbone's ``img_size`` and no ``data_samples``, for models that draw their own mask.
        model: whose data preprocessor (and device) to use. Without it, the config's ``data_preprocessor`` is built.
        batch_size: number of images B, at least 1.
        seed: of the pixels, the augmentations and the masks.

    Returns:
        ``dict(inputs=..., data_samples=...)``; inputs (B, 3, H, W), float, normalised.

    Raises:
        ValueError: the config has no training pipeline, or the model does not say its image size.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size is {batch_size}; it must be at least 1')
    if isinstance(config, nn.Module):
        return _batch_for_model(config, batch_size, seed)
    if isinstance(config, str):
        config = Config.fromfile(config)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    pipeline = _pipeline_without_files(config)
    with seeded(seed):
        samples = [pipeline(_raw_sample(index)) for index in range(batch_size)]
        return _preprocessor(config, model)(default_collate(samples), True)


def _batch_for_model(model: nn.Module, batch_size: int, seed: int) -> Batch:
    size = getattr(getattr(model, 'backbone', model), 'img_size', None)
    if size is None:
        raise ValueError(
            f'{type(model).__name__} does not say its image size (no `img_size` on its backbone); '
            'give make_batch the config instead'
        )
    height, width = (size, size) if isinstance(size, int) else size
    parameter = next(model.parameters())
    with seeded(seed):
        inputs = torch.randn(batch_size, 3, height, width).to(parameter.device)
    return dict(inputs=inputs, data_samples=None)


def _pipeline_without_files(config: Config) -> Any:
    from mmcv.transforms import Compose

    dataset = config.get('train_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset and 'dataset' in dataset:  # RepeatDataset and the like
        dataset = dataset['dataset']
    steps: Sequence[dict] = dataset.get('pipeline', ())
    steps = [step for step in steps if not str(step['type']).split('.')[-1].startswith('Load')]
    if not steps:
        raise ValueError(
            f'{config.filename or "the config"} has no `train_dataloader.dataset.pipeline`; '
            'a batch cannot be made without knowing image size and mask'
        )
    return Compose(steps)


def _raw_sample(index: int) -> dict[str, Any]:
    image = np.random.randint(0, 256, (*_RAW_SIZE, 3), dtype=np.uint8)
    return dict(img=image, img_shape=_RAW_SIZE, ori_shape=_RAW_SIZE, gt_label=0, sample_idx=index)


def _preprocessor(config: Config, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model.data_preprocessor  # type: ignore[return-value]
    from mmpretrain.registry import MODELS

    settings = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    if settings is None:
        raise ValueError(f'{config.filename or "the config"} has no `data_preprocessor`')
    return MODELS.build(settings)
