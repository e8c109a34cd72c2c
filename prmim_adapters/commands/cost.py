# SPDX-License-Identifier: Apache-2.0
"""``prmim cost CONFIG``: what a training step costs, counted."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ._output import check_output
from ._source import chosen


@click.command('cost')
@click.argument('config')
@click.option(
    '--ratio', 'ratios', type=float, multiple=True,
    help="Throw ratio; may be repeated. The config's own one by default.",
)  # fmt: skip
@click.option('--batch-size', default=2, show_default=True, type=click.IntRange(min=2))
@click.option('--json', 'as_json', is_flag=True, help='Print JSON instead of a markdown table.')
@click.option('--plot', 'picture', type=click.Path(dir_okay=False), help='Picture to write.')
def cost(
    config: str, ratios: tuple[float, ...], batch_size: int, as_json: bool, picture: str | None
) -> None:
    """Count MACs and memory of the framework, plain partial reconstruction and PR-MIM.

    CONFIG is a pre-training config: of type PRMIM, or of any framework with an adapter; a file or
    a name such as mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py. Images are
    random and masks as in training, so no data are needed. Nothing is timed: see `prmim bench`.

    For a model without a config, CONFIG is module:function, imported from here; the function returns
    (model, batch), and may take batch_size.
    """
    from ..accounting.report import compare, plot
    from ..errors import shown_without_traceback

    if picture:
        check_output(picture, [config])
    with shown_without_traceback():
        source = chosen(config)
        variants = source.variants(ratios)
        batch = source.batch(batch_size, variants[0].model)
        report = compare(variants, batch, source.optimizer)
    table = f'{report.markdown()}\n\n{report.notes}'
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else table)
    if picture:
        Path(picture).parent.mkdir(parents=True, exist_ok=True)
        plot(report, picture)
