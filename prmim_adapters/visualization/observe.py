# SPDX-License-Identifier: Apache-2.0
"""Run an attached model's own loss path and note what it masked, kept, threw and predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models import MAEPretrainHead, SimMIMHead, SparKPretrainHead
from torch import Tensor, nn

from ..adapters import partial_of
from ..core import RaggedPartition, TokenPartition, scatter_tokens
from ..core.partition import Grid
from ..core.seeding import seeded
from ..frameworks.norm_target import NormTargetSimMIMHead
from ..openmmlab.distributed import without_process_group
from ..openmmlab.misfit import misfit_named
from .display import Display, default_channels

VISIBLE, KEPT, THROWN = range(3)

#: Heads whose predictions are pixels, and the name of the module that compares them.
_PIXEL_LOSSES = {
    MAEPretrainHead: 'loss_module',
    SimMIMHead: 'loss_module',
    SparKPretrainHead: 'loss',
}
#: Takes square images only; its layout is drawn here.
_upstreams = MAEPretrainHead.unpatchify


@dataclass(frozen=True)
class Observation:
    """What one batch looked like inside the model.

    Attributes:
        images: (B, 3, H, W) in [0, 1], red, green, blue: what the model saw.
        roles: (B, h, w) int64 on the patch grid: VISIBLE, KEPT or THROWN.
        reconstruction: (B, 3, H, W) in [0, 1]: visible patches as they are, predictions at masked
            ones, NaN at masked ones that the model does not predict (plain partial reconstruction).
            None if the model predicts features rather than pixels.
        normalised: whether the reconstruction was given the mean and variance of the true pixels.
    """

    images: Tensor
    roles: Tensor
    reconstruction: Tensor | None
    normalised: bool = False


@torch.no_grad()
def observe(
    model: Any, batch: dict[str, Any], seed: int = 0, display: Display | None = None
) -> Observation:
    """Run ``model.loss`` on a batch and look at it.

    Where the target is normalised (``norm_pix``, ``norm_window``), the prediction is shown with the
    mean and variance of the true pixels, which the model does not know: colours are the image's.

    Args:
        model: attached mmpretrain algorithm; left as it came, and so are all random states.
        batch: collated ``dict(inputs, data_samples)``, before the data preprocessor.
        seed: of the kept tokens, and of the mask, where the model draws it.
        display: how to show what the model sees (:func:`.display.display_of`); the first three
            channels, every image in its own range, by default.

    Raises:
        ValueError: nothing is attached to the model; its ``throw_ratio`` is 0 and the adapter hands
            over to the original code; or the images have masks of different sizes.
    """
    with _as_it_was(model), seeded(seed), recorded(model) as (partitions, losses):
        model.eval()
        partial = partial_of(model)
        partial.randomness.seed(seed)
        data = model.data_preprocessor(batch, False)
        with misfit_named(model, data['inputs']):
            model(**data, mode='loss')
    views = data['inputs']
    inputs = views[0] if isinstance(views, (list, tuple)) else views
    if not partitions:
        raise ValueError('nothing was partitioned: with throw_ratio=0 the model is the original')
    partition = _of_first(_of_one_size(partitions[0]), len(inputs))
    roles = _roles(partition)
    display = (display or Display(default_channels(inputs.shape[1]))).fitted(inputs)
    images = display(inputs)
    if not losses:
        return Observation(images, roles, None)
    unknown = (roles == THROWN) & (not partial.supervises_thrown)
    predicted = display(_predicted_pixels(model, inputs, losses[0][0], partition))
    reconstruction = _composed(images, predicted, roles, unknown)
    return Observation(images, roles, reconstruction, _normalises(model.head))


def _normalises(head: nn.Module) -> bool:
    return isinstance(head, NormTargetSimMIMHead) or getattr(head, 'norm_pix', False)


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
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Give back every module's mode, buffers, and parameters that no optimizer changes.

    A loss may update its own state (centres, a teacher). Other processes are not waited for.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    values = [(tensor, tensor.clone()) for tensor in (*model.buffers(), *frozen)]
    try:
        with without_process_group():
            yield
    finally:
        for module, mode in modes:  # one by one: frozen stages may be in evaluation mode
            module.training = mode
        for tensor, value in values:
            tensor.copy_(value)


@contextmanager
def recorded(model: nn.Module) -> Iterator[tuple[list, list[tuple]]]:
    """Lists that fill with the partitions and with the arguments of a loss of pixels."""
    partial = partial_of(model)
    partitions: list[TokenPartition | RaggedPartition] = []
    losses: list[tuple] = []
    handles = [partial.register_forward_hook(lambda _, args, made: partitions.append(made))]
    compares = _loss_module(model)
    if compares is not None:
        handles.append(compares.register_forward_pre_hook(lambda _, args: losses.append(args)))
    try:
        yield partitions, losses
    finally:
        for handle in handles:
            handle.remove()


def _loss_module(model: nn.Module) -> nn.Module | None:
    """What compares pixels; None in a model that predicts features."""
    head = getattr(model, 'head', None)
    names = [name for kind, name in _PIXEL_LOSSES.items() if isinstance(head, kind)]
    return getattr(head, names[0]) if names else None


@torch.no_grad()
def losses_by_role(
    model: nn.Module, partition: TokenPartition, pred: Tensor, target: Tensor, mask: Tensor
) -> dict[str, float]:
    """The framework's own loss over kept and over thrown tokens apart.

    Args:
        model: attached, and predicts pixels.
        partition: of a pass; with the others what :func:`recorded` notes.
        pred: rows of the supervised tokens, kept ones first: (B, n, D), or a column of
            patches (B, C, n * s, s); or rows of all tokens in grid order, (B, L, D).
        target: the same of the images.
        mask: (B, n), (B, 1, n * s, s) or (B, L).

    Returns:
        ``loss_kept``, and ``loss_thrown`` where thrown tokens are supervised; means over tokens.
    """
    module, dim = _loss_module(model), mask.dim() // 2
    assert module is not None, 'only of models whose pixels were recorded'
    partial = partial_of(model)
    if _of_all_tokens(mask, partition):
        pred, target, mask = (partial.at_supervised(v, partition) for v in (pred, target, mask))
    tokens = partial.supervised(partition).shape[1]
    end = mask.shape[dim]
    border = end // tokens * partition.kept.shape[1]
    found = {}
    for name, start, stop in (('loss_kept', 0, border), ('loss_thrown', border, end)):
        if start < stop:
            rows = [values.narrow(dim, start, stop - start) for values in (pred, target, mask)]
            # forward() itself runs no hooks, so that nothing records this.
            found[name] = float(module.forward(*rows[:2], torch.ones_like(rows[2])))
    return found


def _of_all_tokens(rows: Tensor, partition: TokenPartition) -> bool:
    """Whether (B, n, ...) are rows of the whole grid, as adapters by declarations give (iTPN)."""
    return rows.dim() < 4 and rows.shape[1] == partition.length


def _roles(partition: TokenPartition) -> Tensor:
    roles = torch.full(
        (partition.visible.shape[0], partition.length), VISIBLE, device=partition.visible.device
    )
    roles.scatter_(1, partition.kept, KEPT)
    roles.scatter_(1, partition.thrown, THROWN)
    return roles.unflatten(1, partition.grid)


def _predicted_pixels(
    model: Any, inputs: Tensor, predicted: Tensor, partition: TokenPartition
) -> Tensor:
    """(B, C, H, W) in the normalised space of ``inputs``.

    Most adapters predict supervised tokens only: rows (B, n, D) in the patch layout of MAE and
    SparK, or a column of patches (B, C, n * s, s) in SimMIM's.
    """
    head, supervised = model.head, partial_of(model).supervised(partition)
    if predicted.dim() == 4:
        side = predicted.shape[-1]
        patches = predicted.unflatten(2, (-1, side)).transpose(1, 2)
        dense = scatter_tokens(patches.flatten(2), supervised, partition.length)
        pixels = _joined(dense.unflatten(2, (-1, side, side)), partition.grid)
        if isinstance(head, NormTargetSimMIMHead):
            mean, deviation = head.statistics(inputs)
            pixels = pixels * deviation + mean
        return pixels
    dense = predicted
    if not _of_all_tokens(predicted, partition):
        dense = scatter_tokens(predicted, supervised, partition.length)
    if head.norm_pix:
        patches = head.patchify(inputs)
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        dense = dense * (variance + 1e-6) ** 0.5 + mean
    if getattr(type(head), 'unpatchify', _upstreams) is not _upstreams:
        return head.unpatchify(dense)  # a user's own layout
    patches = dense.unflatten(2, (head.patch_size, head.patch_size, -1))
    return _joined(patches.movedim(-1, 2), partition.grid)


def _joined(patches: Tensor, grid: Grid) -> Tensor:
    """(B, L, C, s, s) patches -> (B, C, H, W) images."""
    return patches.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _composed(images: Tensor, predicted: Tensor, roles: Tensor, unknown: Tensor) -> Tensor:
    masked, unknown = (
        F.interpolate(flag[:, None].float(), size=images.shape[-2:], mode='nearest').bool()
        for flag in (roles != VISIBLE, unknown)
    )
    return torch.where(masked, predicted, images).masked_fill(unknown, torch.nan)
