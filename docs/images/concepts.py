# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/concepts.md: ``python docs/images/concepts.py`` writes them beside itself.

Both show what the package's own code gives for one random mask of 75 % on a grid of 14 x 14.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from prmim_adapters import SAMPLERS
from prmim_adapters.core import TokenPartition, partition_tokens
from prmim_adapters.core.sampling import squared_distance_to
from prmim_adapters.visualization.observe import KEPT, THROWN
from prmim_adapters.visualization.panels import COLOURS

GRID, MASKED = (14, 14), 147
FOLDER = Path(__file__).parent
VISIBLE_COLOUR = (0.82, 0.82, 0.82)


def main() -> None:
    """Write both pictures."""
    ratios = [
        (f'throw_ratio={r:g}', partition('farthest', round(r * 196))) for r in (0, 0.25, 0.5, 0.7)
    ]
    save(ratios, 'throw_ratio.png')
    samplers = [
        (f"sampler='{name}'", partition(name, 98)) for name in ('farthest', 'grid', 'random')
    ]
    save(samplers, 'samplers.png')


def partition(sampler: str, thrown: int) -> TokenPartition:
    """Of one image; the same mask every time."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(1, 196, generator=generator).argsort(dim=1)
    mask = torch.zeros(1, 196, dtype=torch.bool).scatter(1, order[:, :MASKED], True)
    noise = torch.randint(2**20, mask.shape, generator=generator)
    return partition_tokens(mask, thrown, GRID, SAMPLERS.get(sampler), MASKED, noise)


def save(panels: list[tuple[str, TokenPartition]], name: str) -> None:
    """One panel for each partition, a legend below."""
    figure = Figure(figsize=(2.6 * len(panels), 3.3), dpi=110)
    axes = figure.subplots(1, len(panels))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.91, bottom=0.2, wspace=0.06)
    for axis, (title, part) in zip(axes, panels, strict=True):
        draw(axis, title, part)
    colours = {'visible': VISIBLE_COLOUR, 'kept': COLOURS[KEPT], 'thrown': COLOURS[THROWN]}
    handles = [Patch(facecolor=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc='lower center', ncols=3, frameon=False, fontsize=9)
    figure.savefig(FOLDER / name)


def draw(axis: Axes, title: str, part: TokenPartition) -> None:
    """The grid in three colours, and how far thrown tokens are from what the network sees."""
    cells = np.empty((196, 3))
    cells[part.visible[0]] = VISIBLE_COLOUR
    cells[part.kept[0]] = COLOURS[KEPT][:3]
    cells[part.thrown[0]] = COLOURS[THROWN][:3]
    axis.imshow(cells.reshape(*GRID, 3), extent=(0, 14, 14, 0))
    axis.set_xticks(range(15))
    axis.set_yticks(range(15))
    axis.grid(color='white', linewidth=0.8)
    axis.tick_params(length=0, labelbottom=False, labelleft=False)
    axis.set_frame_on(False)
    axis.set_title(title, fontsize=9.5)
    axis.set_xlabel(caption(part), fontsize=8.5)


def caption(part: TokenPartition) -> str:
    """How many tokens are thrown, and how far from the nearest present one."""
    count = part.thrown.shape[1]
    if not count:
        return 'nothing thrown: MAE'
    present = torch.zeros(1, 196, dtype=torch.bool).scatter(1, part.present, True)
    apart = squared_distance_to(present, GRID)[0]
    distance = apart[part.thrown[0]].float().sqrt()
    away = f'{distance.mean():.2f} away, at most {distance.max():.2f}'
    return f'{count} thrown; nearest present token\n{away}'


if __name__ == '__main__':
    main()
