# SPDX-License-Identifier: Apache-2.0
"""What the checks must know of a framework: a small real model, and how to look into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from ..adapters import attach, partial_of
from ..core import PartialReconstruction
from .access import seed_everything
from .token_wise import make_token_wise


def seeded(function: Callable[[], Any], seed: int = 0) -> Any:
    """Call under a fixed global seed."""
    torch.manual_seed(seed)
    return function()


def run_loss(model: Any, batch: Any) -> Any:
    """``model.loss(inputs, data_samples)`` of mmpretrain, or ``model(*batch)``."""
    if isinstance(batch, Mapping):
        return model.loss(batch['inputs'], batch['data_samples'])
    return model(*batch)


def encoded_images(batch: Any) -> list[Tensor]:
    """The first inputs of a batch."""
    inputs = batch['inputs'] if isinstance(batch, Mapping) else batch
    return [inputs if isinstance(inputs, Tensor) else inputs[0]]


def total(losses: Any) -> Tensor:
    """The loss that is optimised: a tensor, or the entries with 'loss' in their name."""
    if isinstance(losses, Tensor):
        return losses
    return torch.stack([value for name, value in losses.items() if 'loss' in name]).sum()


@dataclass(frozen=True)
class AdapterCase:
    """One model of a framework, for the checks of its adapter.

    Attributes:
        build: makes the framework's own model, small, with weights as at the start of training; it
            is called under a seed.
        batch: makes a batch; it is called under a seed.
        heavy: the module of the model that all tokens of the heavy network enter first.
        features: (model, tokens (L, C)) -> (L, C), what the heavy network makes of tokens that do
            not see each other; a tuple where the adapter reconstructs several features. By default
            ``heavy`` is the whole of it.
        entering_last: the same of what enters the heavy network's last block, where the adapter says
            with ``num_blocks`` that thrown tokens can come back there.
        losses: (model, batch) -> the loss, or losses by name.
        target: the module of the model that ``attach`` is called on.
        images: the images (B, 3, H, W) of a batch that the encoder sees.
        ratio: a throw ratio to check with.
        invalid_ratio: one at or above the mask ratio, or None where masks are ragged.
        tokens_seen: what ``heavy`` is called with -> tokens of the batch that it got.
        saving: multiply-adds per image of products and convolutions that throwing saves at
            ``ratio`` without a light stage, by a closed form from the layer shapes.
        visible_weight: of a visible token in the framework's loss, where a masked one weighs 1.
        weighted: False where the loss is outside of ``target`` and weighs every masked token.
        token_wise: makes the model's tokens not see each other, in place.
        reference: makes the framework's model without a defect that the adapter mends.
        compiles: False where the framework's own model fails under torch.compile.
        compiles_whole: False where the framework's own forward breaks the compiled graph.
        before_compile: what a model needs before it is compiled.
        checkpointing: (path of an attribute, value) pairs that switch on activation checkpointing.
        autocast: False where the framework's own model fails under autocast.
        copies: False where the framework's own model cannot be copied by ``deepcopy``.
        name: for test ids.
    """

    build: Callable[[], Any]
    batch: Callable[[], Any]
    heavy: Callable[[Any], nn.Module]
    features: Callable[[Any, Tensor], Any] | None = None
    entering_last: Callable[[Any, Tensor], Tensor] | None = None
    losses: Callable[[Any, Any], Any] = run_loss
    target: Callable[[Any], Any] = lambda model: model
    images: Callable[[Any], list[Tensor]] = encoded_images
    ratio: float = 0.5
    invalid_ratio: float | None = None
    tokens_seen: Callable[[Any], int] = lambda args: args[0].shape[:-1].numel()
    saving: float | None = None
    visible_weight: float = 0.0
    weighted: bool = True
    token_wise: Callable[[Any], Any] = make_token_wise
    reference: Callable[[], Any] | None = None
    compiles: bool = True
    compiles_whole: bool = True
    before_compile: Callable[[Any], Any] = lambda model: model
    checkpointing: tuple[tuple[str, Any], ...] = ()
    autocast: bool = True
    copies: bool = True
    name: str = ''

    def model(self) -> Any:
        """The framework's model, always with the same weights."""
        return seeded(self.build)

    def fixed_batch(self) -> Any:
        """Always the same batch."""
        return seeded(self.batch, seed=3)

    def attached(self, model: Any = None, **options: Any) -> Any:
        """The model, or a new one, with partial reconstruction attached under a seed."""
        model = self.model() if model is None else model
        options.setdefault('throw_ratio', self.ratio)
        seeded(lambda: attach(self.target(model), **options), seed=2)
        return model

    def partial(self, model: Any) -> PartialReconstruction:
        """The shared part of an attached model."""
        return partial_of(self.target(model))

    def loss(self, model: Any, seed: int = 1, batch: Any = None) -> Tensor:
        """The loss of the batch under a fixed seed."""
        batch = self.fixed_batch() if batch is None else batch
        seed_everything(model, seed)
        return total(self.losses(model, batch))

    def heavy_features(self, model: Any, tokens: Tensor) -> tuple[Tensor, ...]:
        """See ``features``."""
        if self.features is None:
            return (self.heavy(model)(tokens[None])[0],)
        features = self.features(model, tokens)
        return features if isinstance(features, tuple) else (features,)

    def skip_if(self, condition: bool, reason: str) -> None:
        """Leave a check out.

        Raises:
            SkipTest: if ``condition``.
        """
        if condition:
            raise SkipTest(reason)
