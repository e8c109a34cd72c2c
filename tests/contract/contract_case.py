# SPDX-License-Identifier: Apache-2.0
"""One framework's entry in the contract matrix: a small real model, and how to look into it.

A file ``cases/<framework>.py`` defines ``CASES: list[Case]``; the shared bodies are in
``test_matrix.py``. The defaults fit mmpretrain's algorithms.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prmim_adapters.adapters import partial_of
from prmim_adapters.testing import recorded_partitions
from prmim_adapters.testing.access import Recorded

Batch = dict[str, Any]


def seeded(function: Callable[[], Any], seed: int = 0) -> Any:
    """Call under a fixed global seed."""
    torch.manual_seed(seed)
    return function()


def images(batch_size: int = 3, size: int = 32, seed: int = 5) -> Tensor:
    """(B, 3, size, size) normal noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 3, size, size, generator=generator)


def plain_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return model.loss(batch['inputs'], batch['data_samples'])


def total(losses: dict[str, Any]) -> Tensor:
    """Sum of the entries that the Runner optimises: those with 'loss' in their name."""
    return sum(value for name, value in losses.items() if 'loss' in name)


def input_images(batch: Batch) -> list[Tensor]:
    """The images that the encoder sees, each (B, 3, H, W)."""
    return [batch['inputs']] if isinstance(batch['inputs'], Tensor) else batch['inputs'][:1]


def pixel_target_saliency(model: nn.Module, batch: Batch) -> Tensor:
    """(B, L) absolute gradient of the loss with respect to each token's target.

    For heads whose loss module is called with (pred, target, mask) on supervised rows.
    """
    seen: dict[str, Tensor] = {}

    def watch(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        pred, target, *rest = args
        seen['target'] = target.detach().requires_grad_()
        return (pred, seen['target'], *rest)

    handle = model.head.loss_module.register_forward_pre_hook(watch)
    with recorded_partitions(model) as partitions:
        total(plain_losses(model, batch)).backward()
    handle.remove()
    return on_grid(model, partitions, seen['target'].grad.abs().sum(-1))


def on_grid(model: nn.Module, partitions: Recorded, rows: Tensor) -> Tensor:
    """Rows (B, n) at the supervised tokens of one partition -> (B, L), zeros elsewhere."""
    partition = partitions[0][1]
    index = partial_of(model).supervised(partition)
    return rows.new_zeros(len(rows), partition.length).scatter(1, index, rows)


@dataclass(frozen=True)
class Case:
    """See the module docstring.

    Attributes:
        name: shown in test ids.
        build: the framework's own model, small, with initialised weights; called under a seed.
        batch: a fixed batch ``dict(inputs, data_samples)``.
        ratio: a throw ratio to test with.
        invalid_ratio: one at or above the mask ratio, or None where masks are ragged.
        heavy: the module of the attached model whose input's token axis is looked at.
        tokens_seen: from that module's input, the number of tokens per image.
        expected_tokens: prefix + present tokens per image at ``ratio``.
        saving: MACs per image that throwing saves at ``ratio`` against the framework, closed
            form from the layer shapes, without aggregation.
        features: (model, tokens (L, C)) -> (L, C), what the heavy network makes of tokens that do
            not see each other; a tuple where the adapter reconstructs several features.
        reference: builds the framework's own model where ``build`` has an upstream defect that the
            adapter mends.
        images: the images of a batch that the encoder sees, each (B, 3, H, W).
        saliency: (B, L) dependence of the loss on each token's target.
        losses: runs the loss path of a model.
        compiles_whole: False where the framework's own forward breaks the compiled graph.
        checkpointing: (attribute path, value) pairs that switch on activation checkpointing.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    ratio: float
    invalid_ratio: float | None
    heavy: Callable[[nn.Module], nn.Module]
    expected_tokens: int
    saving: float
    features: Callable[[nn.Module, Tensor], Any]
    reference: Callable[[], nn.Module] | None = None
    images: Callable[[Batch], list[Tensor]] = input_images
    tokens_seen: Callable[[Any], int] = lambda args: args[0].shape[1]
    saliency: Callable[[nn.Module, Batch], Tensor] = pixel_target_saliency
    losses: Callable[[nn.Module, Batch], dict[str, Tensor]] = plain_losses
    compiles_whole: bool = True
    checkpointing: tuple[tuple[str, Any], ...] = ()

    def model(self) -> nn.Module:
        """The framework's model, always with the same weights."""
        return seeded(self.build)

    def loss(self, model: nn.Module, seed: int = 1, batch: Batch | None = None) -> Tensor:
        """The loss that the Runner would optimise, under a fixed seed."""
        batch = self.batch() if batch is None else batch
        return total(seeded(lambda: self.losses(model, batch), seed))


@cache
def collect() -> list[Case]:
    """The cases of all frameworks, loaded once: a second load would make other classes."""
    found: list[Case] = []
    for path in sorted((Path(__file__).parent / 'cases').glob('*.py')):
        spec = importlib.util.spec_from_file_location(f'contract_cases_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # so that the classes of a case can be pickled
        spec.loader.exec_module(module)
        found += module.CASES
    return found
