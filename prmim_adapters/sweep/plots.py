# SPDX-License-Identifier: Apache-2.0
"""Plots of a sweep: accuracy against throw ratio, and against cost."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .report import Sweep
from .spec import FRAMEWORK_ARM

_LARGEST_BUBBLE = 420.0  # points squared


def write_plots(sweep: Sweep, out: Path) -> list[Path]:
    """One picture per framework and kind; frameworks without a result are left out.

    Returns:
        The files written, PNG.
    """
    written = []
    for framework in sweep.spec.frameworks:
        if sweep.results[framework, FRAMEWORK_ARM, 0.0]:
            for name, draw in (('ratio', _against_ratio), ('cost', _against_cost)):
                figure, axes = plt.subplots(
                    1, len(sweep.metrics), figsize=(5.2 * len(sweep.metrics), 4.2), squeeze=False
                )
                for ax, (metric, title) in zip(axes[0], sweep.metrics.items(), strict=True):
                    draw(ax, sweep, framework, metric)
                    ax.set_ylabel(f'{title} accuracy, %')
                    ax.grid(alpha=0.3)
                axes[0, 0].legend(fontsize=8, markerscale=0.5)
                figure.suptitle(f'{framework}: mean and standard deviation over seeds', fontsize=10)
                figure.tight_layout()
                path = out / f'{framework}_{name}.png'
                figure.savefig(path, dpi=130)
                plt.close(figure)
                written.append(path)
    return written


def _against_ratio(ax: Axes, sweep: Sweep, framework: str, metric: str) -> None:
    """One line per arm from the framework itself; bubble area = training MACs per image."""
    largest = sweep.cost((framework, FRAMEWORK_ARM, 0.0), 'training_gmacs')
    for number, arm in enumerate(sweep.spec.arms):
        line = []
        for ratio in (0.0, *sorted(sweep.spec.ratios)):
            cell = (framework, arm if ratio else FRAMEWORK_ARM, ratio)
            values = list(sweep.values(cell, metric).values())
            if values:
                macs = sweep.cost(cell, 'training_gmacs')
                area = _LARGEST_BUBBLE * (macs / largest if macs and largest else 0.3)
                spread = stdev(values) if len(values) > 1 else 0.0
                line.append((ratio, mean(values), spread, area))
        ratios, means, spreads, areas = zip(*line, strict=True)
        colour = f'C{number}'
        ax.plot(ratios, means, color=colour)
        # Framework's bubble is drawn once, in grey below.
        ax.errorbar(ratios[1:], means[1:], spreads[1:], color=colour, fmt='none', capsize=3)
        ax.scatter(ratios[1:], means[1:], areas[1:], color=colour, alpha=0.55, label=arm)
    own = list(sweep.values((framework, FRAMEWORK_ARM, 0.0), metric).values())
    spread = stdev(own) if len(own) > 1 else 0.0
    ax.scatter([0], [mean(own)], _LARGEST_BUBBLE, color='grey', alpha=0.55, label=framework)
    ax.errorbar([0], [mean(own)], [spread], color='grey', fmt='none', capsize=3)
    ax.set_xlabel('throw ratio (bubble area: training MACs per image)')
    ax.margins(0.12)


def _against_cost(ax: Axes, sweep: Sweep, framework: str, metric: str) -> None:
    """Accuracy against the measured time of a training step."""
    arms = dict.fromkeys(arm for name, arm, _ in sweep.spec.cells() if name == framework)
    for arm in arms:
        points = []
        for cell in sweep.spec.cells():
            values = list(sweep.values(cell, metric).values())
            step = sweep.cost(cell, 'step_seconds')
            if cell[:2] == (framework, arm) and values and step is not None:
                points.append((1000 * step, mean(values), stdev(values) if len(values) > 1 else 0))
                ax.annotate(f' {cell[2]:g}', points[-1][:2], fontsize=8)
        if points:
            steps, means, spreads = zip(*points, strict=True)
            colour = 'grey' if arm == FRAMEWORK_ARM else f'C{list(arms).index(arm) - 1}'
            label = framework if arm == FRAMEWORK_ARM else arm
            ax.errorbar(steps, means, spreads, fmt='o', capsize=3, color=colour, label=label)
    ax.set_xlabel('measured training step, ms (number: throw ratio)')
    ax.margins(0.12)
