# SPDX-License-Identifier: Apache-2.0
"""``prmim bench CONFIG``: what a training step costs, measured."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import click

from ..errors import Mistake, shown_without_traceback
from ..progress import step
from ._options import (
    check_output,
    force_,
    formats,
    refuse_given,
    throw_ratios,
    write_text,
    written,
)
from ._source import chosen
from ._terminal import print_tables, working


@click.command('bench', short_help='What a training step costs, measured.')
@click.argument('config')
@throw_ratios
@click.option('--batch-size', default=8, show_default=True, type=click.IntRange(min=1))
@click.option('--steps', default=10, show_default=True, type=click.IntRange(min=3))
@click.option('--warmup', default=2, show_default=True, type=click.IntRange(min=0))
@click.option(
    '--device', type=click.Choice(['cpu', 'cuda']), help='cuda if there is one, else cpu.'
)
@click.option('--precision', default='fp32', show_default=True, type=click.Choice(['fp32', 'bf16']))
@click.option('--compile/--no-compile', 'compiled', default=False, help='Use torch.compile.')
@click.option(
    '--cuda-graph', 'captured', is_flag=True,
    help='Forward and backward pass as one CUDA graph, as CUDAGraphHook does.',
)  # fmt: skip
@click.option('--threads', type=click.IntRange(min=1), help="Torch's threads on the CPU.")
@click.option('--attention', default='fused', type=click.Choice(['fused', 'explicit']))
@click.option(
    '--processes', default=1, show_default=True, type=click.IntRange(min=1),
    help='DistributedDataParallel if > 1.',
)  # fmt: skip
@click.option('--memory/--no-memory', default=True, help='Measure peak memory.')
@click.option(
    '--data', is_flag=True, help='Measure what images cost, too, and how many cores keep up.'
)
@click.option(
    '--largest-batch', is_flag=True,
    help='Look for the largest batch that fits, in multiples of --batch-size, instead.',
)  # fmt: skip
@click.option(
    '--memory-limit', type=click.FloatRange(min=0, min_open=True), metavar='GB',
    help='For --largest-batch: 1e9 bytes that may be used; on the CPU needed, and counted against.',
)  # fmt: skip
@formats
@written('--out', 'Also write the JSON to this file.')
@force_
def bench(
    config: str,
    ratios: tuple[float, ...],
    batch_size: int,
    steps: int,
    warmup: int,
    device: str | None,
    precision: str,
    compiled: bool,
    captured: bool,
    threads: int | None,
    attention: str,
    processes: int,
    memory: bool,
    data: bool,
    largest_batch: bool,
    memory_limit: float | None,
    as_json: bool,
    as_markdown: bool,
    out: str | None,
    force: bool,
) -> None:
    """Time training steps of the framework, plain partial reconstruction and PR-MIM, interleaved.

    Every round runs one step (forward, backward, optimizer) of each on a fixed random batch;
    medians over --steps rounds after --warmup, ratios within rounds. Peak memory is that of each
    model by itself. CONFIG as in `prmim cost`.
    """
    check_output(out, [config], force)
    if memory_limit and not largest_batch:
        raise click.UsageError('--memory-limit is for --largest-batch')
    if largest_batch:
        ignored = ('steps', 'warmup', 'captured', 'threads', 'memory', 'data')
        refuse_given(ignored, 'is for steps that are timed: not with --largest-batch')
    with shown_without_traceback(config), working(f'loading {config}', ticking=False):
        import torch

        from ..accounting import bench as measuring
        from ..accounting.data import data_cost
        from ..accounting.largest import LargestReport, largest_batches
        from ..accounting.sources import ConfigSource
        from ..accounting.throughput import Timing

        if device == 'cuda' and not torch.cuda.is_available():
            raise Mistake(
                '--device cuda: torch finds no CUDA device here; give cpu, or leave it out'
            )
        timing = Timing(steps, warmup, precision, compiled, attention, captured)
        source = chosen(config)
        if data and not isinstance(source, ConfigSource):
            raise click.UsageError('--data is for configs, which say how images are read')
        images = source.images(batch_size)
        settings = measuring.Settings(images, device, timing, threads, processes, memory)
        name, optimizer = source.name, source.optimizer
        subjects = source.subjects(ratios)
        batch = partial(source.large_batch, batch_size)
        report: measuring.BenchReport | LargestReport
        if largest_batch:
            limit = memory_limit and memory_limit * 1e9
            report = largest_batches(name, subjects, batch, settings, optimizer, limit)
        else:
            step('reading images')
            cost = data_cost(config, batch_size) if data else None
            report = measuring.measure(name, subjects, batch, settings, optimizer)
            report = replace(report, data=cost)
    text = json.dumps(report.to_dict(), indent=2)
    if as_json:
        click.echo(text)
    else:
        print_tables([report.table()], as_markdown)
    if out:
        write_text(out, text + '\n')
