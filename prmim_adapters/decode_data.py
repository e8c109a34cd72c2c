# SPDX-License-Identifier: Apache-2.0
"""Decode a data set once: ``python -m prmim_adapters.decode_data CONFIG FILE.npy --workers 16``.

The training set of the config is decoded through the steps of its pipeline before ``PackInputs``,
which must give all images one size. :class:`~prmim_adapters.openmmlab.decoded.DecodedImages` reads
the file. An image of 256 x 256 takes 197 kB: ImageNet 252 GB of disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import PackInputs
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import DataLoader

from .errors import described, is_mistake
from .openmmlab.decoded import labels_of
from .openmmlab.models import load_config, scope_of
from .openmmlab.types import is_a


def decode(dataset: dict[str, Any], path: Path, workers: int = 0, force: bool = False) -> int:
    """Decode a data set into a file for :class:`DecodedImages`; there is none before it is whole.

    Args:
        dataset: config of an mmpretrain classification data set, whose ``pipeline`` ends in ``img``
            arrays (H, W, 3) of one size.
        path: the ``.npy`` file to write; labels, if the images have them, beside it.
        workers: processes that decode.
        force: replace a file that is there.

    Returns:
        Number of images.

    Raises:
        FileExistsError: the file is there, and ``force`` is not set.
        ValueError: the images differ in size.
    """
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists; give another name, or --force to replace it')
    source = DATASETS.build(dataset)
    loader = DataLoader(source, batch_size=None, num_workers=workers)
    partial = path.with_name(f'{path.name}.partial')
    pixels: Any = None
    for index, sample in enumerate(loader):
        image = np.asarray(sample['img']).transpose(2, 0, 1)
        if pixels is None:
            shape = (len(source), *image.shape)
            pixels = np.lib.format.open_memmap(partial, 'w+', np.uint8, shape)
        if image.shape != pixels.shape[1:]:
            raise ValueError(
                f'image {index} has {image.shape[1:]} pixels, those before it '
                f'{pixels.shape[2:]}: add dict(type="ResizeEdge", scale=256) and '
                'dict(type="CenterCrop", crop_size=256) to the pipeline'
            )
        pixels[index] = image
    if pixels is None:
        raise ValueError(f'{dataset.get("type")}: the data set has no images')
    pixels.flush()
    labels = [source.get_data_info(i).get('gt_label') for i in range(len(source))]
    path.unlink(missing_ok=True)  # interrupted now, old images would have the new labels
    if None in labels:
        labels_of(path).unlink(missing_ok=True)
    else:
        np.save(labels_of(path), labels)
    partial.replace(path)
    return len(source)


def unpacked(dataset: dict[str, Any]) -> dict[str, Any]:
    """A data set's config without its ``PackInputs``, so that samples hold the image array."""
    steps = [step for step in dataset['pipeline'] if not is_a(step, TRANSFORMS, PackInputs)]
    return {**dataset, 'pipeline': steps}


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode the training set of a config; see the module."""
    parser = argparse.ArgumentParser(description='Decode the training set of a config once.')
    parser.add_argument('config', help='its train_dataloader.dataset is decoded')
    parser.add_argument('file', type=Path, help='the .npy file to write')
    parser.add_argument('--workers', type=int, default=4, help='processes that decode')
    parser.add_argument('--force', action='store_true', help='replace the file')
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        with scope_of(config):
            dataset = unpacked(config.train_dataloader.dataset)
            count = decode(dataset, options.file, options.workers, options.force)
    except Exception as error:
        parser.exit(2 if is_mistake(error) else 1, f'Error: {described(error)}\n')
    print(f'{count} images in {options.file}')


if __name__ == '__main__':
    main()
