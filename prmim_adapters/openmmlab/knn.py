# SPDX-License-Identifier: Apache-2.0
"""Weighted nearest-neighbour accuracy of frozen features.

The protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4), the one DINO and iBOT report: cosine
similarity to every training image, the k nearest vote for their class with weight
``exp(similarity / temperature)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models.utils import SparseHelper, TwoNormDataPreprocessor
from mmpretrain.registry import HOOKS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..core.options import check_flag, check_name, check_number, check_whole
from ..core.seeding import seeded
from .distributed import gather_shards, unwrapped
from .labelled import check_evaluation_data


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> Tensor:
    """Predict the class of each test image from its ``k`` nearest training images.

    Args:
        train_features: (N, C), any scale; both sets are normalised to unit length here.
        train_labels: (N,) integers in ``[0, num_classes)``.
        test_features: (M, C).
        num_classes: Number of classes.
        k: Number of neighbours that vote.
        temperature: Divides the similarity before the exponential; small = nearest dominates.
        chunk_size: Test images compared at a time: memory for ``chunk_size * N`` similarities.

    Returns:
        Tensor: (M,) predicted labels.

    Raises:
        ValueError: If ``k`` is not in ``[1, N]``, or the labels do not match the features.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(
            f'k={k} neighbours asked of {len(train_features)} training features: '
            'choose 1 <= k <= number of training images.'
        )
    if len(train_labels) != len(train_features):
        raise ValueError(
            f'{len(train_labels)} labels for {len(train_features)} training features: '
            'give one label for each row.'
        )
    train = F.normalize(train_features.float(), dim=1)
    predictions = []
    for chunk in F.normalize(test_features.float(), dim=1).split(chunk_size):
        similarity, nearest = (chunk @ train.T).topk(k, dim=1)
        # The best similarity is subtracted: the same vote, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, train_labels[nearest], weight)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def pool_features(backbone: nn.Module, images: Tensor, class_token: bool = False) -> Tensor:
    """One feature per whole image from an mmpretrain backbone, without any mask.

    Args:
        backbone: Backbone of a classifier or of a self-supervised algorithm. One whose ``forward``
            has a ``mask`` argument is called with ``mask=None``, which every masked backbone of
            mmpretrain takes as "no masking". To a sparse one (SparK) all units are active.
        images: (B, 3, H, W), normalised.
        class_token: The class token, as DINO and iBOT evaluate theirs, in place of the average
            over the patches (without class and register tokens).

    Returns:
        Tensor: (B, C).

    Raises:
        ValueError: A class token is asked of a backbone that gives none.
    """
    masked = 'mask' in inspect.signature(backbone.forward).parameters
    with _all_active(images):
        features = backbone(images, mask=None) if masked else backbone(images)
    if isinstance(features, (tuple, list)):
        features = features[-1]
    prefix = getattr(backbone, 'num_extra_tokens', 0)
    if class_token:
        if features.dim() != 3 or not prefix:
            raise ValueError(
                f'class_token=True, but the output {tuple(features.shape)} of '
                f'{type(backbone).__name__} has no class token: leave class_token out to evaluate '
                'the average over the patches'
            )
        return features[:, 0]
    if features.dim() == 4:
        return features.mean(dim=(2, 3))
    if features.dim() == 3:
        return features[:, prefix:].mean(dim=1)
    return features


@contextmanager
def _all_active(images: Tensor) -> Iterator[None]:
    """Mask nothing in mmpretrain's sparse layers, which read the active units from a global.

    Without this they find the units of the last training batch there.
    """
    before = SparseHelper._cur_active
    SparseHelper._cur_active = images.new_ones(len(images), 1, 1, 1, dtype=torch.bool)
    try:
        yield
    finally:
        SparseHelper._cur_active = before


def _preprocessed(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of one view per image as the backbone takes it.

    The preprocessor of BEiT takes two views, the encoder's and the tokenizer's, which it
    normalises apart: the image stands for both.
    """
    two = isinstance(model.data_preprocessor, TwoNormDataPreprocessor)
    if two:
        batch = dict(batch, inputs=[batch['inputs']] * 2)
    batch = model.data_preprocessor(batch, False)
    return dict(batch, inputs=batch['inputs'][0]) if two else batch


@torch.no_grad()
def extract_features(
    model: nn.Module,
    dataloader: Iterable,
    backbone: str = 'backbone',
    class_token: bool = False,
) -> tuple[Tensor, Tensor]:
    """Frozen features and labels of every image of a data loader, in its order.

    Args:
        model: mmpretrain algorithm, with its ``data_preprocessor``; left in the mode it came in.
        dataloader: Yields mmpretrain batches of one view per image, packed by ``PackInputs`` with a
            ``gt_label``, collated by mmengine's ``default_collate``.
        backbone: Dotted path of the network to evaluate inside ``model``, such as
            ``'teacher.module.backbone'`` for an algorithm whose teacher is the better encoder.
        class_token: See :func:`pool_features`.

    Returns:
        tuple: features (N, C) float32 and labels (N,) int64, on the CPU.
    """
    network = model.get_submodule(backbone)
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    features, labels = [], []
    try:
        for batch in dataloader:
            batch = _preprocessed(model, batch)
            features.append(pool_features(network, batch['inputs'], class_token).float().cpu())
            labels += [int(sample.gt_label) for sample in batch['data_samples']]
    finally:
        # Module by module: frozen stages may be in evaluation mode while the rest trains.
        for module, mode in training:
            module.training = mode
    return torch.cat(features), torch.tensor(labels)


def try_features(
    model: nn.Module, batches: Iterable, backbone: str, class_token: bool = False
) -> None:
    """Features of a few images, thrown away: what fails here would fail after training.

    Raises:
        ValueError: the model has no such network; what the network and the preprocessor raise.
    """
    try:
        model.get_submodule(backbone)
    except AttributeError as error:
        parts = ', '.join(name for name, _ in model.named_children())
        raise ValueError(
            f'backbone={backbone!r}: {type(model).__name__} has no such network ({error}); its '
            f'parts are {parts}'
        ) from None
    for batch in batches:
        extract_features(model, [batch], backbone, class_token)


@HOOKS.register_module()
class KNNHook(Hook):
    """Log the weighted kNN accuracy of the frozen backbone during self-supervised training.

    The value appears in the log as ``val/knn_top1`` (per cent) and in the message hub, where a
    user's hook can read it. mmengine's ``CheckpointHook(save_best=...)`` cannot: it sees the
    metrics of a validation loop only.

    Args:
        train_dataloader: Config of the loader whose images vote. Its dataset must be labelled.
        test_dataloader: Config of the loader whose images are classified.
        num_classes: Number of classes.
        interval: Evaluate every so many epochs, and after the last one.
        at_start: Evaluate before training too: what the untrained network reaches.
        k, temperature: See :func:`knn_classify`.
        backbone, class_token: See :func:`extract_features`.

    Raises:
        TypeError, ValueError: In ``__init__`` and in ``before_train``: an option out of range,
            images without labels, labels that are no class, more neighbours than images, or a
            network that is not there or has no class token where it is asked for.
    """

    priority = 'LOW'

    def __init__(
        self,
        train_dataloader: dict,
        test_dataloader: dict,
        num_classes: int,
        interval: int = 10,
        k: int = 20,
        temperature: float = 0.07,
        backbone: str = 'backbone',
        at_start: bool = False,
        class_token: bool = False,
    ) -> None:
        self.at_start = check_flag('KNNHook: at_start', at_start)
        self.class_token = check_flag('KNNHook: class_token', class_token)
        self.dataloaders: list[Any] = [train_dataloader, test_dataloader]
        for name, value in dict(train=train_dataloader, test=test_dataloader).items():
            if not isinstance(value, (dict, DataLoader)):
                raise TypeError(f'KNNHook: {name}_dataloader={value!r}: expected a dict')
        self.num_classes = check_whole('KNNHook: num_classes', num_classes, 1)
        self.interval = check_whole('KNNHook: interval', interval, 1)
        self.k = check_whole('KNNHook: k', k, 1)
        self.temperature = check_number('KNNHook: temperature', temperature, 1e-6)
        self.backbone = check_name('KNNHook: backbone', backbone)

    def before_train(self, runner: Runner) -> None:
        """Build both loaders and try the network, so that a mistake shows before training."""
        self.dataloaders = [
            Runner.build_dataloader(loader, seed=runner.seed)
            if isinstance(loader, dict)
            else loader
            for loader in self.dataloaders
        ]
        model = unwrapped(runner.model)
        with seeded(0):  # looking at images draws their crops
            few = check_evaluation_data('KNNHook', self.dataloaders, self.num_classes, self.k)
            try_features(model, few, self.backbone, self.class_token)
        if self.at_start:
            self.evaluate(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate at the interval and after the last epoch."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self.evaluate(runner)

    def evaluate(self, runner: Runner) -> float:
        """Run both loaders through the model and log the accuracy.

        Returns:
            float: Accuracy in per cent, the same on every process.
        """
        model = unwrapped(runner.model)
        (train, train_labels), (test, test_labels) = (
            gather_shards(
                *extract_features(model, loader, self.backbone, self.class_token),
                len(loader.dataset),
            )
            for loader in self.dataloaders
        )
        accuracy = torch.zeros(1, device=next(model.parameters()).device)
        if is_main_process():
            predicted = knn_classify(
                train, train_labels, test, self.num_classes, self.k, self.temperature
            )
            accuracy.fill_(100 * (predicted == test_labels).double().mean().item())
        broadcast(accuracy)
        runner.message_hub.update_scalar('val/knn_top1', accuracy.item())
        runner.visualizer.add_scalar('val/knn_top1', accuracy.item(), step=runner.iter)
        runner.logger.info(f'kNN (k={self.k}) top-1: {accuracy.item():.2f} %')
        return accuracy.item()
