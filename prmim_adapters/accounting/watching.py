# SPDX-License-Identifier: Apache-2.0
"""Forward and backward FLOPs by ``torch.utils.flop_counter``, attributed to modules.

Torch's own attribution follows the gradients of module outputs and loses its way where a module
returns several tensors. Here a backward operator belongs to the module that saved the tensors it
unpacks: matrix products and convolutions always unpack some.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def watch(root: nn.Module, step: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
    """FLOPs (2 per multiply-add) of ``step``, with explicit attention so that its products show.

    Returns:
        FLOPs by operator, and by submodule of ``root`` (each without its children's).
    """
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    meter = _Meter(counter)
    with sdpa_kernel(SDPBackend.MATH), counter, meter.reading(root):
        step()
    operators = counter.get_flop_counts().get('Global', {})
    return Counter({str(op): flops for op, flops in operators.items()}), meter.charged


class _Meter:
    """Charges what the counter gained since the last look to the module that was running."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.charged: Counter[str] = Counter()
        self.running: list[str] = ['']
        self._seen = 0

    def look(self) -> None:
        total = self.counter.get_total_flops()
        self.charged[self.running[-1]] += total - self._seen
        self._seen = total

    @contextmanager
    def reading(self, root: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in root.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave))
        with saved_tensors_hooks(self._pack, self._unpack):
            yield
        self.look()
        for handle in handles:
            handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.look()
            self.running.append(name)

        return hook

    def _leave(self, *_: Any) -> None:
        self.look()
        self.running.pop()

    def _pack(self, tensor: Tensor) -> tuple[str, Tensor]:
        return self.running[-1], tensor

    def _unpack(self, packed: tuple[str, Tensor]) -> Tensor:
        self.look()
        self.running[-1], tensor = packed
        return tensor


def _convolution_backward(
    grad: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, padding_out: Any, groups: int, output_mask: list[bool], **_: Any,
) -> int:  # fmt: skip
    """FLOPs of the wanted gradients, each as many as the forward's.

    Torch's own formula counts the weight gradient of a grouped convolution as if it were dense.
    """
    pixels = math.prod((x if transposed else grad)[2:])
    return 2 * sum(output_mask[:2]) * grad[0] * math.prod(weight) * pixels
