# SPDX-License-Identifier: Apache-2.0
"""Labelled images for an evaluation, checked before training rather than hours later."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np


def labels_of(dataset: Any) -> np.ndarray | None:
    """(N,) labels of a data set as it lists them, without reading images; None if it lists none.

    Raises:
        ValueError: an image has no label, or not exactly one class.
    """
    if hasattr(dataset, 'get_data_info'):
        infos = (dataset.get_data_info(index) for index in range(len(dataset)))
        labels = [label_of(info.get('gt_label'), info.get('img_path')) for info in infos]
    elif hasattr(dataset, 'get_gt_labels'):
        labels = [label_of(label) for label in dataset.get_gt_labels()]
    else:
        return None
    return np.asarray(labels, dtype=int)


def check_labels(where: str, labels: np.ndarray, num_classes: int) -> None:
    """Check that all labels are classes.

    Raises:
        ValueError: there is no image, or a label is not in ``[0, num_classes)``.
    """
    if not len(labels):
        raise ValueError(f'{where} has no images')
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f'{where} has the label {low}: labels count from 0')
    if high >= num_classes:
        raise ValueError(
            f'num_classes={num_classes}, but {where} has the label {high}: set '
            f'num_classes={high + 1} or more'
        )


def check_neighbours(where: str, k: int, images: int) -> None:
    """Check that there are as many images as neighbours are asked for.

    Raises:
        ValueError: there are fewer.
    """
    if not 1 <= k <= images:
        raise ValueError(
            f'k={k} neighbours asked of the {images} images of {where}: choose 1 <= k <= {images}'
        )


def check_evaluation_data(
    hook: str, loaders: Sequence[Any], num_classes: int, k: int
) -> list[dict[str, Any]]:
    """Check that the images of two data loaders can vote and be classified.

    Args:
        hook: name for messages.
        loaders: whose images vote, and whose are classified.
        num_classes: number of classes.
        k: number of neighbours.

    Returns:
        A batch of one image of each loader, to try the network on.

    Raises:
        ValueError: a data set without images or labels, a label beyond ``num_classes``, or more
            neighbours than images.
    """
    batches = []
    for name, loader in zip(('train_dataloader', 'test_dataloader'), loaders, strict=True):
        dataset, where = loader.dataset, f'{hook}: {name}'
        if not len(dataset):
            raise ValueError(f'{where} has no images')
        sample = dataset[0]
        labels = labels_of(dataset)
        if labels is None:  # it does not list them: that of the sample at hand
            labels = np.asarray([label_of(sample['data_samples'].get('gt_label'))])
        check_labels(where, labels, num_classes)
        batches.append(loader.collate_fn([sample]))
    check_neighbours(f'{hook}: train_dataloader', k, len(loaders[0].dataset))
    return batches


def label_of(label: Any, path: Any = None) -> int:
    """One whole number, out of what mmpretrain's data sets and samples hold.

    Raises:
        ValueError: no label, or not exactly one class; names the file where it is known.
    """
    where = f' ({path})' if path else ''
    if label is None:
        raise ValueError(
            f'an image{where} has no label (gt_label): the evaluation needs a labelled data set, '
            'such as CustomDataset with a folder for each class and with_label=True'
        )
    values = np.asarray(label).reshape(-1)
    if len(values) != 1 or not isinstance(values[0], Integral):
        raise ValueError(f'an image{where} has the label {label!r}: expected one class number')
    return int(values[0])
