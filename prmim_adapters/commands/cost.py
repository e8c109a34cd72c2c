# SPDX-License-Identifier: Apache-2.0
"""``prmim cost CONFIG``: what a training step costs, counted."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import shown_without_traceback
from ._options import (
    check_output,
    check_picture,
    force_,
    formats,
    throw_ratios,
    write_text,
    written,
)
from ._source import chosen
from ._terminal import print_tables, working


@click.command('cost', short_help='What a training step costs, counted.')
@click.argument('config')
@throw_ratios
@click.option('--batch-size', default=2, show_default=True, type=click.IntRange(min=2))
@formats
@written('--out', 'Also write the JSON to this file.')
@written('--plot', 'Also draw costs against the throw ratio: a picture, as cost.png.')
@force_
def cost(
    config: str,
    ratios: tuple[float, ...],
    batch_size: int,
    as_json: bool,
    as_markdown: bool,
    out: str | None,
    plot: str | None,
    force: bool,
) -> None:
    """Count MACs and memory of the framework, plain partial reconstruction and PR-MIM.

    CONFIG is a pre-training config: of type PRMIM, or of any framework with an adapter; a file or
    a name such as mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py. Images are
    random and masks as in training, so no data are needed. Nothing is timed: see `prmim bench`.

    For a model without a config, CONFIG is module:function, imported from here; the function returns
    (model, batch), and may take batch_size.
    """
    for path in (out, plot):
        check_output(path, [config], force)
    if plot:
        check_picture('--plot', plot)
    with shown_without_traceback(config), working(f'loading {config}'):
        from ..accounting.report import compare
        from ..accounting.report import plot as draw

        source = chosen(config)
        variants = source.variants(ratios)
        batch = source.batch(batch_size, variants[0].model)
        report = compare(variants, batch, source.optimizer)
        if plot:
            Path(plot).parent.mkdir(parents=True, exist_ok=True)
            draw(report, plot)
    text = json.dumps(report.to_dict(), indent=2)
    if as_json:
        click.echo(text)
    else:
        print_tables([report.table()], as_markdown)
    if out:
        write_text(out, text + '\n')
