# SPDX-License-Identifier: Apache-2.0
"""A data set as one file of uint8 pixels, mapped into memory by every process.

``python -m prmim_adapters.decode_data`` writes it. Training then reads pixels::

    train_dataloader = dict(
        dataset=dict(type='DecodedImages', file='images.npy'),
        collate_fn=dict(type='ready_batch'), ...)
    data_preprocessor = dict(type='DeviceAugment', augment=[dict(type='BatchRandomResizedCrop', ...)])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset


@DATASETS.register_module()
class DecodedImages(Dataset):
    """The images of such a file; pixels stay on the disk until they are asked for.

    Args:
        file: the ``.npy`` file; labels, if there are any, lie beside it in ``<file>.labels.npy``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: they are not what the command writes.
    """

    metainfo: dict[str, Any] = {}

    def __init__(self, file: str) -> None:
        self.file = file
        path, beside = Path(file), labels_of(Path(file))
        if not path.is_file():
            raise FileNotFoundError(
                f'{file}: no such file; it is written by python -m '
                f'prmim_adapters.decode_data CONFIG {file}'
            )
        # Copy on write, as torch wants memory that it may write to.
        try:
            pixels = np.load(path, mmap_mode='c')
        except ValueError:  # numpy's advice is to run what the file holds
            raise ValueError(
                f'{file} cannot be read as a .npy file of numbers; it is written by python -m '
                'prmim_adapters.decode_data CONFIG FILE.npy'
            ) from None
        labels = np.load(beside) if beside.is_file() else None
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 4
            or (labels is not None and labels.shape != pixels.shape[:1])
        ):
            raise ValueError(
                f'{file}: expected uint8 (N, 3, H, W) and N labels or none, found {pixels.dtype} '
                f'{pixels.shape} and {"none" if labels is None else labels.shape}; write it anew'
            )
        self.images = torch.from_numpy(pixels)
        self.labels = None if labels is None else torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.images)

    def full_init(self) -> None:
        """For mmengine's dataset wrappers, which call it."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(inputs=self.images[index], data_samples=self._sample(index))

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch: inputs (B, 3, H, W) uint8 and a list of B data samples."""
        return dict(
            inputs=self.images[torch.as_tensor(indices)],
            data_samples=[self._sample(index) for index in indices],
        )

    def _sample(self, index: int) -> DataSample:
        sample = DataSample()
        return sample if self.labels is None else sample.set_gt_label(self.labels[index])

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers map the file themselves, rather than get a copy of it."""
        return type(self), (self.file,)


def labels_of(path: Path) -> Path:
    """The file of labels beside one of images."""
    return path.with_name(f'{path.name}.labels.npy')
