# SPDX-License-Identifier: Apache-2.0
"""Forward MACs by fvcore, which traces the loss path: handles, and what tracing needs.

fvcore's last release is of 2022, and it stands on ``torch.jit``, which torch has deprecated: it is
imported only here, when something is counted.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .loss_path import LossPath

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis

HEAVY_OPS = frozenset(
    f'aten::{name}'
    for name in [
        *('_int_mm', '_scaled_mm', '_sparse_addmm', '_sparse_mm', 'addbmm', 'addmv', 'addr'),
        *('bilinear', '_trilinear', 'cdist', '_cdist_forward', 'chain_matmul', 'dot', 'inner'),
        *('kron', 'linalg_matmul', 'linalg_multi_dot', 'mv', 'outer', 'tensordot', 'vdot'),
        *('conv1d', 'conv2d', 'conv3d', 'conv_transpose2d', 'convolution', 'deform_conv2d'),
        *('cudnn_convolution', 'mkldnn_convolution', 'fft_fft2', 'fft_rfft2', 'fft_irfft2'),
        *('gru', 'lstm', 'rnn_tanh', '_transformer_encoder_layer_fwd'),
        *('_native_multi_head_attention', 'multi_head_attention_forward'),
        *(f'_scaled_dot_product_{kind}_attention' for kind in ('flash', 'efficient', 'cudnn')),
        '_scaled_dot_product_flash_attention_for_cpu',
    ]
)
"""Operators that compute much and for which there is no handle: meeting one is an error."""

LIGHT = ('layer_norm', 'batch_norm', 'group_norm', 'instance_norm', 'upsample', 'adaptive_avg')
"""Prefixes of the names under which fvcore counts what ``FlopCounterMode`` leaves out."""


def attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Handle of attention: query (..., N, D), key (..., M, D), value (..., M, E)."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return Counter({'attention': math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Handle of ``baddbmm``: bias, (B, N, K), (B, K, M)."""
    left, right = _shape(inputs[1]), _shape(inputs[2])
    return Counter({'bmm': math.prod(left) * right[-1]})


def einsum_macs(inputs: list[Any], outputs: list[Any]) -> Any:
    """Handle of ``einsum``: the product of all index sizes.

    fvcore's own rounds to three digits, and charges a permutation (MAE's ``patchify``).
    """
    operands = list(inputs[1].node().inputs())
    equation = inputs[0].toIValue().replace(' ', '')
    if len(operands) == 1:
        return 0
    if len(operands) > 2 or '.' in equation:
        from fvcore.nn.jit_handles import einsum_flop_jit

        return einsum_flop_jit(inputs, outputs)
    sizes: dict[str, int] = {}
    for letters, operand in zip(equation.split('->')[0].split(','), operands, strict=True):
        sizes |= dict(zip(letters, _shape(operand), strict=True))
    return Counter({'einsum': math.prod(sizes.values())})


def layer_norm_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Handle of ``layer_norm``, as fvcore's own, which takes at most five axes: Hiera has six."""
    affine = len(inputs) > 2 and inputs[2].type().kind() == 'TensorType'
    return Counter({'layer_norm': math.prod(_shape(inputs[0])) * (5 if affine else 4)})


OP_HANDLES: dict[str, Callable] = {
    'aten::layer_norm': layer_norm_macs,
    'aten::scaled_dot_product_attention': attention_macs,
    'aten::baddbmm': baddbmm_macs,
    'aten::einsum': einsum_macs,
}
"""Operator to handle ``(inputs, outputs) -> MACs``, beyond fvcore's own. Add your operator's."""


def why_unavailable() -> str:
    """Why fvcore cannot be imported, or '' if it can."""
    try:
        import fvcore.nn  # noqa: F401
    except (ImportError, AttributeError) as error:  # what it takes from torch.jit may be gone
        return f'{type(error).__name__}: {error}'
    return ''


def trace(path: LossPath, views: tuple[Tensor, ...]) -> FlopCountAnalysis:
    """Run one traced forward of the loss path and return its analysis, not yet per image."""
    from fvcore.nn import FlopCountAnalysis

    with torch.no_grad(), _static_shapes(), _quiet():
        analysis = FlopCountAnalysis(path, views).set_op_handle(**OP_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.total()  # traces now, and caches
    return analysis


def uncounted_heavy_ops(unsupported: Counter[str]) -> list[str]:
    """Those of the operators without handle that compute much, or that are unknown.

    An operator of another library may compute anything. This package's own only choose tokens.
    """
    known = ('aten::', 'prim::', 'prmim_adapters::')
    foreign = {op for op in unsupported if not op.startswith(known)}
    return sorted((HEAVY_OPS & unsupported.keys()) | foreign)


def _shape(value: Any) -> list[int]:
    from fvcore.nn.jit_handles import get_shape

    shape = get_shape(value)
    if shape is None:
        raise ValueError(f'the trace lost the shape of {value}')
    return shape


@contextmanager
def _static_shapes() -> Iterator[None]:
    """Make sizes plain integers while tracing.

    The tracer hands out tensors for sizes, which ``F.interpolate(size=(H, W))``, for one, cannot
    take; a count does not need them to be symbolic.
    """
    internals: Any = torch._C

    def shape(self: Tensor) -> torch.Size:
        state = internals._get_tracing_state()
        internals._set_tracing_state(None)
        try:
            return internals.TensorBase.shape.__get__(self)
        finally:
            internals._set_tracing_state(state)

    def size(self: Tensor, dim: int | None = None) -> Any:
        return shape(self) if dim is None else shape(self)[dim]

    def scatter_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(kwargs.get('value'), bool):  # the tracer has no operator for it (SparK.mask)
            kwargs['value'] = int(kwargs['value'])
        return internals.TensorBase.scatter_(self, *args, **kwargs)

    tensor_class: Any = torch.Tensor
    tensor_class.shape, tensor_class.size = property(shape), size
    tensor_class.scatter_ = scatter_
    try:
        yield
    finally:  # those of the base class show again
        del tensor_class.shape, tensor_class.size, tensor_class.scatter_


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer: every warning is about values baked into a trace that is thrown away."""
    logger = logging.getLogger('fvcore')
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        finally:
            logger.setLevel(level)
