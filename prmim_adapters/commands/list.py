# SPDX-License-Identifier: Apache-2.0
"""``prmim list``: what there is."""

from __future__ import annotations

import inspect
import json

import click


@click.command('list')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON instead of text.')
def list_(as_json: bool) -> None:
    """List frameworks with an adapter, samplers and aggregators."""
    from ..adapters import ADAPTERS, AGGREGATORS, SAMPLERS

    found = {
        'frameworks': {key: ADAPTERS.location(key) for key in ADAPTERS},
        'samplers': {key: _summary(SAMPLERS.get(key)) for key in SAMPLERS},
        'aggregators': {key: _summary(AGGREGATORS.get(key)) for key in AGGREGATORS},
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for title, entries in found.items():
        width = max(map(len, entries))
        click.echo(title)
        for key, text in entries.items():
            click.echo(f'  {key:{width}}  {text}')


def _summary(entry: object) -> str:
    """First line of the docstring; options that a partial fixes behind it."""
    function = getattr(entry, 'func', entry)
    options = ', '.join(f'{k}={v!r}' for k, v in getattr(entry, 'keywords', {}).items())
    text = (inspect.getdoc(function) or '').partition('\n')[0]
    return f'{text} ({options})' if options else text
