# SPDX-License-Identifier: Apache-2.0
"""Interleaved training steps with peak memory, and the largest batches that fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from cross_decoder import cross_subject
from torch import Tensor, nn

from prmim_adapters.accounting.bench import (
    BenchReport,
    Settings,
    Subject,
    config_batch,
    measure,
    with_peaks,
)
from prmim_adapters.accounting.largest import largest_batches
from prmim_adapters.accounting.memory import activation_bytes
from prmim_adapters.accounting.peak import PeakMemory
from prmim_adapters.accounting.sources import source_of
from prmim_adapters.accounting.throughput import Timing
from prmim_adapters.accounting.variants import FRAMEWORK, OURS, build_variant
from prmim_adapters.openmmlab.models import load_config

from .context import Context, optimizer_of
from .plan import ROUNDS, WARMUP


def bench(
    context: Context,
    config: str,
    batch: int,
    ratios: tuple[float, ...] = (0.5,),
    attention: str = 'fused',
    compiled: bool = False,
    captured: bool = False,
    peer: bool = False,
    dense: bool = False,
    by_length: bool = False,
) -> dict[str, Any]:
    """Times and peaks of the framework, plain partial reconstruction and PR-MIM.

    Args:
        context: of the run.
        config: name of a shipped config, or ``module:function``.
        batch: images.
        ratios: throw ratios.
        attention: 'fused' or 'explicit'.
        compiled: with torch.compile.
        captured: as CUDA graphs.
        peer: the cross-attention decoder beside them.
        dense: the framework with its masked, dense encoder beside the packed one.
        by_length: PR-MIM with one call of the encoder for each length of sequence.
    """
    path = context.config(config)
    timing = dict(attention=attention, compiled=compiled, captured=captured)
    settings = settings_of(context, batch, **timing)
    source = source_of(path)
    subjects = source.subjects(ratios)
    if peer:
        subjects.append(cross_subject(path))
    if dense:
        subjects.append(Subject('framework, dense encoder', partial(build_dense, path)))
    if by_length:
        build = partial(build_by_length, path, ratios[0])
        subjects.append(Subject(f'length by length {ratios[0]:g}', build))
    make, optimizer = partial(source.large_batch, settings.batch_size), source.optimizer
    if compiled:
        torch._dynamo.reset()
    timed = measure(config, subjects, make, settings, optimizer)
    context.keep(timed.to_dict())
    if context.device == 'cpu':
        return with_saved(timed, subjects, make).to_dict()
    return with_peaks(timed, subjects, make, optimizer).to_dict()


def largest(context: Context, config: str, first: int) -> dict[str, Any]:
    """Largest batch of the framework and of PR-MIM; counted against little memory in a dry run."""
    path = context.config(config)
    subjects = [
        Subject(FRAMEWORK, partial(build_variant, path, FRAMEWORK)),
        Subject(f'{OURS} 0.5', partial(build_variant, path, OURS, 0.5)),
    ]
    settings = settings_of(context, first)
    make, limit = partial(config_batch, path, settings.batch_size), 2e7 if context.dry else None
    return largest_batches(config, subjects, make, settings, optimizer_of(path), limit).to_dict()


def settings_of(context: Context, batch: int, **timing: Any) -> Settings:
    """bf16 on the device; two images, fp32, one round, no compiler and no graph in a dry run."""
    if context.dry:
        attention = timing.get('attention', 'fused')
        return Settings(2, 'cpu', Timing(1, 1, attention=attention), memory=False)
    return Settings(batch, context.device, Timing(ROUNDS, WARMUP, 'bf16', **timing), memory=False)


def with_saved(report: BenchReport, subjects: list[Subject], make: Any) -> BenchReport:
    """Saved activations in place of peaks, which on a CPU would need a process for each model."""
    measured = []
    for entry, subject in zip(report.measured, subjects, strict=True):
        model = subject.build()
        batch = make(model)
        each = activation_bytes(model, batch, report.settings.timing.attention)  # type: ignore[arg-type]
        saved = round(each * report.settings.batch_size)
        measured.append(replace(entry, memory=PeakMemory(saved=saved)))
    return replace(report, measured=measured)


def build_dense(config: str) -> nn.Module:
    """The config's framework with an encoder that computes masked positions too."""
    loaded = load_config(config)
    loaded.model.framework.backbone.execution = 'dense'
    return build_variant(loaded, FRAMEWORK)


def build_by_length(config: str, ratio: float) -> nn.Module:
    """The config's iBOT with PR-MIM, its encoder called once for each length of sequence."""
    model = build_variant(config, OURS, ratio)
    backbone = model.backbone

    def by_length(packed: Tensor, lengths: list[int]) -> Tensor:
        runs = [list(run) for _, run in groupby(lengths)]
        parts = zip(packed.split([sum(run) for run in runs]), runs, strict=True)
        encoded = [backbone.encode(part.unflatten(0, (len(run), -1))) for part, run in parts]
        return torch.cat([part.flatten(0, 1) for part in encoded])

    assert callable(backbone._encode_ragged), 'the method that is replaced'
    backbone._encode_ragged = by_length
    return model
