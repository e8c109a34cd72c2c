# SPDX-License-Identifier: Apache-2.0
"""``prmim bench --largest-batch``: the largest batch whose training step fits into memory.

On CUDA a batch fits if two steps run without the allocator's out-of-memory error. The memory of a
CPU is not a wall but a machine that slows down and ends processes, so there a limit has to be named,
and memory is counted: parameters, gradients, optimizer state and activations saved for backward.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..core.seeding import seeded
from ..progress import step
from ..tables import Table
from .batch import repeated
from .bench import Settings, Subject
from .environment import environment
from .loss_path import Batch
from .memory import parameter_bytes
from .throughput import training_step

MOST_TRIALS = 24
FARTHEST_GUESS = 8
"""A size is at most this many times one that fits: two small sizes do not say much about it."""

_ALLOCATION = ('out of memory', 'ALLOC_FAILED', 'cudaErrorMemoryAllocation')


@dataclass(frozen=True)
class Trial:
    """One batch size: peak bytes if its steps ran, else the reason why they did not."""

    batch_size: int
    peak: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LargestBatch:
    """What was found for one subject.

    Attributes:
        label: of the subject.
        trials: all sizes that were tried, in order.
    """

    label: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The largest size that fits; None if none does."""
        fitting = [trial for trial in self.trials if trial.peak is not None]
        return max(fitting, key=lambda trial: trial.batch_size, default=None)

    @property
    def refused(self) -> Trial | None:
        """The smallest size that did not fit."""
        failing = [trial for trial in self.trials if trial.peak is None]
        return min(failing, key=lambda trial: trial.batch_size, default=None)


@dataclass(frozen=True)
class LargestReport:
    """Largest batches of several subjects on one device.

    Attributes:
        capacity: bytes that the device had for them.
    """

    name: str
    settings: Settings
    environment: dict[str, Any]
    capacity: int
    found: list[LargestBatch]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        for entry, found in zip(data['found'], self.found, strict=True):
            entry['batch_size'] = found.best.batch_size if found.best else 0
            entry['ratio'] = self._ratio(found)
        return data

    def table(self) -> Table:
        """One line for each subject."""
        counted = ', counted' if self.settings.kind == 'cpu' else ''
        title = (
            f'{self.name}, {self.settings.timing.precision}, {self.environment["device"]}, '
            f'{self.capacity / 1e9:.1f} GB{counted}'
        )
        head = ['', 'largest batch', 'against the first', 'peak MB', 'smallest that did not fit']
        return Table(head, [self._cells(found) for found in self.found], title)

    def markdown(self) -> str:
        """The table."""
        return self.table().markdown()

    def _cells(self, found: LargestBatch) -> list[str]:
        best, refused, ratio = found.best, found.refused, self._ratio(found)
        return [
            found.label,
            str(best.batch_size) if best else 'none',
            f'{ratio:.2f}' if ratio else '-',
            f'{best.peak / 1e6:.0f}' if best and best.peak else '-',
            f'{refused.batch_size} ({refused.reason})' if refused else 'not looked for',
        ]

    def _ratio(self, found: LargestBatch) -> float | None:
        first = self.found[0].best
        return found.best.batch_size / first.batch_size if found.best and first else None


def largest_batches(
    name: str,
    subjects: Sequence[Subject],
    batch: Callable[[nn.Module], Batch],
    settings: Settings,
    optimizer: dict | None = None,
    limit: float | None = None,
) -> LargestReport:
    """The largest batch of each subject, a multiple of ``settings.batch_size``, to one per cent.

    Args:
        name: title of the report.
        subjects: the first one is the base of the ratios.
        batch: model to a batch on the model's device, from which larger ones are made by
            repeating its images.
        settings: device, precision, attention; ``batch_size`` is the first size tried.
        optimizer: mmengine config; AdamW by default.
        limit: bytes that may be used. Needed on the CPU; on CUDA all that is free by default.

    Raises:
        ValueError: a CPU without a limit, or in bf16, a compiled model, or several processes.
    """
    _check(settings, limit)
    device = torch.device(settings.kind)
    with _limited(device, limit) as capacity:
        found = [
            LargestBatch(
                subject.label, _search_subject(subject, batch, settings, optimizer, capacity)
            )
            for subject in subjects
        ]
    return LargestReport(name, settings, environment(device), capacity, found)


def _check(settings: Settings, limit: float | None) -> None:
    timing = settings.timing
    if settings.kind == 'cpu' and limit is None:
        raise ValueError(
            'the largest batch of a CPU is what its machine survives: name a limit in GB '
            '(--memory-limit), against which parameters, gradients, optimizer state and saved '
            'activations are counted'
        )
    if settings.kind == 'cpu' and timing.precision != 'fp32':
        raise ValueError(f'precision={timing.precision!r} on a CPU: memory is counted in fp32 only')
    if timing.compiled or settings.processes > 1:
        raise ValueError(
            'the largest batch is looked for in one process without torch.compile, which would '
            'compile for every size: leave out --compile and --processes'
        )
    if limit is not None and limit <= 0:
        raise ValueError(f'limit={limit}: must be above 0')


def search(attempt: Callable[[int], Trial], capacity: int, first: int) -> tuple[Trial, ...]:
    """Try sizes, multiples of ``first``, until the largest that fits is known to one per cent.

    Peaks grow about linearly with the batch, so two that fit say where memory ends.
    """
    trials: list[Trial] = []
    size: int | None = first
    while size is not None and len(trials) < MOST_TRIALS:
        trials.append(attempt(size))
        size = _next_size(trials, capacity, first)
    return tuple(trials)


def _next_size(trials: list[Trial], capacity: int, first: int) -> int | None:
    fitting = sorted((t.batch_size, t.peak) for t in trials if t.peak is not None)
    refused = min((t.batch_size for t in trials if t.peak is None), default=None)
    if not fitting:
        return None  # not even the first
    low, peak = fitting[-1]
    step = max(first, low // 100 // first * first)
    if refused is not None and refused - low <= step:
        return None
    guess = 2 * low
    if len(fitting) > 1:
        slope = (peak - fitting[-2][1]) / (low - fitting[-2][0])
        room = math.inf if slope <= 0 else (capacity - peak) / slope
        guess = low + int(min(room, FARTHEST_GUESS * low)) // first * first
    if refused is not None and guess >= refused:
        guess = (low + refused) // 2 // first * first
    return max(guess, low + step)


def _search_subject(
    subject: Subject,
    batch: Callable[[nn.Module], Batch],
    settings: Settings,
    optimizer: dict | None,
    capacity: int,
) -> tuple[Trial, ...]:
    device = torch.device(settings.kind)
    built: list[tuple[nn.Module, Batch]] = []

    def peak(size: int) -> int:
        if not built:
            with seeded(0):
                new = subject.build().to(device)
                built.append((new, batch(new)))
        model, images = built[0]
        return _peak(model, repeated(images, size), settings, optimizer, capacity)

    def attempt(size: int) -> Trial:
        step(f'{subject.label}: batch {size}')
        try:
            return Trial(size, peak(size))
        except RuntimeError as error:
            reason = _reason(error)
        # After the handler: the error's frames hold tensors. A model that was stopped in the middle
        # of a step is not used again.
        built.clear()
        release(device)
        return Trial(size, reason=reason)

    trials = search(attempt, capacity, settings.batch_size)
    built.clear()
    release(device)
    return trials


def _reason(error: RuntimeError) -> str:
    """'out of memory', or the first line of what another limit says; re-raises what is neither."""
    message = str(error).strip() or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError) or any(t in message for t in _ALLOCATION):
        return 'out of memory'
    if 'INT_MAX' in message or ('32' in message and 'index' in message.lower()):
        return message.splitlines()[0]  # a kernel counts elements in 32 bits
    raise error


def _peak(
    model: nn.Module, batch: Batch, settings: Settings, optimizer: dict | None, capacity: int
) -> int:
    """Peak bytes of two steps: the optimizer's state appears in the first."""
    step = training_step(model, batch, settings.timing, optimizer)
    device = torch.device(settings.kind)
    if device.type == 'cpu':
        return _counted(model, step, optimizer, capacity)
    release(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(), step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _counted(
    model: nn.Module, step: Callable[[], Tensor], optimizer: dict | None, capacity: int
) -> int:
    """Counted bytes of a step; out of memory like a device's allocator, at the same place."""
    static = parameter_bytes(model, optimizer or {'type': 'AdamW'})
    trained = (p for p in model.parameters() if p.requires_grad)
    held = static.parameters + static.buffers + static.optimizer
    held += sum(p.numel() * p.element_size() for p in trained)  # their gradients
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    peak = held

    def note(tensor: Tensor) -> Tensor:
        nonlocal peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            owned.add(storage.data_ptr())
            peak += storage.nbytes()
            if peak > capacity:
                raise torch.OutOfMemoryError(f'out of memory: over {capacity} bytes')
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return peak


@contextmanager
def _limited(device: torch.device, limit: float | None) -> Iterator[int]:
    """Yields the bytes there are; on CUDA the allocator refuses more."""
    if device.type == 'cpu':
        assert limit is not None, 'checked before'
        yield int(limit)
        return
    release(device)
    free, total = torch.cuda.mem_get_info(device)
    if limit is None:
        yield free + torch.cuda.memory_allocated(device)
        return
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
    try:
        yield int(min(limit, total))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def release(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
