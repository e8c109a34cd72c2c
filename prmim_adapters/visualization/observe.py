# SPDX-License-Identifier: Apache-2.0
"""Run an attached model's own loss path and note what it masked, kept, threw and predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import partial_of
from ..core import RaggedPartition, TokenPartition, scatter_tokens
from ..core.seeding import seeded

VISIBLE, KEPT, THROWN = range(3)


@dataclass(frozen=True)
class Observation:
    """What one batch looked like inside the model.

    Attributes:
        images: (B, 3, H, W) in [0, 1], RGB, as the model saw them.
        roles: (B, h, w) int64 on the patch grid: VISIBLE, KEPT or THROWN.
        reconstruction: (B, 3, H, W) in [0, 1]: visible patches as they are, predictions at masked
            ones, NaN at masked ones that the model does not predict (plain partial reconstruction).
            None if the model predicts features rather than pixels.
    """

    images: Tensor
    roles: Tensor
    reconstruction: Tensor | None


@torch.no_grad()
def observe(model: Any, batch: dict[str, Any], seed: int = 0) -> Observation:
    """Run ``model.loss`` on a batch and look at it.

    Where the target is normalised per patch (``norm_pix``), the prediction is shown with the mean
    and variance of the true patch, which the model does not know: colours are then the image's.

    Args:
        model: attached mmpretrain algorithm; left in the mode it came in.
        batch: collated ``dict(inputs, data_samples)``, before the data preprocessor.
        seed: of the kept tokens, and of the mask, where the model draws it.

    Raises:
        ValueError: nothing is attached to the model; its ``throw_ratio`` is 0 and the adapter hands
            over to the original code; or the images have masks of different sizes.
    """
    partial = partial_of(model)
    training, state = model.training, partial.randomness.state.clone()
    model.eval()
    partial.randomness.seed(seed)
    try:
        with seeded(seed), _recorded(model) as (partitions, losses):
            data = model.data_preprocessor(batch, False)
            model(**data, mode='loss')
    finally:
        model.train(training)
        partial.randomness.state.copy_(state)
    views = data['inputs']
    inputs = views[0] if isinstance(views, (list, tuple)) else views
    if not partitions:
        raise ValueError('nothing was partitioned: with throw_ratio=0 the model is the original')
    partition = _of_first(_of_one_size(partitions[0]), len(inputs))
    roles = _roles(partition)
    images = _to_rgb(model, inputs)
    reconstruction = None
    predicted = _predicted_pixels(model, inputs, losses[0][0], partition) if losses else None
    if predicted is not None:
        unknown = (roles == THROWN) & (not partial.supervises_thrown)
        reconstruction = _composed(images, _to_rgb(model, predicted), roles, unknown)
    return Observation(images, roles, reconstruction)


def _of_one_size(partition: TokenPartition | RaggedPartition) -> TokenPartition:
    if isinstance(partition, TokenPartition):
        return partition
    if len(partition) > 1:
        raise ValueError(
            f'the images have masks of {len(partition)} different sizes, as in iBOT: only masks of '
            'one size can be shown'
        )
    return partition.groups[0][1]


def _of_first(partition: TokenPartition, size: int) -> TokenPartition:
    """The partition of the first view, where a batch of views went through the model at once."""
    names = ('visible', 'kept', 'thrown')
    return replace(partition, **{name: getattr(partition, name)[:size] for name in names})


@contextmanager
def _recorded(model: nn.Module) -> Iterator[tuple[list, list[tuple]]]:
    """Lists that fill with the partitions and with the arguments of the loss module."""
    partial = partial_of(model)
    partitions: list[TokenPartition | RaggedPartition] = []
    losses: list[tuple] = []
    handles = [partial.register_forward_hook(lambda _, args, made: partitions.append(made))]
    loss_module = getattr(getattr(model, 'head', None), 'loss_module', None)
    if isinstance(loss_module, nn.Module):
        handles.append(loss_module.register_forward_pre_hook(lambda _, args: losses.append(args)))
    try:
        yield partitions, losses
    finally:
        for handle in handles:
            handle.remove()


def _roles(partition: TokenPartition) -> Tensor:
    roles = torch.full(
        (partition.visible.shape[0], partition.length), VISIBLE, device=partition.visible.device
    )
    roles.scatter_(1, partition.kept, KEPT)
    roles.scatter_(1, partition.thrown, THROWN)
    return roles.unflatten(1, partition.grid)


def _to_rgb(model: Any, normalised: Tensor) -> Tensor:
    """Undo the data preprocessor's normalisation: (B, 3, H, W) -> the same in [0, 1]."""
    preprocessor = model.data_preprocessor
    if getattr(preprocessor, '_enable_normalize', False):
        normalised = normalised * preprocessor.std + preprocessor.mean
    return (normalised / 255).clamp(0, 1)


def _predicted_pixels(
    model: Any, inputs: Tensor, predicted: Tensor, partition: TokenPartition
) -> Tensor | None:
    """(B, 3, H, W) in the normalised space of ``inputs``; None for predictions of features.

    Adapters predict supervised tokens only: rows (B, n, D) in MAE's patch layout, or a column of
    patches (B, 3, n * s, s) in SimMIM's.
    """
    head, supervised = model.head, partial_of(model).supervised(partition)
    if predicted.dim() == 4:
        side = predicted.shape[-1]
        patches = predicted.unflatten(2, (-1, side)).transpose(1, 2)
        dense = scatter_tokens(patches.flatten(2), supervised, partition.length)
        dense = dense.unflatten(2, (3, side, side)).unflatten(1, partition.grid)
        return dense.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    if not hasattr(head, 'unpatchify'):
        return None
    dense = scatter_tokens(predicted, supervised, partition.length)
    if getattr(head, 'norm_pix', False):
        patches = head.patchify(inputs)
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        dense = dense * (variance + 1e-6) ** 0.5 + mean
    height, width = partition.grid
    side = inputs.shape[-1] // width
    units = dense.unflatten(2, (side, side, -1)).unflatten(1, (height, width))  # B, h, w, p, q, C
    return units.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _composed(images: Tensor, predicted: Tensor, roles: Tensor, unknown: Tensor) -> Tensor:
    masked, unknown = (
        F.interpolate(flag[:, None].float(), size=images.shape[-2:], mode='nearest').bool()
        for flag in (roles != VISIBLE, unknown)
    )
    return torch.where(masked, predicted, images).masked_fill(unknown, torch.nan)
