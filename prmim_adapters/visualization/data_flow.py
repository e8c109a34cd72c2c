# SPDX-License-Identifier: Apache-2.0
"""The README's picture of the method: ``python -m prmim_adapters.visualization.data_flow OUT.png``.

The partition in it is what the package's own code gives for a random mask of 75 % at a throw ratio
of 0.5, on a small grid so that single patches can be seen.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from ..core import TokenPartition, partition_tokens
from ..core.sampling import farthest
from .observe import KEPT, THROWN
from .panels import COLOURS, HIDDEN

GRID = (8, 8)
PATCH = 24
MASKED, THROW = 48, 32
BLUE, ORANGE = COLOURS[KEPT], COLOURS[THROWN]


def partition_of_seed(seed: int = 0) -> TokenPartition:
    """One image's partition under a random 75 % mask."""
    generator = torch.Generator().manual_seed(seed)
    length = GRID[0] * GRID[1]
    order = torch.rand(1, length, generator=generator).argsort(dim=1)
    mask = torch.zeros(1, length, dtype=torch.bool).scatter(1, order[:, :MASKED], True)
    noise = torch.randint(2**20, mask.shape, generator=generator)
    return partition_tokens(mask, THROW, GRID, farthest, MASKED, noise)


def draw(photograph: Image.Image, partition: TokenPartition) -> Figure:
    """Five panels, left to right: mask, partition, heavy network, light stage, loss.

    Args:
        photograph: any size; the middle square is used.
        partition: of one image on ``GRID``.
    """
    pixels = _square(photograph)
    parts = {name: set(getattr(partition, name)[0].tolist()) for name in ('kept', 'thrown')}
    figure = Figure(figsize=(13.2, 3.35), dpi=100)
    axes = figure.subplots(1, 5)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.83, bottom=0.17, wspace=0.16)
    _mask_panel(axes[0], pixels, parts)
    _partition_panel(axes[1], pixels, parts)
    _heavy_panel(axes[2], pixels, partition)
    _light_panel(axes[3], pixels, partition)
    _loss_panel(axes[4], parts)
    for left, right in itertools.pairwise(axes):
        _arrow_between(figure, left, right)
    return figure


def _square(photograph: Image.Image) -> np.ndarray:
    side = min(photograph.size)
    left, top = (photograph.width - side) // 2, (photograph.height - side) // 2
    square = photograph.convert('RGB').crop((left, top, left + side, top + side))
    size = (GRID[1] * PATCH, GRID[0] * PATCH)
    return np.asarray(square.resize(size, Image.Resampling.LANCZOS)) / 255


def _panel(axes: Axes, title: str, caption: str) -> None:
    axes.set(xlim=(-0.1, GRID[1] + 0.1), ylim=(GRID[0] + 0.1, -0.1), aspect='equal')
    axes.axis('off')
    axes.set_title(title, fontsize=11, fontweight='bold')
    axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha='center', va='top', fontsize=9.5)


def _cell(axes: Axes, position: int, colour: tuple, **style: object) -> None:
    row, column = divmod(position, GRID[1])
    style = {'edgecolor': 'white', 'linewidth': 1.2, **style}
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, **style))  # type: ignore[arg-type]


def _patch(axes: Axes, pixels: np.ndarray, position: int, corner: tuple[float, float]) -> None:
    row, column = divmod(position, GRID[1])
    cut = pixels[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
    axes.imshow(cut, extent=(corner[0], corner[0] + 0.96, corner[1] + 0.96, corner[1]))


def _photograph(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, extent=(0, GRID[1], GRID[0], 0))
    for edge in range(GRID[0] + 1):
        axes.plot((0, GRID[1]), (edge, edge), color='white', linewidth=1.2)
        axes.plot((edge, edge), (0, GRID[0]), color='white', linewidth=1.2)


def _mask_panel(axes: Axes, pixels: np.ndarray, parts: dict[str, set[int]]) -> None:
    _photograph(axes, pixels)
    for position in parts['kept'] | parts['thrown']:
        _cell(axes, position, HIDDEN)
    _panel(axes, 'image and mask', f'{64 - MASKED} visible, {MASKED} masked patches')


def _partition_panel(axes: Axes, pixels: np.ndarray, parts: dict[str, set[int]]) -> None:
    _photograph(axes, pixels)
    for name, colour in (('kept', BLUE), ('thrown', ORANGE)):
        for position in parts[name]:
            _cell(axes, position, colour)
    _panel(axes, 'farthest point sampling', '')
    axes.text(
        1.9,
        8.42,
        f'{len(parts["kept"])} kept',
        color=BLUE,
        fontsize=9.5,
        fontweight='bold',
        ha='center',
        va='top',
    )
    axes.text(
        5.9,
        8.42,
        f'{len(parts["thrown"])} thrown',
        color=ORANGE,
        fontsize=9.5,
        fontweight='bold',
        ha='center',
        va='top',
    )


def _heavy_panel(axes: Axes, pixels: np.ndarray, partition: TokenPartition) -> None:
    """Present tokens as a list, visible ones first, inside the box of the network."""
    axes.add_patch(Rectangle((0, 0), 8, 8, facecolor='0.94', edgecolor='0.35', zorder=-1))
    num_visible = partition.visible.shape[1]
    for slot, position in enumerate(partition.present[0].tolist()):
        x, y = slot % 6 + 1.02, slot // 6 + 1.02
        if slot < num_visible:
            _patch(axes, pixels, position, (x, y))
        else:
            axes.add_patch(Rectangle((x, y), 0.96, 0.96, facecolor=BLUE, edgecolor='none'))
    _panel(axes, 'heavy network', f'{partition.present.shape[1]} of 64: visible + kept')


def _light_panel(axes: Axes, pixels: np.ndarray, partition: TokenPartition) -> None:
    """One thrown token attends to every present one."""
    for position in partition.visible[0].tolist():
        row, column = divmod(position, GRID[1])
        _patch(axes, pixels, position, (column + 0.02, row + 0.02))
    for position in partition.kept[0].tolist():
        _cell(axes, position, BLUE)
    for position in partition.thrown[0].tolist():
        _cell(axes, position, (*ORANGE, 0.25))
    middle = [(3.5, 3.5)] * partition.thrown.shape[1]
    places = [divmod(position, GRID[1]) for position in partition.thrown[0].tolist()]
    distances = [np.hypot(r - m[0], c - m[1]) for (r, c), m in zip(places, middle, strict=True)]
    row, column = places[int(np.argmin(distances))]
    for position in partition.present[0].tolist():
        source_row, source_column = divmod(position, GRID[1])
        axes.plot(
            (source_column + 0.5, column + 0.5),
            (source_row + 0.5, row + 0.5),
            color='black',
            linewidth=0.8,
            alpha=0.45,
            solid_capstyle='round',
        )
    _cell(axes, row * GRID[1] + column, ORANGE, edgecolor='black', linewidth=1.8, zorder=5)
    _panel(axes, 'light aggregation', 'each thrown one from all present ones')


def _loss_panel(axes: Axes, parts: dict[str, set[int]]) -> None:
    for position in range(GRID[0] * GRID[1]):
        _cell(axes, position, (0.94,) * 3)
    for name, colour in (('kept', BLUE), ('thrown', ORANGE)):
        for position in parts[name]:
            _cell(axes, position, colour)
            row, column = divmod(position, GRID[1])
            axes.plot(column + 0.5, row + 0.5, marker='o', color='white', markersize=3.5)
    _panel(axes, 'prediction and loss', f'all {MASKED} masked patches')


def _arrow_between(figure: Figure, left: Axes, right: Axes) -> None:
    start, end = left.get_position().x1, right.get_position().x0
    y = (left.get_position().y0 + left.get_position().y1) / 2
    figure.add_artist(
        FancyArrowPatch(
            (start + 0.002, y),
            (end - 0.002, y),
            transform=figure.transFigure,
            arrowstyle='-|>',
            mutation_scale=14,
            color='0.25',
            linewidth=1.5,
        )
    )


def main() -> None:
    """Command line entry."""
    import skimage.data

    parser = argparse.ArgumentParser(description='Draw the data flow of the method.')
    parser.add_argument('out', type=Path, help='picture to write')
    out = parser.parse_args().out
    matplotlib.use('Agg')
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(Image.fromarray(skimage.data.chelsea()), partition_of_seed()).savefig(out)


if __name__ == '__main__':
    main()
