# SPDX-License-Identifier: Apache-2.0
"""``prmim configs``: the configs that come with this package, to run or to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import shown_without_traceback
from ..tables import Table
from ._options import force_, formats, refuse_given
from ._terminal import print_tables


@click.command('configs', short_help='Configs that come along: list, copy.')
@click.option('--copy', 'name', metavar='NAME', help='Copy this one, with what it inherits from.')
@click.option(
    '--out', default='configs', show_default=True, type=click.Path(file_okay=False, path_type=Path),
    help='Folder for --copy.',
)  # fmt: skip
@force_
@formats
def configs(name: str | None, out: Path, force: bool, as_json: bool, as_markdown: bool) -> None:
    """List the configs of this package, or copy one for a start of your own.

    Each is trained as it is by `mim train prmim-adapters NAME` (in a checkout by `mim train
    mmpretrain PATH`) and counted by `prmim cost prmim_adapters::NAME`. A copy keeps the folders
    of this package below --out, where its `_base_` finds them.
    """
    from .. import shipped

    if name is not None:
        with shown_without_traceback():
            written = shipped.copy(shipped.find(name), out, force)
        if as_json:
            click.echo(json.dumps([str(path) for path in written]))
        else:
            click.echo('\n'.join(map(str, written)))
        return
    refuse_given(('out', 'force'), 'is for --copy')
    found = shipped.configs()
    if as_json:
        entries = {key: dict(path=str(p), summary=shipped.summary(p)) for key, p in found.items()}
        click.echo(json.dumps(entries, indent=2))
        return
    rows = [[key, shipped.summary(path)] for key, path in found.items()]
    notes = f'Specs for prmim sweep: {shipped.shipped("sweeps")}'
    print_tables([Table(['config', 'trains'], rows, notes=notes, words=True)], as_markdown)
