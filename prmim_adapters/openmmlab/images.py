# SPDX-License-Identifier: Apache-2.0
"""Image files that cannot be read are named, and may be skipped; a whole data set in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import mmpretrain.datasets.transforms  # noqa: F401 (registers the transform that is replaced here)
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile as PlainLoadImageFromFile
from mmengine.dataset import default_collate
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS
from mmpretrain.registry import DATASETS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import Dataset

from ..core.options import check_choice, check_whole
from .checkpoints import one_line

UNREADABLE = ('stop', 'skip')


class UnreadableImageError(ValueError):
    """An image file that is missing, damaged, or no image; names the file."""


@TRANSFORMS.register_module(force=True)
class LoadImageFromFile(PlainLoadImageFromFile):
    """mmcv's transform of that name, which names the file that it cannot read, and may skip it.

    Args:
        *args, **options: mmcv's.
        unreadable: 'stop' raises; 'skip' logs the file with a warning, once, and gives None, for
            which mmengine's training data sets take another image at random.

    Raises:
        UnreadableImageError: in ``transform``, for a file that cannot be read, unless skipped.
    """

    def __init__(self, *args: Any, unreadable: str = 'stop', **options: Any) -> None:
        super().__init__(*args, **options)
        self.skips = check_choice('unreadable', unreadable, UNREADABLE) == 'skip'
        self.skipped: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load ``results['img_path']``; see the class."""
        path = str(results['img_path'])
        try:
            return super().transform(results)
        # Decoders and file clients have exceptions of their own, as cv2.error.
        except Exception as error:
            reason = one_line(error) or 'no image'
            refusal = UnreadableImageError(
                f'{path} cannot be read as an image: {type(error).__name__}: {reason}'
            )
            if not self.skips:
                raise refusal from error
        if path not in self.skipped:
            self.skipped.add(path)
            _warn(f'skipped, {len(self.skipped)} so far in this process: {refusal}')
        return None


@DATASETS.register_module()
class InMemoryImages(Dataset):
    """All images of an mmpretrain data set as one uint8 tensor.

    Args:
        dataset: config of any mmpretrain data set of images, with labels or without. Its
            ``pipeline`` must end in ``img`` arrays (H, W, C), or (H, W), of one size:
            ``[dict(type='LoadImageFromFile')]`` when the files have that size already, with a
            resize and a centre crop otherwise.
        per_class: number of images to take of each class, in the data set's order; None = all.
        unreadable: 'stop' at the first file that cannot be read, or 'skip' such files, each with
            a warning, and their number with another.

    Raises:
        UnreadableImageError: A file cannot be read.
        ValueError: The images differ in size, a class has fewer images than ``per_class``, there
            are no classes, or ``dataset`` itself would put other images in the place of unreadable
            ones.
    """

    def __init__(
        self,
        dataset: dict[str, Any],
        per_class: int | None = None,
        unreadable: str = 'stop',
    ) -> None:
        skips = check_choice('unreadable', unreadable, UNREADABLE) == 'skip'
        if _replaces_images(dataset):
            raise ValueError(
                "the pipeline inside InMemoryImages has unreadable='skip' or ignore_empty, which "
                'would give other images under the labels of unreadable ones: give InMemoryImages '
                "itself unreadable='skip'"
            )
        source, labels = listed_images(dataset, per_class)
        labelled = None not in labels.tolist()
        chosen, images = _read(source, labels, per_class, skips)
        self.images = _stack(images)
        self.labels = torch.from_numpy(labels[chosen].astype(int)) if labelled else None
        self.metainfo = dict(source.metainfo)
        self._samples = [DataSample() for _ in chosen]
        if self.labels is not None:
            for sample, label in zip(self._samples, self.labels, strict=True):
                sample.set_gt_label(label)

    def __len__(self) -> int:
        return len(self.images)

    def full_init(self) -> None:
        """For mmengine's dataset wrappers, which call it: the images are in memory already."""

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The label, as mmengine's data sets give it; nothing of an image without one."""
        return {} if self.labels is None else dict(gt_label=int(self.labels[index]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(inputs=self.images[index], data_samples=self._samples[index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch: inputs (B, C, H, W) uint8 and a list of B data samples."""
        return dict(
            inputs=self.images[torch.as_tensor(indices)],
            data_samples=[self._samples[index] for index in indices],
        )


@FUNCTIONS.register_module()
def ready_batch(batch: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """The ``collate_fn`` of :class:`InMemoryImages`, whose batches arrive collated.

    A list of single samples, which a wrapper such as ``RepeatDataset`` hands over, is collated.
    """
    return default_collate(batch) if isinstance(batch, list) else batch


def listed_images(dataset: dict[str, Any], per_class: int | None) -> tuple[Any, np.ndarray]:
    """What :class:`InMemoryImages` would read: the data set, and a label or None for each image.

    Raises:
        ValueError: ``per_class`` images of each class are not there.
    """
    source = DATASETS.build(dataset)
    labels = np.asarray([source.get_data_info(i).get('gt_label') for i in range(len(source))])
    if per_class is not None:
        check_whole('InMemoryImages: per_class', per_class, 1)
        if None in labels.tolist():
            raise ValueError(
                f'per_class={per_class}, but images have no labels: leave per_class out'
            )
        first_of_each(labels, per_class)
    return source, labels


def image_sample(image: np.ndarray, label: Any) -> dict[str, Any]:
    """What :class:`InMemoryImages` gives for an array (H, W, C) or (H, W) and its label, or None."""
    sample = DataSample() if label is None else DataSample().set_gt_label(label)
    return dict(inputs=_stack([image])[0], data_samples=sample)


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, ascending, of the first ``count`` images of every class.

    Raises:
        ValueError: A class has fewer.
    """
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    smallest = min(len(indices) for indices in classes)
    if smallest < count:
        raise ValueError(
            f'per_class={count}, but one class has {smallest} images: ask for at most {smallest}'
        )
    return np.sort(np.concatenate([indices[:count] for indices in classes]))


def _read(
    source: Any, labels: np.ndarray, per_class: int | None, skips: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Indices, ascending, and images of the first ``per_class`` readable ones of every class."""
    chosen: list[int] = []
    images: list[np.ndarray] = []
    left = dict.fromkeys(labels.tolist(), len(labels) if per_class is None else per_class)
    skipped = 0
    for index, label in enumerate(labels.tolist()):
        if not left[label]:
            continue
        try:
            images.append(source[index]['img'])
        except UnreadableImageError as error:
            if not skips:
                raise
            skipped += 1
            _warn(f'skipped: {error}')
        else:
            chosen.append(index)
            left[label] -= 1
    if skipped:
        _warn(f'InMemoryImages: {skipped} unreadable images skipped, {len(chosen)} read')
    if per_class is not None and any(left.values()):
        fewest = per_class - max(left.values())
        raise ValueError(f'per_class={per_class}, but one class has {fewest} readable images')
    return np.asarray(chosen, dtype=int), images


def _stack(images: list[np.ndarray]) -> Tensor:
    """Arrays (H, W, C) or (H, W) -> tensor (N, C, H, W)."""
    sizes = {image.shape for image in images}
    if not sizes:
        raise ValueError('InMemoryImages: not one image could be read')
    if len(sizes) > 1:
        raise ValueError(
            f'images of different sizes {sorted(sizes)[:3]}: add a resize and a centre crop to the '
            "data set's pipeline"
        )
    stacked = np.stack([np.atleast_3d(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _replaces_images(config: Any) -> bool:
    """Whether a transform somewhere in a data set's config skips files."""
    if isinstance(config, dict):
        skips = config.get('unreadable') == 'skip' or config.get('ignore_empty')
        return bool(skips) or any(map(_replaces_images, config.values()))
    return isinstance(config, (list, tuple)) and any(map(_replaces_images, config))


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
