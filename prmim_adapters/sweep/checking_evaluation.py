# SPDX-License-Identifier: Apache-2.0
"""Tries what comes after training, before the first point: labelled images, and transfers' metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import FUNCTIONS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from mmpretrain.structures import DataSample

from ..errors import described
from ..openmmlab.images import InMemoryImages, UnreadableImageError, image_sample, listed_images
from ..openmmlab.labelled import check_labels, check_neighbours, label_of, labels_of
from ..openmmlab.types import is_a
from .spec import Spec, SpecError

Batch = dict[str, Any]


def check_evaluation(spec: Spec, must_exist: bool = True) -> list[Batch]:
    """List the images of the evaluation, and read one of each data set.

    Args:
        spec: the sweep, whose configs have been read, so that types of the user's are registered.
        must_exist: False passes over files that are not on this machine, as where Slurm's jobs have
            them; each point checks again before it trains.

    Returns:
        A batch of one image of each loader, to try networks on; none if the files are not here.

    Raises:
        SpecError: images without labels, labels that are no class, one class alone for the linear
            probe, more neighbours than images, or what building the loaders raises.
    """
    evaluation, batches = spec.evaluation, []
    for part, loader in (('train', evaluation.train), ('test', evaluation.test)):
        try:
            with _named(f'evaluation.{part}'):
                labels, images, sample = _listed(loader)
                check_labels('its data set', labels, evaluation.num_classes)
                batches.append(_collated(loader, sample))
                if part == 'train':
                    check_neighbours('its data set', evaluation.k, images)
                    all_listed = len(labels) == images
                    if evaluation.linear_probe and all_listed and len(set(labels.tolist())) < 2:
                        raise ValueError(
                            'its images are of one class, and the linear probe needs two: set '
                            'linear_probe: false'
                        )
        except FileNotFoundError as error:
            if must_exist:
                raise SpecError(f'evaluation.{part}: {described(error)}') from error
            return []
    return batches


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise SpecError(f'{where}: {described(error)}') from error


def _listed(loader: dict[str, Any]) -> tuple[np.ndarray, int, dict[str, Any]]:
    """The labels that a loader's data set lists, its number of images, and one sample.

    No other image is read. A data set of torch lists nothing: its labels are the sample's.
    """
    config = loader.get('dataset') or {}
    if is_a(config, DATASETS, InMemoryImages):
        per_class = config.get('per_class')
        source, raw = listed_images(config['dataset'], per_class)
        labels = np.asarray([label_of(label) for label in raw.tolist()], dtype=int)
        if per_class is not None:
            labels = np.repeat(np.unique(labels), per_class)
        skips = config.get('unreadable') == 'skip'
        return labels, len(labels), image_sample(_first_image(source, skips), raw.tolist()[0])
    dataset = DATASETS.build(config)
    sample = dataset[0]
    listed = labels_of(dataset)
    if listed is None:
        listed = np.asarray([label_of(sample['data_samples'].get('gt_label'))])
    return listed, len(dataset), sample


def _first_image(source: Any, skips: bool) -> np.ndarray:
    """Of a data set whose pipeline ends in ``img``; the first one that can be read if it ``skips``."""
    for index in range(len(source)):
        try:
            return source[index]['img']
        except UnreadableImageError:
            if not skips:
                raise
    raise ValueError('not one image could be read')


def _collated(loader: dict[str, Any], sample: dict[str, Any]) -> Batch:
    collate = loader.get('collate_fn')
    kind = collate.get('type') if isinstance(collate, dict) else None
    if isinstance(kind, str) and FUNCTIONS.get(kind) is None:
        raise ValueError(f"collate_fn: type={kind!r} is not registered; e.g. 'default_collate'")
    alone = dict(loader, dataset=[sample], num_workers=0, persistent_workers=False)
    alone.pop('prefetch_factor', None)
    return next(iter(Runner.build_dataloader(alone, seed=0)))


def check_metric(name: str, metric: str, config: Config) -> None:
    """Evaluate a transfer's metrics on two made-up predictions, and look for its own among them.

    Metrics that cannot be evaluated on a class and scores for it are passed over.

    Raises:
        SpecError: the transfer does not validate, or its metrics are others.
    """
    evaluator, loop = config.get('val_evaluator'), config.get('val_cfg')
    if evaluator is None or loop is None:
        missing = 'val_evaluator' if evaluator is None else 'val_cfg'
        raise SpecError(
            f'transfers.{name}: {metric!r} is a scalar of validation, and the config has no {missing}'
        )
    found = _metrics(evaluator, config)
    if found is not None and metric not in found:
        raise SpecError(
            f'transfers.{name}.metric: {metric!r} is no metric of its val_evaluator, which gives '
            f'{", ".join(sorted(found))}'
        )


def _metrics(evaluator: Any, config: Config) -> set[str] | None:
    """Names of the scalars that an evaluator gives; None where made-up predictions do not do."""
    classes = ((config.model.get('head') or {}).get('num_classes')) or 1000
    samples = []
    for label in range(2):
        scores = torch.full((classes,), 1 / classes)
        sample = DataSample(num_classes=classes).set_gt_label(label % classes)
        samples.append(sample.set_pred_label(0).set_pred_score(scores).to_dict())
    try:
        made = Evaluator(evaluator if isinstance(evaluator, (list, tuple)) else [evaluator])
        for metric in made.metrics:
            metric.process(None, samples)
        return {key for metric in made.metrics for key in metric.evaluate(len(samples))}
    except Exception:  # a metric of another kind, which its own validation will try
        return None
