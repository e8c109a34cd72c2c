# SPDX-License-Identifier: Apache-2.0
"""Plots of a sweep: accuracy against throw ratio, against the time of a step, and the frontier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .collected import Cell, Sweep
from .files import inside
from .spec import FRAMEWORK_ARM

_LARGEST_BUBBLE = 420.0  # points squared
_PAIRS = matplotlib.colormaps['tab20'].colors  # type: ignore[attr-defined]
_COLOURS = (*_PAIRS[::2], *_PAIRS[1::2])
"""Of the arms: matplotlib's usual ten, then their lighter ones."""


def write_plots(sweep: Sweep, out: Path) -> list[Path]:
    """One picture per framework and kind; frameworks without a result are left out.

    Kinds: ``ratio``, accuracy against the throw ratio; ``cost``, against the measured time of a
    training step; ``frontier``, against the training MACs of the whole run, if the results say them.

    Returns:
        The files written, PNG.
    """
    kinds: dict[str, Callable[[Axes, Sweep, str, str], None]] = {
        'ratio': _against_ratio,
        'cost': partial(_against, key='step_seconds', scale=1e3, title='measured step, ms'),
    }
    if sweep.knows_totals:
        title = 'training TMACs of the whole run'
        kinds['frontier'] = partial(_against, key='total_tmacs', scale=1.0, title=title)
    return [
        _picture(sweep, framework, inside(out, f'{framework}_{name}.png'), draw)
        for framework, settings in sweep.spec.frameworks.items()
        if settings.peer_of is None and sweep.results[framework, FRAMEWORK_ARM, 0.0]
        for name, draw in kinds.items()
    ]


def _picture(
    sweep: Sweep, framework: str, path: Path, draw: Callable[[Axes, Sweep, str, str], None]
) -> Path:
    """One axes for each metric."""
    count = len(sweep.metrics)
    figure, axes = plt.subplots(1, count, figsize=(5.2 * count, 4.2), squeeze=False)
    for ax, (metric, title) in zip(axes[0], sweep.metrics.items(), strict=True):
        draw(ax, sweep, framework, metric)
        ax.set_ylabel(f'{title} accuracy, %')
        ax.grid(alpha=0.3)
        ax.margins(0.12)
    axes[0, 0].legend(fontsize=8, markerscale=0.5)
    figure.suptitle(f'{framework}: mean and standard deviation over seeds', fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _against_ratio(ax: Axes, sweep: Sweep, framework: str, metric: str) -> None:
    """One line per arm from the framework itself; bubble area = training MACs per image."""
    largest = sweep.cost((framework, FRAMEWORK_ARM, 0.0), 'training_gmacs')
    for number, arm in enumerate(sweep.spec.arms):
        line = []
        cells = [(framework, arm, ratio) for ratio in sorted(sweep.spec.ratios_of(arm))]
        for cell in [(framework, FRAMEWORK_ARM, 0.0), *cells]:
            values = list(sweep.values(cell, metric).values())
            if values:
                macs = sweep.cost(cell, 'training_gmacs')
                area = _LARGEST_BUBBLE * (macs / largest if macs and largest else 0.3)
                spread = stdev(values) if len(values) > 1 else 0.0
                line.append((cell[2], mean(values), spread, area))
        ratios, means, spreads, areas = zip(*line, strict=True)
        colour = _COLOURS[number % len(_COLOURS)]
        ax.plot(ratios, means, color=colour)
        # Framework's bubble is drawn once, in grey below.
        ax.errorbar(ratios[1:], means[1:], spreads[1:], color=colour, fmt='none', capsize=3)
        ax.scatter(ratios[1:], means[1:], areas[1:], color=colour, alpha=0.55, label=arm)
    own = list(sweep.values((framework, FRAMEWORK_ARM, 0.0), metric).values())
    spread = stdev(own) if len(own) > 1 else 0.0
    ax.scatter([0], [mean(own)], _LARGEST_BUBBLE, color='grey', alpha=0.55, label=framework)
    ax.errorbar([0], [mean(own)], [spread], color='grey', fmt='none', capsize=3)
    ax.set_xlabel('throw ratio (bubble area: training MACs per image)')


def _against(
    ax: Axes, sweep: Sweep, framework: str, metric: str, key: str, scale: float, title: str
) -> None:
    """Accuracy of the framework, its arms and its peers against an entry of the results' cost."""
    for number, (label, cells) in enumerate(_series(sweep, framework)):
        points = []
        for cell in cells:
            values, cost = list(sweep.values(cell, metric).values()), sweep.cost(cell, key)
            if values and cost is not None:
                points.append((scale * cost, mean(values), stdev(values) if values[1:] else 0.0))
                if cell[2]:
                    ax.annotate(f' {cell[2]:g}', points[-1][:2], fontsize=8)
        if points:
            costs, means, spreads = zip(*points, strict=True)
            colour = _COLOURS[(number - 1) % len(_COLOURS)] if number else 'grey'
            ax.errorbar(costs, means, spreads, fmt='o', capsize=3, color=colour, label=label)
    ax.set_xlabel(f'{title} (number: throw ratio)')


def _series(sweep: Sweep, framework: str) -> Iterator[tuple[str, list[Cell]]]:
    """Label and cells of the framework, of each arm, of each peer."""
    cells = sweep.spec.cells()
    yield framework, [(framework, FRAMEWORK_ARM, 0.0)]
    for arm in sweep.spec.arms:
        yield arm, [cell for cell in cells if cell[:2] == (framework, arm)]
    for name, settings in sweep.spec.frameworks.items():
        if settings.peer_of == framework:
            yield name, [(name, FRAMEWORK_ARM, 0.0)]
