# SPDX-License-Identifier: Apache-2.0
"""Step time and peak memory against the throw ratio, the framework being 1: two panels.

python benchmarks/gpu_picture.py                    # from benchmarks/results/gpu
python benchmarks/gpu_picture.py --results gpu_results --out ratios.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from gpu_tables import memory_of, time_of
from result_files import RESULTS

LINES = {
    'MAE ViT-B/16': ('mae', 'mae_ratios'),
    'SimMIM ViT-B/16': ('simmim_vit', 'simmim_ratios'),
    'SimMIM Swin-B, 128 images': ('simmim_swin',),
    'SimMIM Swin-B, 512 images': ('simmim_swin_512',),
}
"""Line to the stages that hold its points."""

# Okabe and Ito: told apart by the colour-blind.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7')
VARIANTS = {'PR-MIM': '-', 'plain partial': '--'}
PANELS = {'step time': time_of, 'peak memory': memory_of}

Points = dict[tuple[str, str], list[tuple[float, float, float]]]


def read_points(folder: Path, dry: bool = False) -> Points:
    """(line, variant) to its points (throw ratio, time, memory), all against the framework.

    Args:
        folder: with a JSON file of every stage.
        dry: whether to take what a dry run left, which says nothing of a GPU.
    """
    found: Points = {}
    for line, stages in LINES.items():
        results = [_result(folder / f'{stage}.json', dry) for stage in stages]
        for result in filter(None, results):
            for entry in result['measured'][1:]:
                variant, _, ratio = entry['label'].rpartition(' ')
                values = [value(result, entry['label']) for value in PANELS.values()]
                if variant in VARIANTS and None not in values:
                    found.setdefault((line, variant), []).append((float(ratio), *values))
    return {key: sorted(points) for key, points in found.items()}


def _result(path: Path, dry: bool) -> dict[str, Any] | None:
    data = json.loads(path.read_text()) if path.exists() else {'status': 'missing'}
    return data['result'] if data['status'] == 'done' and data['dry'] <= dry else None


def draw(points: Points, path: Path) -> None:
    """Write the picture.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not points:
        raise ValueError('no measured steps: run python benchmarks/gpu.py first')
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(PANELS), figsize=(8, 4.2), sharex=True, sharey=True, layout='constrained'
    )
    for place, (axes, title) in enumerate(zip(panels, PANELS, strict=True), start=1):
        for (line, variant), found in points.items():
            ratios = [0.0, *(point[0] for point in found)]
            values = [1.0, *(point[place] for point in found)]
            colour = COLOURS[list(LINES).index(line)]
            label = f'{line}, {variant}'
            axes.plot(ratios, values, VARIANTS[variant], marker='o', color=colour, label=label)
        axes.set(title=title, xlabel='throw ratio')
        axes.grid(alpha=0.3)
    highest = max(
        1.0, *(value for found in points.values() for _, *pair in found for value in pair)
    )
    panels[0].set(ylabel='framework = 1', ylim=(0, 1.05 * highest), xlim=(0, None))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize='small', ncols=2, loc='outside lower center')
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@click.command()
@click.option('--results', default=RESULTS / 'gpu', type=click.Path(path_type=Path))
@click.option('--out', default='ratios.png', show_default=True, type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    try:
        draw(read_points(results), out)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(out)


if __name__ == '__main__':
    main()
