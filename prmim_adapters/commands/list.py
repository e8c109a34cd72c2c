# SPDX-License-Identifier: Apache-2.0
"""``prmim list``: what there is."""

from __future__ import annotations

import json

import click


@click.command('list')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON instead of text.')
def list_(as_json: bool) -> None:
    """List frameworks and what thrown tokens skip in them, samplers, and aggregators."""
    from ..adapters import ADAPTERS, AGGREGATORS, SAMPLERS

    registries = {'frameworks': ADAPTERS, 'samplers': SAMPLERS, 'aggregators': AGGREGATORS}
    found = {title: {key: r.summary(key) for key in r} for title, r in registries.items()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for title, entries in found.items():
        width = max(map(len, entries))
        click.echo(title)
        for key, text in entries.items():
            click.echo(f'  {key:{width}}  {text}')
