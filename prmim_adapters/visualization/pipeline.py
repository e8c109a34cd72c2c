# SPDX-License-Identifier: Apache-2.0
"""The training pipeline without its chance: for pictures of whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import RandomFlip, RandomGrayscale
from mmengine.config import Config
from mmpretrain.datasets import transforms as mm
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import v2

from ..openmmlab.device_dataset import BatchCrop, DeviceAugment, augmentation_class
from ..openmmlab.models import preprocessor_settings, training_pipeline
from ..openmmlab.types import is_a

#: Augmentations that a picture does without.
_AUGMENTATIONS = (
    *(RandomFlip, RandomGrayscale, mm.ColorJitter, mm.Lighting, mm.RandomErasing),
    *(mm.BaseAugTransform, mm.AutoAugment, mm.RandAugment, tv.ColorJitter, tv.GaussianBlur),
    *(tv.RandomHorizontalFlip, tv.RandomVerticalFlip, tv.RandomGrayscale, tv.RandomSolarize),
    *(tv.RandomErasing, tv.AutoAugment, tv.RandAugment, tv.TrivialAugmentWide, tv.AugMix),
)
#: Random crops, in whose place the middle of the image is taken, and the settings of their sizes.
_CROPS: dict[type, tuple[str, ...]] = {
    mm.RandomResizedCrop: ('scale',),
    mm.RandomCrop: ('crop_size',),
    mm.RandomResizedCropAndInterpolationWithTwoPic: ('size', 'second_size'),
    tv.RandomResizedCrop: ('size',),
    tv.RandomCrop: ('size',),
}
_DEVICE_CROPS = (BatchCrop, v2.RandomResizedCrop, v2.RandomCrop)


def still_pipeline(config: Config) -> list[Any]:
    """Steps from a file to a packed sample; what ``DeviceAugment`` crops and masks is among them.

    Raises:
        ValueError: the config has no training pipeline.
    """
    steps = training_pipeline(config)
    packing = next(i for i, step in enumerate(steps) if is_a(step, TRANSFORMS, mm.PackInputs))
    return list(_still([*steps[:packing], *_on_device(config), *steps[packing:]]))


def _on_device(config: Config) -> Iterator[Any]:
    settings = preprocessor_settings(config)
    if not is_a(settings, MODELS, DeviceAugment):
        return
    for step in settings.get('augment', ()):
        if issubclass(augmentation_class(step), _DEVICE_CROPS):
            yield partial(_middle, sizes=[step['size']])
    if settings.get('mask_generator'):
        yield settings['mask_generator']


def _still(steps: Sequence[Any]) -> Iterator[Any]:
    for step in steps:
        if not isinstance(step, dict):
            yield step
        elif crop := next((c for c in _CROPS if is_a(step, TRANSFORMS, c)), None):
            sizes = [step[key] for key in _CROPS[crop] if step.get(key) is not None]
            if crop is mm.RandomResizedCropAndInterpolationWithTwoPic:  # (width, height)
                sizes = [s if isinstance(s, int) else s[::-1] for s in sizes]
            yield partial(_middle, sizes=sizes)
        elif not is_a(step, TRANSFORMS, *_AUGMENTATIONS):
            inner = step.get('transforms')
            if inner is None:
                yield step
            elif isinstance(inner[0], (list, tuple)):  # several views
                yield {**step, 'transforms': [list(_still(view)) for view in inner]}
            elif kept := list(_still(inner)):
                yield {**step, 'transforms': kept}


def _middle(results: dict[str, Any], sizes: Sequence[int | Sequence[int]]) -> dict[str, Any]:
    """The largest part of the aspect ratio of each size (h, w), around the middle, at that size."""
    shapes = [(s, s) if isinstance(s, int) else (s[0], s[-1]) for s in sizes]
    image = results['img']
    made: list[Any] = [_fitted(np.asarray(image), shape) for shape in shapes]
    if isinstance(image, Image.Image):
        made = [Image.fromarray(part) for part in made]
    results['img'] = made[0] if len(made) == 1 else made
    results['img_shape'] = shapes[0]
    return results


def _fitted(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(h, w) or (h, w, C) of any type -> the same at ``shape``; antialiased, as Pillow resamples."""
    scale = min(image.shape[0] / shape[0], image.shape[1] / shape[1])
    size = [round(side * scale) for side in shape]
    top, left = ((full - part) // 2 for full, part in zip(image.shape, size, strict=False))
    part = image[top : top + size[0], left : left + size[1]]
    if part.shape[:2] == tuple(shape):
        return part
    planes = torch.from_numpy(np.atleast_3d(part).astype(np.float32)).permute(2, 0, 1)
    planes = F.interpolate(planes[None], shape, mode='bilinear', antialias=True)[0]
    result = planes.permute(1, 2, 0).reshape(*shape, *image.shape[2:]).numpy()
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        result = result.round().clip(limits.min, limits.max)
    return result.astype(image.dtype)
