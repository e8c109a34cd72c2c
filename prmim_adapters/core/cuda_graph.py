# SPDX-License-Identifier: Apache-2.0
"""Forward and backward pass as one CUDA graph: the host starts hundreds of kernels with one call.

Throwing tokens makes kernels smaller, not fewer, so the host that queues them sets the pace of many
models before the device does. What is captured runs no Python again: nothing in it may look at a
value on the device, or change from step to step other than by tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is done with a tensor is being captured, so that none of its values is known."""
    if torch.compiler.is_compiling() or not tensor.is_cuda:
        return False
    return torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Capture:
    """A captured pass: what it reads, what it returned, and the gradients that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Any
    gradients: list[tuple[nn.Parameter, Tensor]]


class CapturedPass:
    """A forward and backward pass that is captured at its second call, and replayed from then on.

    Gradients are those of the pass alone: clear them (``set_to_none=True``) before each call.

    Args:
        model: whose parameters get gradients.

    Raises:
        RuntimeError: the pass cannot be captured: it waits for the device, say. The model is as it
            was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stream = torch.cuda.Stream()
        self._captures: dict[Hashable, _Capture | None] = {}

    def __call__(
        self,
        tensors: Sequence[Tensor],
        run: Callable[[Sequence[Tensor]], Any],
        key: Hashable = None,
    ) -> Any:
        """What ``run(tensors)`` returns, a tree of tensors, good until the next call.

        Args:
            tensors: all that differs between calls, on the device.
            run: the pass, forward and backward.
            key: what else it depends on; shapes of ``tensors`` need no mention.
        """
        key = (key, tuple((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self._captures:
            self._captures[key] = None  # the first call sets up what kernels need
            return self._aside(run, tensors)
        capture = self._captures[key]
        if capture is None:
            capture = self._captures[key] = self._captured(tensors, run)
        torch._foreach_copy_(capture.inputs, list(tensors))
        capture.graph.replay()
        for parameter, gradient in capture.gradients:
            parameter.grad = gradient
        return capture.result

    def _aside(self, run: Callable[[Sequence[Tensor]], Any], tensors: Sequence[Tensor]) -> Any:
        """Run on the stream of the captures, where autograd keeps the places of the gradients."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = run(tensors)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _captured(
        self, tensors: Sequence[Tensor], run: Callable[[Sequence[Tensor]], Any]
    ) -> _Capture:
        inputs = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, which load data, may go on meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode='thread_local'):
                result = run(inputs)
        except RuntimeError as error:
            raise RuntimeError(
                f'the step cannot become a CUDA graph: {error}. Something in it waits for the '
                'device, copies from the host, or is made again in backward (with_cp); do without '
                'that, or without the graph'
            ) from error
        written = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        return _Capture(graph, inputs, result, written)
