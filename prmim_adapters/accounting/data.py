# SPDX-License-Identifier: Apache-2.0
"""What images cost before they reach the model, and how many cores keep up with a model's steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.runner import Runner

from ..openmmlab.config_files import building
from ..openmmlab.models import load_config, scope_of


@dataclass(frozen=True)
class DataCost:
    """Cost of a config's training data.

    Attributes:
        core_seconds: of one core for an image: reading, decoding, transforms and collation. Time that
            a disk or a network lets the core wait is not in it.
        transforms: name of each step of the pipeline to its part of that.
        workers: of the config, per process.
        batch_seconds: median time between batches from these workers, on this machine.
        batch_size: images of such a batch.
    """

    core_seconds: float
    transforms: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    batch_seconds: float = 0.0
    batch_size: int = 1

    def cores(self, images_per_second: float) -> float:
        """Cores, each busy all the time, that deliver so many images a second."""
        return images_per_second * self.core_seconds

    def markdown(self, speeds: dict[str, float]) -> str:
        """What an image costs, and the cores that each model needs.

        Args:
            speeds: name of a model to the images per second of one process.
        """
        parts = ', '.join(f'{name} {1e3 * cost:.2f}' for name, cost in self.transforms.items())
        needs = ', '.join(f'{name} {self.cores(speed):.1f}' for name, speed in speeds.items())
        per_image = self.batch_seconds / self.batch_size
        return (
            f'Data: an image takes {1e3 * self.core_seconds:.2f} ms of a core'
            f'{f" ({parts})" if parts else ""}. Cores that keep up with one process: {needs}. '
            f"The config's {self.workers} worker(s) took {1e3 * per_image:.2f} ms an image here."
        )


def data_cost(config: str, batch_size: int, images: int = 64, batches: int = 10) -> DataCost:
    """Measure the training data of a config; reads its files.

    Args:
        config: path, or name in a package.
        batch_size: images of a batch.
        images: how many to measure, spread over the data set.
        batches: how many to wait for from the config's own workers.

    Raises:
        FileNotFoundError: the files are not there.
    """
    settings = load_config(config)
    with scope_of(settings), building(settings, 'its training data'):
        return _measured(settings.train_dataloader, batch_size, images, batches)


def _measured(loader: Any, batch_size: int, images: int, batches: int) -> DataCost:
    import mmpretrain.datasets  # noqa: F401 (registers the data sets)

    loader.update(batch_size=batch_size)
    alone = dict(loader, num_workers=0, persistent_workers=False, pin_memory=False)
    alone.pop('prefetch_factor', None)
    in_process = Runner.build_dataloader(alone, seed=0)
    arrivals = _endless(in_process)
    next(arrivals)  # opens files, and imports what is imported late
    count = max(images // batch_size, 1)
    begin = time.process_time()
    for _ in range(count):
        next(arrivals)
    core_seconds = (time.process_time() - begin) / (count * batch_size)
    return DataCost(
        core_seconds,
        _transform_costs(in_process.dataset, images),
        loader.get('num_workers', 0),
        _batch_seconds(_endless(Runner.build_dataloader(loader, seed=0)), batches),
        batch_size,
    )


def _transform_costs(dataset: Any, images: int) -> dict[str, float]:
    """Seconds of a core per image, by step of the pipeline; empty where there is none to look into."""
    costs: dict[str, float] = {}
    chosen = range(0, len(dataset), max(len(dataset) // images, 1))[:images]
    for index in chosen:
        part, place = _wrapped(dataset, index)
        if not isinstance(part, BaseDataset):
            return {}
        data = part.get_data_info(place)
        for transform in part.pipeline.transforms:
            begin = time.process_time()
            data = transform(data)
            name = type(transform).__name__
            costs[name] = costs.get(name, 0.0) + (time.process_time() - begin) / len(chosen)
    return costs


def _wrapped(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that mmengine's wrappers take an image from, and its place there."""
    while isinstance(dataset, (ConcatDataset, RepeatDataset, ClassBalancedDataset)):
        place = dataset._get_ori_dataset_idx(index)
        if isinstance(dataset, ConcatDataset):
            dataset, index = dataset.datasets[place[0]], place[1]
        else:
            dataset, index = dataset.dataset, place
    return dataset, index


def _batch_seconds(arrivals: Iterator[Any], batches: int) -> float:
    next(arrivals)  # starts the workers
    seconds = []
    for _ in range(batches):
        begin = time.perf_counter()
        next(arrivals)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
