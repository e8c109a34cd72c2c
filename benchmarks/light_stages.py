# SPDX-License-Identifier: Apache-2.0
"""Time of the light stages alone: sampling, partition, aggregation; and how they grow.

    python benchmarks/light_stages.py --threads 2
    python benchmarks/light_stages.py --threads 2 --step configs/mmpretrain/mae_prmim_vitb.py

The second form also times a whole step of that config and gives the share of the light stages.
Writes ``benchmarks/results/light_stages_<device>.json``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from prmim_adapters.accounting.bench import config_batch
from prmim_adapters.accounting.environment import environment
from prmim_adapters.accounting.throughput import Timing, time_interleaved, training_step
from prmim_adapters.accounting.variants import OURS, build_variant
from prmim_adapters.adapters import AGGREGATORS, SAMPLERS, attachment_of, partial_of
from prmim_adapters.core import PartialReconstruction

RESULTS = Path(__file__).parent / 'results'
SIDES = (8, 14, 24, 32, 48, 64)
MASK_RATIO, THROW_RATIO = 0.75, 0.5


def clock(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after two; of processor time where one thread does the work.

    Processor time does not count what other programs on the machine take.
    """
    function(), function()
    now = time.process_time if _alone(device) else time.perf_counter
    seconds = []
    for _ in range(repeats):
        _wait(device)
        start = now()
        function()
        _wait(device)
        seconds.append(now() - start)
    return statistics.median(seconds)


def _alone(device: torch.device) -> bool:
    return device.type == 'cpu' and torch.get_num_threads() == 1


def random_mask(images: int, side: int, device: torch.device) -> torch.Tensor:
    order = torch.rand(images, side * side, device=device).argsort(1).argsort(1)
    return order < round(MASK_RATIO * side * side)


def stages(images: int, side: int, width: int, device: torch.device, repeats: int) -> dict:
    """Milliseconds per batch of each sampler, the partition, and each aggregator with backward."""
    mask = random_mask(images, side, device)
    masked = round(MASK_RATIO * side * side)
    kept = masked - round(THROW_RATIO * side * side)
    found = {'images': images, 'tokens': side * side, 'kept': kept, 'width': width}
    for name in SAMPLERS:
        sample = partial(SAMPLERS.get(name), mask, kept, (side, side))
        found[f'sampler {name}'] = clock(sample, device, repeats) * 1e3
    for name in AGGREGATORS:
        aggregator = AGGREGATORS.get(name)(width=width, grid=(side, side)).to(device)
        pipeline = PartialReconstruction(
            THROW_RATIO, (side, side), SAMPLERS.get('farthest'), [aggregator]
        )
        partition = pipeline(mask, masked, loss_reads=False)
        features = torch.randn(images, side * side - partition.thrown.shape[1], width)
        features = features.to(device).requires_grad_()
        queries = torch.randn(side * side, width, device=device, requires_grad=True)

        def run(
            pipeline: PartialReconstruction = pipeline, partition: Any = partition,
            features: torch.Tensor = features, queries: torch.Tensor = queries,
        ) -> None:  # fmt: skip
            pipeline.reconstruct(partition, features, queries).sum().backward()

        found[f'aggregator {name}'] = clock(run, device, repeats) * 1e3
    found['partition'] = (
        clock(partial(pipeline, mask, masked, loss_reads=False), device, repeats) * 1e3
    )
    return found


def sampling_by_size(images: int, device: torch.device, repeats: int) -> list[dict]:
    """Farthest point sampling on grids up to 64 x 64, the first also with twice the images."""
    rows = []
    for side, batch in [(14, 2 * images), *((side, images) for side in SIDES)]:
        mask = random_mask(batch, side, device)
        kept = round((MASK_RATIO - THROW_RATIO) * side * side)
        seconds = clock(
            partial(SAMPLERS.get('farthest'), mask, kept, (side, side)), device, repeats
        )
        rows.append(
            {
                'images': batch,
                'tokens': side * side,
                'kept': kept,
                'ms': seconds * 1e3,
                'ns_per_image_token_kept': seconds * 1e9 / (batch * side * side * kept),
            }
        )
    return rows


def share_of_step(
    config: str, images: int, device: torch.device, repeats: int, precision: str = 'fp32'
) -> dict:
    """Milliseconds of a whole step with PR-MIM, and of its light stages at the same size."""
    model = build_variant(config, OURS).to(device)
    partial_state = partial_of(model)
    side, width = partial_state.grid[0], attachment_of(model).seams.width
    batch = config_batch(config, images, model)
    timing = Timing(steps=max(repeats // 4, 3), warmup=1, precision=precision)
    times = time_interleaved([training_step(model, batch, timing)], timing, device)[0]
    seconds = times.processor if _alone(device) else times.seconds
    step = statistics.median(seconds) * 1e3
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bf16'):
        light = stages(images, side, width, device, repeats)
    total = light['partition'] + light['aggregator cross_attention']
    return {
        'config': Path(config).stem,
        'images': images,
        'step_ms': step,
        'partition_ms': light['partition'],
        'aggregation_ms': light['aggregator cross_attention'],
        'share': total / step,
    }


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


@click.command()
@click.option('--images', default=32, show_default=True)
@click.option('--width', default=512, show_default=True)
@click.option('--repeats', default=9, show_default=True)
@click.option('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
@click.option('--threads', default=None, type=int)
@click.option('--step', 'config', default=None, help='Config whose whole step is timed too.')
@click.option('--step-images', default=8, show_default=True, help='Images of that step.')
def main(
    images: int, width: int, repeats: int, device: str, threads: int | None, config: str | None,
    step_images: int,
) -> None:  # fmt: skip
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(device)
    result = {
        'environment': environment(where),
        'clock': 'processor' if _alone(where) else 'wall',
        'stages': stages(images, 14, width, where, repeats),
        'sampling_by_size': sampling_by_size(max(images // 4, 1), where, repeats),
        'share': None,
    }
    if config:
        result['share'] = share_of_step(config, step_images, where, repeats)
    path = RESULTS / f'light_stages_{where.type}.json'
    path.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps(result, indent=2), path, sep='\n')


if __name__ == '__main__':
    main()
