# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a point inside its own training run, and what training cost.

A hook, so that the evaluation runs wherever training runs: on one CPU or GPU, on several by
torchrun, on a Slurm node.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..accounting import UndercountError
from ..accounting.batch import first_batch
from ..accounting.environment import environment
from ..accounting.scheduled import average_over_run
from ..core.seeding import seeded
from ..openmmlab.distributed import gather_shards, unwrapped
from ..openmmlab.knn import extract_features, knn_classify, try_features
from ..openmmlab.labelled import check_evaluation_data
from .cost import counted_macs, run_cost
from .results import MEASUREMENTS, write_json


@HOOKS.register_module()
class FrozenFeatureHook(Hook):
    """After training: kNN and linear accuracy of frozen features, and the cost of training.

    Args:
        train_dataloader, test_dataloader: loaders of images with labels, without augmentation.
        num_classes: number of classes.
        k, temperature: see :func:`prmim_adapters.openmmlab.knn.knn_classify`.
        linear_probe: whether to fit the linear probe.
        regularization: C of the linear probe.
        backbone: dotted path of the evaluated network.
    """

    priority = 'VERY_LOW'

    def __init__(
        self,
        train_dataloader: dict[str, Any],
        test_dataloader: dict[str, Any],
        num_classes: int,
        k: int = 20,
        temperature: float = 0.07,
        linear_probe: bool = True,
        regularization: float = 0.1,
        backbone: str = 'backbone',
    ) -> None:
        self.dataloaders: list[Any] = [train_dataloader, test_dataloader]
        self.num_classes = num_classes
        self.k, self.temperature = k, temperature
        self.regularization = regularization if linear_probe else None
        self.backbone = backbone
        self.macs: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Build both loaders and try the network, so that a mistake shows before training.

        Then count the MACs of the loss path at every ratio of the run.

        Raises:
            ValueError: images without labels, labels that are no class, more neighbours than
                images, or no such network.
        """
        model = unwrapped(runner.model)
        self.dataloaders = [
            Runner.build_dataloader(loader, seed=runner.seed) for loader in self.dataloaders
        ]
        with seeded(0):
            few = check_evaluation_data('evaluation', self.dataloaders, self.num_classes, self.k)
            try_features(model, few, self.backbone)
        count = partial(counted_macs, batch=first_batch(runner.train_dataloader, model))
        try:
            self.macs = average_over_run(runner, count, runner.max_iters)
        except UndercountError as error:
            runner.logger.warning(f'no MACs in the results: {error}')

    def after_train(self, runner: Runner) -> None:
        """Evaluate, and write ``measurements.json`` into the work directory."""
        train, test = (self._features(runner, loader) for loader in self.dataloaders)
        if not is_main_process():
            return
        accuracy = frozen_accuracy(
            train, test, self.num_classes, self.k, self.temperature, self.regularization
        )
        measurements = dict(
            accuracy=accuracy,
            cost=run_cost(runner, self.macs),
            environment=environment(),
        )
        write_json(Path(runner.work_dir) / MEASUREMENTS, measurements)
        runner.logger.info(f'frozen features: {accuracy}')

    def _features(self, runner: Runner, loader: Any) -> tuple[Tensor, Tensor]:
        """Features (N, C) and labels (N,) of all images, on the main process."""
        features, labels = extract_features(unwrapped(runner.model), loader, self.backbone)
        return gather_shards(features, labels, len(loader.dataset))


def frozen_accuracy(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    regularization: float | None = 0.1,
) -> dict[str, float]:
    """Accuracy in per cent of two classifiers on features standardised by the training set.

    Args:
        train: features (N, C) and labels (N,) that the classifiers are fitted to.
        test: features and labels that they are scored on.
        num_classes: number of classes.
        k: neighbours of the nearest-neighbour classifier.
        temperature: of the nearest-neighbour classifier.
        regularization: C of ``LogisticRegression``; None leaves the linear probe out.

    Returns:
        dict: ``knn`` and ``linear``, and ``feature_std``, the mean standard deviation of the
        features before standardising (a collapsed encoder has almost none).
    """
    (x, y), (x_test, y_test) = train, test
    mean, std = x.mean(0), x.std(0)
    x, x_test = ((part - mean) / (std + 1e-6) for part in (x, x_test))
    nearest = knn_classify(x, y, x_test, num_classes, k, temperature)
    accuracy = dict(knn=100 * (nearest == y_test).double().mean().item())
    if regularization is not None:
        accuracy['linear'] = linear_accuracy(x, y, x_test, y_test, regularization)
    return dict(accuracy, feature_std=std.mean().item())


def linear_accuracy(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, regularization: float
) -> float:
    """Test accuracy in per cent of scikit-learn's logistic regression on (N, C) features."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=regularization, max_iter=300).fit(x.numpy(), y.numpy())
    return 100 * float(probe.score(x_test.numpy(), y_test.numpy()))
