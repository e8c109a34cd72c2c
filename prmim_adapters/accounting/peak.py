# SPDX-License-Identifier: Apache-2.0
"""Peak memory of training steps, of each model by itself.

On CUDA the allocator's statistics can be reset, so one model after the other runs in this process.
A resident set only grows, so on the CPU each model has a process of its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import described
from .loss_path import Batch, num_images
from .memory import activation_bytes
from .throughput import Timing, training_step


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of steps of one model; None where the device has no such number.

    Attributes:
        allocated: peak of torch's allocator on CUDA, ``reserved`` what it took from the driver.
        resident: peak resident set on the CPU, ``resident_before`` the resident set when the
            model was built and no step had run.
        saved: activations saved for backward, of the whole batch, in fp32.
    """

    allocated: int | None = None
    reserved: int | None = None
    resident: int | None = None
    resident_before: int | None = None
    saved: int | None = None

    @property
    def peak(self) -> int | None:
        """Allocated on CUDA; on the CPU what the steps added to the resident set."""
        if self.allocated is not None:
            return self.allocated
        if self.resident is None or self.resident_before is None:
            return None
        return self.resident - self.resident_before


def peak_memory(
    build: Callable[[], nn.Module],
    make_batch: Callable[[nn.Module], Batch],
    timing: Timing,
    device: str,
    optimizer: dict | None = None,
    threads: int | None = None,
) -> PeakMemory:
    """Run three steps; on the CPU in a fresh process.

    Args:
        build: makes the model, on the CPU; picklable, as are the others.
        make_batch: model to batch on the model's device.
        timing: precision, compilation and attention.
        device: 'cpu', 'cuda' or 'cuda:1'.
        optimizer: mmengine config.
        threads: torch's threads.

    Raises:
        RuntimeError: the process failed, with its error.
    """
    if torch.device(device).type == 'cuda':
        return _measure_cuda(build, make_batch, timing, torch.device(device), optimizer)
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, build, make_batch, timing, optimizer, threads)
    process = context.Process(target=_report, args=arguments)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = f'it ended with exit code {process.exitcode}'
    process.join()
    if isinstance(result, str):
        raise RuntimeError(f'the process that measures memory failed: {result}')
    return result


def _report(sender: multiprocessing.connection.Connection, *arguments: object) -> None:
    try:
        sender.send(_measure(*arguments))  # type: ignore[arg-type]
    except Exception as error:
        sender.send(described(error))


def _measure_cuda(
    build: Callable[[], nn.Module],
    make_batch: Callable[[nn.Module], Batch],
    timing: Timing,
    device: torch.device,
    optimizer: dict | None,
) -> PeakMemory:
    """Above what this process holds already, which should be little."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    model = build().to(device)
    step = training_step(model, make_batch(model), timing, optimizer)
    for _ in range(3):  # the optimizer's state appears in the first
        step()
    torch.cuda.synchronize(device)
    return PeakMemory(
        allocated=torch.cuda.max_memory_allocated(device) - allocated,
        reserved=torch.cuda.max_memory_reserved(device) - reserved,
    )


def _measure(
    build: Callable[[], nn.Module],
    make_batch: Callable[[nn.Module], Batch],
    timing: Timing,
    optimizer: dict | None,
    threads: int | None,
) -> PeakMemory:
    if threads:
        torch.set_num_threads(threads)
    model = build()
    batch = make_batch(model)
    step = training_step(model, batch, timing, optimizer)
    before = _resident('VmRSS')
    for _ in range(3):  # the optimizer's state appears in the first
        step()
    peak = _resident('VmHWM')
    per_image = activation_bytes(model, batch, timing.attention)  # type: ignore[arg-type]
    saved = round(per_image * num_images(batch))
    return PeakMemory(resident=peak, resident_before=before, saved=saved)


def _resident(field: str) -> int | None:
    """Bytes; ``getrusage`` is no substitute on Linux, where it starts from the parent's peak."""
    status = Path('/proc/self/status')
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if field == 'VmHWM' else None
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
