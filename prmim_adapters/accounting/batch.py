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
from torch import Tensor, nn

from ..core.seeding import seeded
from ..openmmlab.config_files import building
from ..openmmlab.models import (
    build_model,
    input_channels,
    load_config,
    scope_of,
    training_pipeline,
)
from .loss_path import Batch

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
        model: whose channels, data preprocessor and device to use; without it, one is built on
            the CPU.
        batch_size: number of images B, at least 1.
        seed: of the pixels, the augmentations and the masks.

    Returns:
        ``dict(inputs=..., data_samples=...)``; inputs (B, C, H, W) float32, normalised, or a list
        of such views.

    Raises:
        ValueError: no training pipeline in the config, or the model does not say its image size.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size} must be at least 1')
    if isinstance(config, nn.Module):
        return _from_model(config, batch_size, seed)
    if not isinstance(config, Config):
        config = load_config(config)
    steps = training_pipeline(config)
    if model is None:
        with seeded(seed):
            model = build_model(config)
    with scope_of(config), seeded(seed):
        with building(config, 'its training pipeline'):
            pipeline = _compose(steps)
        channels = input_channels(model)
        samples = [_made(pipeline, _raw_sample(i, channels)) for i in range(batch_size)]
        return model.data_preprocessor(default_collate(samples), True)


def repeated(batch: Batch, batch_size: int) -> Batch:
    """A batch of ``batch_size`` images: those of ``batch`` over and over, on the same device.

    Measurements need large batches, not different images; making those takes longer than a step.
    """
    inputs, samples = batch['inputs'], batch['data_samples']
    first = inputs if isinstance(inputs, Tensor) else inputs[0]
    index = torch.arange(batch_size, device=first.device) % len(first)
    inputs = inputs[index] if isinstance(inputs, Tensor) else [view[index] for view in inputs]
    if samples is not None:
        samples = [samples[i % len(first)] for i in range(batch_size)]
    return {**batch, 'inputs': inputs, 'data_samples': samples}


def first_batch(loader: Any, model: Any, batch_size: int = 2) -> Batch:
    """The first images of a training set, as its data loader would hand them over, preprocessed.

    Nothing is drawn from the loader, whose sampler may remember it, and the random state stays as
    it was; all processes see the same batch.

    Args:
        loader: of training.
        model: whose data preprocessor to use.
        batch_size: number of images.
    """
    with seeded(0):
        samples = [loader.dataset[index % len(loader.dataset)] for index in range(batch_size)]
        batch = model.data_preprocessor(loader.collate_fn(samples), True)
    return {'inputs': batch['inputs'], 'data_samples': batch.get('data_samples')}


def _from_model(model: nn.Module, batch_size: int, seed: int) -> Batch:
    size = getattr(getattr(model, 'backbone', model), 'img_size', None)
    if size is None:
        raise ValueError(
            f'{type(model).__name__} does not say its image size (no `img_size` on its '
            'backbone); give make_batch the config instead'
        )
    height, width = (size, size) if isinstance(size, int) else size
    with seeded(seed):
        inputs = torch.randn(batch_size, input_channels(model), height, width)
    return {'inputs': inputs.to(next(model.parameters()).device), 'data_samples': None}


def _compose(steps: list[Any]) -> list[Any]:
    import mmpretrain.datasets  # noqa: F401 (registers the transforms)
    from mmcv.transforms import Compose

    return Compose(steps).transforms


class _FileWantedError(KeyError):
    """A step reads the image from its file."""


class _WithoutFile(dict):
    """A sample with pixels and no file."""

    def __missing__(self, key: str) -> Any:
        raise (_FileWantedError if 'path' in key or 'file' in key else KeyError)(key)


def _made(pipeline: list[Any], sample: Any) -> Any:
    """The sample after all steps but those that load the image, whatever they are called."""
    for step in pipeline:
        try:
            sample = step(sample)
        except _FileWantedError:
            continue
    return sample


def _raw_sample(index: int, channels: int) -> _WithoutFile:
    """What loading gives: (H, W, C), or (H, W) with one channel."""
    shape = _RAW_SIZE if channels == 1 else (*_RAW_SIZE, channels)
    return _WithoutFile(
        img=np.random.randint(0, 256, shape, dtype=np.uint8),
        img_shape=_RAW_SIZE,
        ori_shape=_RAW_SIZE,
        gt_label=0,
        sample_idx=index,
    )
