# SPDX-License-Identifier: Apache-2.0
"""Farthest point sampling on one CPU thread: by distance, and the reference step by step.

    python benchmarks/sampling_cpu.py

Interleaved, medians of processor time, equal results checked. Writes
``benchmarks/results/sampling_cpu.json`` and prints the table made of it.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click
import tables
import torch

from prmim_adapters.accounting.environment import environment
from prmim_adapters.core.sampling import _reference, farthest

#: Images, grid, masked and kept tokens. 112 x 14 is a clip of 8 x 14 x 14 tokens, 0.9 masked.
SIZES = [
    *((images, (side, side), side**2 * 3 // 4, side**2 // 4)
      for images, side in ((16, 14), (8, 8), (8, 14), (8, 24), (8, 32), (8, 48), (8, 64))),
    (8, (112, 14), 1408, 624),
]  # fmt: skip


def measure(images: int, grid: tuple[int, int], masked: int, kept: int, repeats: int) -> dict:
    """Milliseconds of both, for random masks."""
    length = grid[0] * grid[1]
    mask = torch.rand(images, length).argsort(1).argsort(1) < masked
    noise = torch.randint(1 << 20, mask.shape)
    arguments = mask, ~mask, torch.full((images, 1), kept), noise, list(grid), kept
    functions = {'by_distance': torch.ops.prmim_adapters.farthest, 'step_by_step': _reference}
    assert torch.equal(*(function(*arguments) for function in functions.values()))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function(*arguments)
            seconds[name].append(time.process_time() - start)
    found = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    return {'images': images, 'grid': grid, 'masked': masked, 'kept': kept, **found}


def distance_in_clips(clips: int, frames: int, side: int, masked: int, kept: int) -> dict:
    """Distance, in time, height and width, of thrown tokens to present ones under tube masks.

    Sampled on the grid of (frames * side, side), where the last row of a frame is beside the first
    one of the next.
    """
    tubes = torch.rand(clips, side**2).argsort(1).argsort(1) < masked // frames
    mask = tubes.repeat(1, frames)
    present = ~mask | farthest(mask, kept, (frames * side, side))
    axes = torch.arange(float(frames)), torch.arange(float(side)), torch.arange(float(side))
    places = torch.cartesian_prod(*axes)
    every = torch.cdist(places, places)
    nearest = torch.stack([every[:, here].amin(dim=1) for here in present])[~present]
    return {'mean': float(nearest.mean()), 'most': float(nearest.max())}


@click.command()
@click.option('--repeats', default=25, show_default=True)
def main(repeats: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(*size, repeats) for size in SIZES]
    result = {
        'environment': environment(torch.device('cpu')),
        'repeats': repeats,
        'rows': rows,
        'distance_in_clips': distance_in_clips(16, 8, 14, 1408, 624),
    }
    path = tables.RESULTS / f'{Path(__file__).stem}.json'
    path.write_text(json.dumps(result, indent=2) + '\n')
    print(tables.sampling(), result['distance_in_clips'], path, sep='\n')


if __name__ == '__main__':
    main()
