# SPDX-License-Identifier: Apache-2.0
"""Bytes that a training step holds: activations saved for backward, parameters, optimizer state.

None of these needs an accelerator, so tests can assert them. They leave out workspaces, gradients
of activations while backward runs, and fragmentation; ``prmim bench`` measures the peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.options import check_choice
from .loss_path import Batch, num_images, scratch

Attention = Literal['fused', 'explicit']
ATTENTION = get_args(Attention)
"""How attention is computed: by torch's kernels, or by matrix products and a softmax."""


def activation_bytes(model: nn.Module, batch: Batch, attention: Attention = 'fused') -> float:
    """Bytes per image that autograd saves for backward in the loss path, in the model's dtype.

    Each storage counts once, however many views of it are saved. Parameters and buffers do not
    count. The model stays as it was.

    Args:
        model: any mmpretrain algorithm, with or without partial reconstruction.
        batch: preprocessed, B images. Take B >= 2: torch lays out a batch of one differently.
        attention: 'fused' saves no attention matrix; 'explicit' saves them, as frameworks without
            fused kernels do.

    Raises:
        ValueError: another ``attention``.

    MAE ViT-B/16 at 224, fp32: 86.3 MB fused, 107.5 MB explicit (1 MB = 1e6 bytes).
    """
    check_choice('attention', attention, ATTENTION)
    kernel: Any = sdpa_kernel(SDPBackend.MATH) if attention == 'explicit' else nullcontext()
    with scratch(model, batch) as (path, views):
        owned = {_address(tensor) for tensor in (*path.parameters(), *path.buffers())}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if _address(tensor) not in owned:
                saved[_address(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with kernel, saved_tensors_hooks(note, lambda tensor: tensor):
            loss = path(*views)  # holds the storages, so that no address is used twice
        total = sum(saved.values())
        del loss
    return total / num_images(batch)


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of all parameters, of buffers, and of the optimizer's state of the trained ones."""

    parameters: int
    buffers: int
    optimizer: int


def parameter_bytes(model: nn.Module, optimizer: dict | None = None) -> ParameterBytes:
    """Bytes that do not depend on the batch.

    Args:
        model: any module.
        optimizer: an mmengine optimizer config such as ``dict(type='AdamW', lr=1e-3)``, whose
            state after one step is counted; None: no state.
    """
    return ParameterBytes(
        parameters=_nbytes(model.parameters()),
        buffers=_nbytes(model.buffers()),
        optimizer=0 if optimizer is None else _optimizer_bytes(model, optimizer),
    )


def _optimizer_bytes(model: nn.Module, config: dict) -> int:
    """One step of the optimizer on shapes only."""
    from mmpretrain.registry import OPTIMIZERS

    trained = (p for p in model.parameters() if p.requires_grad)
    shadows = [nn.Parameter(torch.empty_like(p, device='meta')) for p in trained]
    for shadow in shadows:
        shadow.grad = torch.empty_like(shadow)
    optimizer = OPTIMIZERS.build({**config, 'params': shadows})
    optimizer.step()
    return _nbytes(value for state in optimizer.state.values() for value in state.values())


def _nbytes(values: Iterable[Any]) -> int:
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
