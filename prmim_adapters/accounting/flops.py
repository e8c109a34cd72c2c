# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulates of the loss path: what one training step of a model really computes.

Unit: 1 multiply-add = 1 MAC, per image. Two independent counters:

* fvcore traces ``model.loss`` and counts matrix products, convolutions, attention, and (5 per element) normalisations;
* ``torch.utils.flop_counter`` watches the dispatcher, forward and backward, and counts the first three only.

What both count must agree to the last MAC, and an operator that computes but that nobody counts is an error: a saving
is never reported from an undercount. Not counted by either: element-wise arithmetic, softmax, gathers, the optimizer.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import einsum_flop_jit, get_shape
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prmim_adapters.accounting.batch import Batch, seeded

HEAVY_OPS = frozenset(
    f'aten::{name}'
    for name in (
        'addbmm addmv addr baddbmm bilinear _trilinear cdist _cdist_forward chain_matmul convolution conv1d conv2d '
        'conv3d conv_transpose2d cudnn_convolution mkldnn_convolution dot vdot inner outer mv tensordot kron lstm gru '
        'rnn_tanh multi_head_attention_forward _native_multi_head_attention _transformer_encoder_layer_fwd '
        '_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu '
        '_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention _scaled_mm _int_mm fft_fft2 '
        'fft_rfft2 linalg_matmul linalg_multi_dot deform_conv2d _sparse_mm _sparse_addmm'
    ).split()
)
"""Operators that compute much and that fvcore has no handle for: meeting one is an error."""

_NORMS = ('layer_norm', 'batch_norm', 'group_norm', 'instance_norm')


class UndercountError(RuntimeError):
    """An operator of the loss path was not counted, or the two counters disagree."""


@dataclass(frozen=True)
class MacCount:
    """MACs per image.

    Attributes:
        total: of the whole loss path.
        by_module: module name (as in ``model.named_modules()``, without the root) to the MACs inside its ``__call__``.
        by_operator: operator to MACs.
        unsupported: operator to number of calls, of the light operators that are not counted.
    """

    total: float
    by_module: dict[str, float] = field(default_factory=dict)
    by_operator: dict[str, float] = field(default_factory=dict)
    unsupported: dict[str, int] = field(default_factory=dict)

    def top(self) -> dict[str, float]:
        """MACs by child of the model; what runs outside any child's ``__call__`` (losses) is under ``'(other)'``."""
        children = {name: macs for name, macs in self.by_module.items() if '.' not in name}
        other = self.total - sum(children.values())
        return {**children, '(other)': other} if other > 0.5 else children

    @property
    def products(self) -> float:
        """MACs without normalisation and interpolation: what ``FlopCounterMode`` counts too."""
        light = (*_NORMS, 'upsample', 'adaptive_avg_pool', 'grid_sampler')
        return sum(macs for op, macs in self.by_operator.items() if not op.startswith(light))


@dataclass(frozen=True)
class TrainingMacs:
    """MACs per image of matrix products, convolutions and attention in one training step.

    Attributes:
        forward: forward only. backward: backward only. Each a :class:`MacCount`.
    """

    forward: MacCount
    backward: MacCount

    @property
    def total(self) -> float:
        return self.forward.total + self.backward.total

    def top(self) -> dict[str, float]:
        """Forward + backward MACs by child of the model."""
        forward, backward = self.forward.top(), self.backward.top()
        return {name: forward.get(name, 0) + backward.get(name, 0) for name in {**forward, **backward}}


class LossPath(nn.Module):
    """Makes ``model.loss`` a module call, so that tracers see what training runs and not ``extract_feat``.

    ``forward(inputs) -> Tensor ()``: the sum of all losses, as mmengine's ``parse_losses`` forms it.
    """

    def __init__(self, model: nn.Module, data_samples: list | None) -> None:
        super().__init__()
        self.model = model
        self.data_samples = data_samples

    def forward(self, *inputs: Tensor) -> Tensor:
        views = list(inputs) if len(inputs) > 1 else inputs[0]
        losses = self.model.loss(views, self.data_samples)
        return self.model.parse_losses(losses)[0]


@contextmanager
def scratch(model: nn.Module, batch: Batch, seed: int = 0) -> Iterator[tuple[LossPath, tuple[Tensor, ...]]]:
    """A copy of the model in training mode, as a :class:`LossPath`, and its inputs as a tuple of views.

    The user's model, its buffers (also those of an EMA teacher), gradients and the random state stay as they were;
    the same seed gives the same mask in every measurement.
    """
    inputs = batch['inputs']
    views = tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)
    clone = copy.deepcopy(model)
    clone.train()
    for parameter in clone.parameters():
        parameter.grad = None
    with seeded(seed):
        yield LossPath(clone, batch['data_samples']), views


def count_macs(model: nn.Module, batch: Batch) -> MacCount:
    """Forward MACs per image of the model's loss path.

    Args:
        model: any mmpretrain algorithm, with or without partial reconstruction.
        batch: ``dict(inputs=..., data_samples=...)``, preprocessed, B images; see :func:`make_batch`.

    Raises:
        UndercountError: a heavy operator has no handle, or fvcore and ``FlopCounterMode`` disagree.

    MAE ViT-B/16 at 224: 9.795 GMACs = backbone 4.413 + neck 5.381 (the encoder alone, on all patches: 17.58).
    """
    images = len(batch['data_samples'] or _first(batch['inputs']))
    with scratch(model, batch) as (path, views), torch.no_grad(), _static_shapes(), _quiet():
        analysis = FlopCountAnalysis(path, views).set_op_handle(**OP_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = {_inside(name): macs / images for name, macs in analysis.by_module().items() if macs}
        count = MacCount(
            total=analysis.total() / images,
            by_module={name: macs for name, macs in by_module.items() if name},
            by_operator={op: macs / images for op, macs in analysis.by_operator().items() if macs},
            unsupported=dict(analysis.unsupported_ops()),
        )
    _refuse_heavy(count.unsupported)
    with scratch(model, batch) as (path, views), torch.no_grad():
        watched = _watch(lambda: path(*views), images)
    if not math.isclose(count.products, watched.total, rel_tol=1e-6):
        raise UndercountError(
            f'fvcore counts {count.products / 1e9:.6f} GMACs of products, convolutions and attention, '
            f'FlopCounterMode {watched.total / 1e9:.6f}: an operator is missed by one of them. '
            f'fvcore: {count.by_operator}; FlopCounterMode: {watched.by_operator}'
        )
    return count


def training_macs(model: nn.Module, batch: Batch) -> TrainingMacs:
    """Forward and backward MACs per image of one training step, by ``FlopCounterMode`` with explicit attention.

    A recomputed forward (activation checkpointing) counts as backward. Arguments as in :func:`count_macs`.
    """
    images = len(batch['data_samples'] or _first(batch['inputs']))
    losses = []
    with scratch(model, batch) as (path, views):
        forward = _watch(lambda: losses.append(path(*views)), images)
    with scratch(model, batch) as (path, views):
        both = _watch(lambda: path(*views).backward(), images)
    return TrainingMacs(forward, _difference(both, forward))


# ---- fvcore ----------------------------------------------------------------------------------------------------------


def attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Handle of ``aten::scaled_dot_product_attention``: query (..., N, D), key (..., M, D), value (..., M, E)."""
    query, key, value = (get_shape(value) for value in inputs[:3])
    assert query is not None and key is not None and value is not None, 'attention without static shapes'
    pairs = math.prod(query[:-1]) * key[-2]
    return Counter({'attention': pairs * (query[-1] + value[-1])})


def _batched_product(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Handle of ``aten::baddbmm``: bias, (B, N, K), (B, K, M)."""
    left, right = get_shape(inputs[1]), get_shape(inputs[2])
    assert left is not None and right is not None, 'baddbmm without static shapes'
    return Counter({'bmm': math.prod(left) * right[-1]})


def _einsum(inputs: list[Any], outputs: list[Any]) -> Any:
    """Handle of ``aten::einsum``: fvcore's, but one operand (as in MAE's ``patchify``) only moves or adds."""
    operands = list(inputs[1].node().inputs())
    return einsum_flop_jit(inputs, outputs) if len(operands) > 1 else 0


OP_HANDLES: dict[str, Callable] = {
    'aten::einsum': _einsum,
    'aten::scaled_dot_product_attention': attention_macs,
    'aten::baddbmm': _batched_product,
}
"""Operator to fvcore handle, beyond fvcore's own; add your operator's here."""


def _refuse_heavy(unsupported: dict[str, int]) -> None:
    foreign = {op for op in unsupported if not op.startswith(('aten::', 'prim::', 'prmim'))}
    missed = sorted((HEAVY_OPS & unsupported.keys()) | foreign)
    if missed:
        raise UndercountError(
            f'the loss path calls {", ".join(missed)}, which nothing counts. Give each a handle in '
            '`prmim_adapters.accounting.flops.OP_HANDLES` (fvcore idiom: inputs, outputs -> MACs)'
        )


@contextmanager
def _static_shapes() -> Iterator[None]:
    """Makes sizes plain integers while tracing.

    The tracer hands out tensors for sizes, which code such as ``F.interpolate(size=(H, W))`` cannot take; and a count
    needs no symbolic sizes.
    """
    base = torch._C.TensorBase

    def shape(self: Tensor) -> torch.Size:
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)
        try:
            return base.shape.__get__(self)  # type: ignore[attr-defined]
        finally:
            torch._C._set_tracing_state(state)

    def size(self: Tensor, dim: int | None = None) -> Any:
        return shape(self) if dim is None else shape(self)[dim]

    torch.Tensor.shape = property(shape)  # type: ignore[assignment, misc]
    torch.Tensor.size = size  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del torch.Tensor.shape, torch.Tensor.size  # the base class's are seen again


@contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    logger = logging.getLogger('fvcore')
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            logger.setLevel(level)


# ---- FlopCounterMode ---------------------------------------------------------------------------------------------------


def _convolution_backward(
    grad: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any,
    out_shape: Any = None, **kwargs: Any,
) -> int:
    """FLOPs of the two gradients, each as many as the forward; torch's own formula forgets the groups."""
    output_mask = rest[-1]
    pixels = math.prod((x if transposed else grad)[2:])
    return 2 * sum(output_mask[:2]) * grad[0] * math.prod(weight) * pixels


def _watch(step: Callable[[], Any], images: int) -> MacCount:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with sdpa_kernel(SDPBackend.MATH), counter:
        step()
    macs = {name: sum(ops.values()) / 2 / images for name, ops in counter.get_flop_counts().items()}
    operators = counter.get_flop_counts()['Global']
    return MacCount(
        total=macs['Global'],
        by_module={_inside(name): value for name, value in macs.items() if _inside(name) and value},
        by_operator={str(op): flops / 2 / images for op, flops in operators.items()},
    )


def _difference(both: MacCount, forward: MacCount) -> MacCount:
    def minus(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
        return {name: value - right.get(name, 0) for name, value in left.items()}

    return MacCount(
        total=both.total - forward.total,
        by_module=minus(both.by_module, forward.by_module),
        by_operator=minus(both.by_operator, forward.by_operator),
    )


def _inside(name: str) -> str:
    """``'LossPath.model.neck'`` or ``'model.neck'`` -> ``'neck'``; names outside the model -> ``''``."""
    _, found, rest = name.removeprefix('LossPath.').partition('model.')
    return rest if found else ''


def _first(inputs: Tensor | list[Tensor]) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else inputs[0]
