# SPDX-License-Identifier: Apache-2.0
"""Timed training steps: interleaved, warmed up, medians.

A step is forward, backward and optimizer on one fixed batch. Every round runs one step of each
model, in rotating order, so that a machine that slows down slows all of them; ratios are medians
of the ratios within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.cuda_graph import CapturedPass
from ..core.options import check_choice
from ..progress import track
from .loss_path import Batch, LossPath
from .memory import ATTENTION

PRECISIONS = {'fp32': None, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class Timing:
    """How to run steps.

    Attributes:
        steps: measured rounds.
        warmup: rounds before them; compilation falls into the first.
        precision: 'fp32', or 'bf16' (autocast).
        compiled: whether torch.compile makes the loss path.
        attention: 'fused' as torch chooses, or 'explicit'.
        captured: whether forward and backward pass are one CUDA graph, from the second step on.
    """

    steps: int = 10
    warmup: int = 2
    precision: str = 'fp32'
    compiled: bool = False
    attention: str = 'fused'
    captured: bool = False

    def __post_init__(self) -> None:
        check_choice('precision', self.precision, PRECISIONS)
        check_choice('attention', self.attention, ATTENTION)
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(f'steps={self.steps}, warmup={self.warmup}: need at least 1 and 0')
        if self.captured and (self.compiled or self.warmup < 2):
            raise ValueError(
                f'captured=True with compiled={self.compiled}, warmup={self.warmup}: capture steps '
                'that are not compiled, after a warm-up of 2'
            )


@dataclass(frozen=True)
class Times:
    """Seconds of the measured steps of one model, in order of the rounds.

    Attributes:
        seconds: by the clock.
        processor: processor time of the process. On a shared CPU, with one thread, it is the
            steadier of the two: it leaves out what other programs take.
    """

    seconds: tuple[float, ...]
    processor: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median

    def ratio_to(self, base: Times) -> float:
        """Median of the ratios within a round, by the clock."""
        return _median_ratio(self.seconds, base.seconds)

    def processor_ratio_to(self, base: Times) -> float | None:
        """The same of processor time; None where it was not taken."""
        return _median_ratio(self.processor, base.processor) if self.processor else None


def _median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def training_step(
    model: nn.Module,
    batch: Batch,
    timing: Timing,
    optimizer: dict | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda path: path,
) -> Callable[[], Tensor]:
    """A function that runs one step of the model, in place, and returns its loss.

    Args:
        model: on its device, with the batch.
        batch: preprocessed.
        timing: precision, compilation and attention.
        optimizer: mmengine config; AdamW by default.
        wrap: around the loss path, for distributed training.
    """
    from mmpretrain.registry import OPTIMIZERS

    from ..openmmlab.compat import make_compilable

    model.train()
    inputs = batch['inputs']
    views = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    path = wrap(LossPath(model, batch))
    if timing.compiled:
        make_compilable(model)
        path = torch.compile(path)  # type: ignore[assignment]
    trained = [p for p in model.parameters() if p.requires_grad]
    update = OPTIMIZERS.build({**(optimizer or {'type': 'AdamW', 'lr': 1e-4}), 'params': trained})

    def forward_and_backward(views: Sequence[Tensor]) -> Tensor:
        with ExitStack() as stack:
            for context in _contexts(views[0].device, timing):
                stack.enter_context(context)
            loss = path(*views)
            loss.backward()
        return loss

    captured = CapturedPass(model) if timing.captured else None

    def step() -> Tensor:
        loss = captured(views, forward_and_backward) if captured else forward_and_backward(views)
        update.step()
        update.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def time_interleaved(
    steps: Sequence[Callable[[], Tensor]], timing: Timing, device: torch.device
) -> list[Times]:
    """Run ``timing.warmup`` and then ``timing.steps`` rounds; seconds of each function.

    Raises:
        RuntimeError: a loss is not finite after the warm-up: such a step may skip work.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    processor: list[list[float]] = [[] for _ in steps]
    rounds = range(timing.warmup + timing.steps)
    for turn in track(rounds, lambda n: 'timing' if n >= timing.warmup else 'warming up'):
        for offset in range(len(steps)):
            index = (turn + offset) % len(steps)
            _wait(device)
            start, used = time.perf_counter(), time.process_time()
            loss = steps[index]()
            _wait(device)
            if turn >= timing.warmup:
                seconds[index].append(time.perf_counter() - start)
                processor[index].append(time.process_time() - used)
            if not torch.isfinite(loss):
                raise RuntimeError(f'model {index} has a loss of {float(loss)}')
    return [Times(tuple(s), tuple(p)) for s, p in zip(seconds, processor, strict=True)]


def _contexts(device: torch.device, timing: Timing) -> list[AbstractContextManager]:
    dtype = PRECISIONS[timing.precision]
    return [
        nullcontext() if dtype is None else torch.autocast(device.type, dtype),
        sdpa_kernel(SDPBackend.MATH) if timing.attention == 'explicit' else nullcontext(),
    ]


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
