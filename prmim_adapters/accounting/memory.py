# SPDX-License-Identifier: Apache-2.0
"""Bytes that a training step holds: activations saved for backward, parameters, optimizer state.

None of these needs an accelerator, so a test can assert them. What they leave out: workspaces, gradients of
activations while backward runs, fragmentation; ``prmim bench`` measures the peak with all of these.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from prmim_adapters.accounting.batch import Batch
from prmim_adapters.accounting.flops import scratch

Attention = Literal['fused', 'explicit']


def activation_bytes(model: nn.Module, batch: Batch, attention: Attention = 'fused') -> float:
    """Bytes per image that autograd saves for backward in the model's loss path, in the dtype of the model.

    Each storage counts once, however many views of it are saved; parameters and buffers do not count.

    Args:
        model: any mmpretrain algorithm. batch: preprocessed, B images; B >= 2 for ``'explicit'``, because torch
            copies a batch of one differently.
        attention: ``'fused'`` as the backend chooses (no attention matrix is saved), ``'explicit'`` with the
            attention matrices saved, as frameworks without fused kernels do.

    MAE ViT-B/16 at 224, fp32: 86.3 MB fused, 107.5 MB explicit (1 MB = 1e6 bytes).
    """
    if attention not in ('fused', 'explicit'):
        raise ValueError(f"attention is {attention!r}; it must be 'fused' or 'explicit'")
    kernel: Any = sdpa_kernel(SDPBackend.MATH) if attention == 'explicit' else nullcontext()
    with scratch(model, batch) as (path, views):
        owned = {_address(tensor) for tensor in (*path.parameters(), *path.buffers())}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if _address(tensor) not in owned:
                saved[_address(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with kernel, saved_tensors_hooks(note, lambda tensor: tensor):
            loss = path(*views)  # kept until the sum: freed storages would hand their address to others
        total = sum(saved.values())
        del loss
    return total / len(views[0])


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of parameters (trained and frozen), of buffers, and of the optimizer's state for the trained ones."""

    parameters: int
    buffers: int
    optimizer: int


def parameter_bytes(model: nn.Module, optimizer: dict | None = None) -> ParameterBytes:
    """Counts what does not depend on the batch.

    Args:
        model: any module.
        optimizer: an mmengine optimizer config, for example ``dict(type='AdamW', lr=1e-3)``; None: no state. The
            state is that of the optimizer after one step, taken on shapes only.
    """
    return ParameterBytes(
        parameters=_nbytes(model.parameters()),
        buffers=_nbytes(model.buffers()),
        optimizer=0 if optimizer is None else _optimizer_bytes(model, optimizer),
    )


def _optimizer_bytes(model: nn.Module, config: dict) -> int:
    from mmpretrain.registry import OPTIMIZERS

    trained = [p for p in model.parameters() if p.requires_grad]
    shadows = [nn.Parameter(torch.empty_like(p, device='meta')) for p in trained]
    for shadow in shadows:
        shadow.grad = torch.empty_like(shadow)
    optimizer = OPTIMIZERS.build(dict(config, params=shadows))
    optimizer.step()
    return _nbytes(value for state in optimizer.state.values() for value in state.values())


def _nbytes(values: Any) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
