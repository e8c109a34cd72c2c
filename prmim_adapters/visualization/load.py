# SPDX-License-Identifier: Apache-2.0
"""Model, weights and images for pictures, from a training config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmpretrain.registry import MODELS
from PIL import Image, ImageOps
from torch import nn

from ..adapters import partial_of
from ..core.seeding import seeded
from ..openmmlab.checkpoints import one_line, weights_of

#: Augmentations that a picture does without.
_DROPPED = ('RandomFlip', 'ColorJitter', 'RandomGrayscale', 'GaussianBlur', 'Solarize')
#: Random crops, in whose place the middle of the image is taken.
_CROPS = ('RandomResizedCrop', 'MAERandomResizedCrop', 'BatchRandomResizedCrop', 'BatchRandomCrop')


def load_model(config: Config, checkpoint: str | None = None) -> nn.Module:
    """Build the config's model as the Runner does, on the CPU, with a checkpoint's weights.

    Args:
        config: a pre-training config whose model is of type PRMIM.
        checkpoint: file or URL that mmengine's loader takes; None keeps the initial weights.

    Raises:
        ValueError: the model has no partial reconstruction attached, or the checkpoint is
            damaged, has weights that are not finite, lacks weights of it, or has others.
        UnpicklingError: a URL leads to something else than data.
    """
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    settings = dict(config.model)
    if config.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(settings)
    partial = partial_of(model)
    if checkpoint is None:
        model.init_weights()
        return model
    weights = weights_of(CheckpointLoader.load_checkpoint(checkpoint, 'cpu'), checkpoint)
    if not partial.aggregators:  # of throw ratio 0, whose checkpoints may be of another ratio
        weights = {k: v for k, v in weights.items() if '.partial.aggregators.' not in k}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f'{checkpoint} is not a checkpoint of {config.filename}: {one_line(error)}'
        ) from error
    return model


def load_images(config: Config, images: Sequence[str | Path], seed: int = 0) -> dict[str, Any]:
    """A collated batch of image files, cropped to the middle at the size of training.

    The masks that the config's pipeline draws are drawn; its augmentations are left out.

    Args:
        config: whose training pipeline is used: that of ``train_dataloader.dataset``, or of the
            data set inside it, with the crop and the masks of ``DeviceAugment``.
        images: image files of any size.
        seed: of the masks.

    Returns:
        ``dict(inputs, data_samples)``, before the data preprocessor.

    Raises:
        ValueError: the config's data set has no pipeline.
    """
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    steps: list[Any] = []
    for step in _training_steps(config):
        name = _name(step)
        if name in _CROPS:
            # Where a crop has a size, as torchvision's, its scale is the range of the area.
            steps.append(partial(_middle, size=step['size' if 'size' in step else 'scale']))
        elif name not in (*_DROPPED, 'LoadImageFromFile'):
            steps.append(step)
    pipeline = Compose(steps)
    with seeded(seed):
        return default_collate([pipeline(_sample(path)) for path in images])


def _name(step: dict[str, Any]) -> str:
    return step['type'].split('/')[-1].split('.')[-1]


def _training_steps(config: Config) -> list[dict[str, Any]]:
    """The data set's pipeline, and of ``DeviceAugment`` the crops and the masks."""
    dataset = config.train_dataloader.dataset
    while 'pipeline' not in dataset:
        if not isinstance(dataset.get('dataset'), dict):
            raise ValueError(
                f'{config.filename}: data set {dataset.get("type")} has neither a pipeline nor one '
                'data set with a pipeline inside: give train_dataloader.dataset.pipeline'
            )
        dataset = dataset.dataset
    steps = list(dataset.pipeline)
    preprocessor = config.get('data_preprocessor') or config.model.get('data_preprocessor') or {}
    steps += [step for step in preprocessor.get('augment', ()) if _name(step) in _CROPS]
    if preprocessor.get('mask_generator'):
        steps.append(preprocessor['mask_generator'])
    if not any(_name(step) == 'PackInputs' for step in steps):
        steps.append(dict(type='PackInputs'))
    return steps


def _middle(results: dict[str, Any], size: int | Sequence[int]) -> dict[str, Any]:
    """The largest part of the aspect ratio of ``size`` (h, w), around the middle, at that size."""
    height, width = (size, size) if isinstance(size, int) else size
    image = Image.fromarray(results['img'])
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return dict(results, img=np.array(fitted), img_shape=(height, width))


def _sample(path: str | Path) -> dict[str, Any]:
    """What LoadImageFromFile gives; grey and palette images become BGR as well.

    Raises:
        ValueError: the file is no image, is damaged, or has more pixels than Pillow thinks safe.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert('RGB'))[..., ::-1].copy()
    # Pillow's decoders also raise SyntaxError, struct.error, DecompressionBombError, ...
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as an image: {type(error).__name__}: {one_line(error)}'
        ) from error
    return dict(
        img=pixels,
        img_path=str(path),
        img_shape=pixels.shape[:2],
        ori_shape=pixels.shape[:2],
        gt_label=0,
        sample_idx=0,
    )
