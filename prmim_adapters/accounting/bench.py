# SPDX-License-Identifier: Apache-2.0
"""``prmim bench``: speed and peak memory of several models on the same machine, in the same run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..core.seeding import seeded
from ..openmmlab.misfit import misfit_named
from ..openmmlab.models import load_config, own_ratio
from ..progress import track
from ..tables import Table
from .batch import make_batch, repeated
from .data import DataCost
from .environment import environment
from .loss_path import Batch
from .peak import PeakMemory, peak_memory
from .throughput import Times, Timing, time_interleaved, training_step
from .variants import FRAMEWORK, OURS, PLAIN, build_variant

MOST_COMPILED = 8
"""Models that one compiled function is specialised for; torch's default recompile limit."""


MOST_DISTINCT = 64
"""Different images in a batch; sixty-four masks of random size average well."""


@dataclass(frozen=True)
class Subject:
    """A model to measure: how to build it, so that another process can.

    Attributes:
        label: shown in the table.
        build: makes the model on the CPU; picklable.
    """

    label: str
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        batch_size: images per step and process.
        device: 'cpu' or 'cuda'; CUDA if there is one by default.
        timing: rounds, precision, compilation, attention.
        threads: torch's threads on the CPU, per process; None leaves them.
        processes: more than one: DistributedDataParallel, one GPU each (gloo on the CPU).
        memory: whether to measure peak memory too.
    """

    batch_size: int = 8
    device: str | None = None
    timing: Timing = field(default_factory=Timing)
    threads: int | None = None
    processes: int = 1
    memory: bool = True

    def __post_init__(self) -> None:
        if self.device not in (None, 'cpu', 'cuda'):
            raise ValueError(
                f"device={self.device!r}: allowed are 'cpu' and 'cuda'; CUDA_VISIBLE_DEVICES "
                'chooses among GPUs'
            )
        if self.timing.captured and (self.kind != 'cuda' or self.processes > 1):
            raise ValueError(
                f'a CUDA graph with device={self.kind!r}, processes={self.processes}: measure it '
                'on a GPU, in one process'
            )

    @property
    def kind(self) -> str:
        """'cpu' or 'cuda'."""
        return self.device or ('cuda' if torch.cuda.is_available() else 'cpu')


@dataclass(frozen=True)
class Measured:
    """Figures of one subject: times of its steps, and peak memory or None."""

    label: str
    times: Times
    memory: PeakMemory | None = None


@dataclass(frozen=True)
class BenchReport:
    """Subjects measured together, the first one being what the others are compared with.

    Attributes:
        data: what the config's images cost before they reach a model, or None.
    """

    name: str
    settings: Settings
    environment: dict[str, Any]
    measured: list[Measured]
    data: DataCost | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the fields, medians and ratios beside them."""
        data = asdict(self)
        for entry, subject in zip(data['measured'], self.measured, strict=True):
            entry['median_seconds'] = subject.times.median
            entry['spread'] = subject.times.spread
            entry['images_per_second'] = self.images_per_second(subject)
            entry['time_ratio'] = subject.times.ratio_to(self.measured[0].times)
            entry['processor_ratio'] = self._processor_ratio(subject)
            entry['memory_ratio'] = self.memory_ratio(subject)
            entry['data_cores'] = self.data and self.data.cores(self._speed(subject))
        return data

    def images_per_second(self, subject: Measured) -> float:
        """Of all processes together."""
        return self.settings.processes * self._speed(subject)

    def _speed(self, subject: Measured) -> float:
        """Images per second of one process."""
        return self.settings.batch_size / subject.times.median

    def memory_ratio(self, subject: Measured) -> float | None:
        """Peak memory against the first subject's, or None where it was not measured."""
        ours, base = subject.memory, self.measured[0].memory
        if ours is None or base is None or not ours.peak or not base.peak:
            return None
        return ours.peak / base.peak

    def _processor_ratio(self, subject: Measured) -> float | None:
        """On the CPU only: a GPU's process waits."""
        if self.settings.kind != 'cpu':
            return None
        return subject.times.processor_ratio_to(self.measured[0].times)

    def table(self) -> Table:
        """One line for each subject; where it was measured above, what images cost below."""
        timing, where = self.settings.timing, self.environment
        title = (
            f'{self.name}, batch {self.settings.batch_size}, {timing.precision}, '
            f'{timing.attention} attention{", compiled" if timing.compiled else ""}'
            f'{", CUDA graph" if timing.captured else ""}; '
            f'{where["device"]}, {self.settings.processes} process(es), '
            f'{where["threads"]} threads, torch {where["packages"]["torch"]}'
        )
        head = ['', 'step ms', 'spread', 'img/s', 'time', 'CPU time', 'peak MB', 'memory']
        speeds = {subject.label: self._speed(subject) for subject in self.measured}
        data = self.data.markdown(speeds) if self.data else 'Data: not measured.'
        notes = (
            f'Time, CPU time and memory are relative to the first row; - was not measured. {data}'
        )
        return Table(head, [self._cells(subject) for subject in self.measured], title, notes)

    def markdown(self) -> str:
        """The table."""
        return self.table().markdown()

    def _cells(self, subject: Measured) -> list[str]:
        peak = subject.memory.peak if subject.memory else None
        ratio = self.memory_ratio(subject)
        return [
            subject.label,
            f'{subject.times.median * 1e3:.1f}',
            f'{subject.times.spread:.1%}',
            f'{self.images_per_second(subject):.1f}',
            f'{subject.times.ratio_to(self.measured[0].times):.3f}',
            _ratio(self._processor_ratio(subject)),
            '-' if peak is None else f'{peak / 1e6:.0f}',
            _ratio(ratio),
        ]


def config_subjects(config: str, ratios: Sequence[float] = ()) -> list[Subject]:
    """Framework, then plain partial reconstruction and PR-MIM at every ratio."""
    subjects = [Subject(FRAMEWORK, partial(build_variant, config, FRAMEWORK))]
    for ratio in ratios or [own_ratio(load_config(config))]:
        for name in (PLAIN, OURS):
            build = partial(build_variant, config, name, ratio)
            subjects.append(Subject(f'{name} {ratio:g}', build))
    return subjects


def config_batch(config: str, batch_size: int, model: nn.Module) -> Batch:
    """A random batch of the config for the model, on its device.

    Beyond ``MOST_DISTINCT`` images they repeat: what a step costs does not depend on them.
    """
    batch = make_batch(load_config(config), model, batch_size=min(batch_size, MOST_DISTINCT))
    return repeated(batch, batch_size)


def measure(
    name: str,
    subjects: Sequence[Subject],
    batch: Callable[[nn.Module], Batch],
    settings: Settings,
    optimizer: dict | None = None,
) -> BenchReport:
    """Time all subjects interleaved, then measure each one's memory by itself.

    Args:
        name: title of the report.
        subjects: the first one is the base of all ratios.
        batch: model to batch, on the model's device; picklable.
        settings: how.
        optimizer: mmengine config; AdamW by default.

    Raises:
        ValueError: more models to compile than torch keeps apart.
    """
    if settings.timing.compiled and len(subjects) > MOST_COMPILED:
        raise ValueError(
            f'{len(subjects)} models to compile: torch.compile would leave some of them uncompiled; '
            f'measure at most {MOST_COMPILED} at a time (three throw ratios)'
        )
    arguments = (list(subjects), batch, settings, optimizer)
    if settings.processes == 1:
        times, where = _time(0, *arguments)
    else:
        times, where = _time_distributed(*arguments)
    measured = [Measured(s.label, seconds) for s, seconds in zip(subjects, times, strict=True)]
    report = BenchReport(name, settings, where, measured)
    return with_peaks(report, subjects, batch, optimizer) if settings.memory else report


def with_peaks(
    report: BenchReport,
    subjects: Sequence[Subject],
    batch: Callable[[nn.Module], Batch],
    optimizer: dict | None = None,
) -> BenchReport:
    """The report of the same subjects with each one's peak memory."""
    settings = report.settings
    gc.collect()
    gc.collect()
    torch.cuda.empty_cache()  # what the timed models held is for those to come
    peaks = [
        peak_memory(s.build, batch, settings.timing, settings.kind, optimizer, settings.threads)
        for s in track(subjects, lambda subject: f'memory of {subject.label}')
    ]
    measured = [replace(m, memory=peak) for m, peak in zip(report.measured, peaks, strict=True)]
    return replace(report, measured=measured)


def _time(
    rank: int,
    subjects: list[Subject],
    batch: Callable[[nn.Module], Batch],
    settings: Settings,
    optimizer: dict | None,
) -> tuple[list[Times], dict[str, Any]]:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(settings.kind, rank) if settings.kind == 'cuda' else torch.device('cpu')
    wrap: Callable[[nn.Module], nn.Module] = lambda path: path  # noqa: E731
    if settings.processes > 1:
        wrap = DistributedDataParallel
    steps = []
    for subject in track(subjects, lambda subject: f'building {subject.label}'):
        with seeded(0):
            model = subject.build().to(device)
            images = batch(model)
            steps.append(training_step(model, images, settings.timing, optimizer, wrap))
    with misfit_named(model, images['inputs']):
        return time_interleaved(steps, settings.timing, device), environment(device)


def _time_distributed(*arguments: Any) -> tuple[list[Times], dict[str, Any]]:
    context = torch.multiprocessing.get_context('spawn')
    results = context.SimpleQueue()
    settings: Settings = arguments[2]
    torch.multiprocessing.spawn(
        _worker, (results, _free_port(), arguments), settings.processes, join=True
    )
    return results.get()


def _worker(rank: int, results: Any, port: int, arguments: tuple[Any, ...]) -> None:
    settings: Settings = arguments[2]
    cuda = settings.kind == 'cuda'
    if cuda:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        'nccl' if cuda else 'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=settings.processes,
    )
    result = _time(rank, *arguments)
    if rank == 0:
        results.put(result)
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _ratio(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'
