# SPDX-License-Identifier: Apache-2.0
"""Model, weights and images for pictures, from a training config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image, UnidentifiedImageError
from torch import nn

from ..adapters import partial_of
from ..core.seeding import seeded
from ..openmmlab.checkpoints import one_line, weights_of
from ..openmmlab.config_files import building
from ..openmmlab.images import UnreadableImageError
from ..openmmlab.models import build_model, input_channels, scope_of
from .pipeline import still_pipeline


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
    model = build_model(config)
    partial = partial_of(model)
    if checkpoint is None:
        with scope_of(config):
            model.init_weights()
        return model
    weights = weights_of(CheckpointLoader.load_checkpoint(checkpoint, 'cpu', 'silent'), checkpoint)
    if not partial.aggregators:  # of throw ratio 0, whose checkpoints may be of another ratio
        weights = {k: v for k, v in weights.items() if '.partial.aggregators.' not in k}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f'{checkpoint} is not a checkpoint of {config.filename}: {one_line(error)}'
        ) from error
    return model


def image_files(paths: Sequence[str | Path], limit: int = 16) -> list[Path]:
    """Files, and the pictures in folders and in folders inside them, by name.

    Args:
        paths: files, taken whatever they are called, and folders.
        limit: most pictures of a folder, spread evenly over it.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: a folder without pictures.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f'{path}: no such file or folder of images')
        if not path.is_dir():
            found.append(path)
            continue
        formats = _formats()
        endings = {end for end, kind in Image.registered_extensions().items() if kind in formats}
        inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in endings and p.is_file())
        if not inside:
            raise ValueError(
                f'{path} is a folder without pictures (.png, .jpg, .webp, .tif and what else Pillow '
                'reads by its ending): give another folder, or files by name, which may be of any kind'
            )
        count = min(limit, len(inside))
        found += [inside[index * len(inside) // count] for index in range(count)]
    return found


def _formats() -> list[str]:
    """What Pillow reads by itself: EPS, whatever a file is called, it hands to Ghostscript to run."""
    Image.init()
    return [name for name in Image.OPEN if name != 'EPS']


def load_images(
    config: Config, model: Any, images: Sequence[str | Path], seed: int = 0
) -> dict[str, Any]:
    """A collated batch of image files, cropped to the middle at the size of training.

    The files are read by the step of the training pipeline that reads files, and the masks that
    the pipeline draws are drawn; its augmentations are left out.

    Args:
        config: whose training pipeline is used, with the crop and the masks of ``DeviceAugment``.
        model: built from the config.
        images: image files of any size.
        seed: of the masks.

    Returns:
        ``dict(inputs, data_samples)``, before the data preprocessor.

    Raises:
        ValueError: no training pipeline; or a file is no image to it, is damaged, or has more
            pixels than Pillow thinks safe.
    """
    channels = input_channels(model)
    swapped = getattr(model.data_preprocessor, '_channel_conversion', False)
    with scope_of(config), seeded(seed):
        with building(config, 'its training pipeline'):
            steps = Compose(still_pipeline(config)).transforms
        return default_collate([_made(steps, _File(path, channels, swapped)) for path in images])


class _File(dict):
    """What a data set gives for a file, and its pixels where no step of the pipeline reads them.

    Data sets in memory hand over arrays of which the model sees red, green and blue: in this order
    unless the data preprocessor turns them round.
    """

    def __init__(self, path: str | Path, channels: int, swapped: bool) -> None:
        super().__init__(img_path=str(path), gt_label=0, sample_idx=0)
        self._channels, self._swapped = channels, swapped

    @property
    def is_read(self) -> bool:
        return super().__contains__('img')

    def __missing__(self, key: str) -> Any:
        if key != 'img':
            raise KeyError(key)
        if self._channels not in (1, 3):
            raise ValueError(
                f'no step of the training pipeline reads files, and the model takes '
                f'{self._channels} channels: add a step that reads such files'
            )
        with Image.open(self['img_path'], formats=_formats()) as image:
            pixels = np.asarray(image.convert('L' if self._channels == 1 else 'RGB'))
        self['img'] = pixels[..., ::-1].copy() if self._swapped else pixels.copy()
        self['img_shape'] = self['ori_shape'] = pixels.shape[:2]
        return self['img']

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key == 'img' else super().get(key, default)

    def __contains__(self, key: object) -> bool:
        return key == 'img' or super().__contains__(key)


def _made(steps: Sequence[Any], sample: Any) -> Any:
    """The sample after all steps; whatever goes wrong while it is read names the file."""
    path = sample['img_path']
    for step in steps:
        reading = isinstance(sample, _File) and not sample.is_read
        try:
            if reading:
                _check_pixels(path)
            sample = step(sample)
        # Decoders raise SyntaxError, struct.error, cv2.error, AssertionError, ...
        except Exception as error:
            if not reading or isinstance(error, UnreadableImageError):
                raise
            raise UnreadableImageError(
                f'{path} cannot be read as an image: {type(error).__name__}: {one_line(error)}'
            ) from error
        if sample is None:  # skipped, as in training
            raise UnreadableImageError(f'{path} cannot be read as an image')
    return sample


def _check_pixels(path: str) -> None:
    """Pillow reads the header only, and raises DecompressionBombError; other files are not its."""
    try:
        with Image.open(path, formats=_formats()):
            return
    except UnidentifiedImageError:
        return
