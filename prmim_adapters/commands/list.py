# SPDX-License-Identifier: Apache-2.0
"""``prmim list``: what there is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import click


@click.command('list')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON instead of text.')
def list_(as_json: bool) -> None:
    """List frameworks, what thrown tokens skip and save in them, samplers, and aggregators.

    Savings are counted on a config of this repository, with its light stage; see `prmim cost`.
    """
    from ..adapters import ADAPTERS, AGGREGATORS, SAMPLERS

    registries = {'frameworks': ADAPTERS, 'samplers': SAMPLERS, 'aggregators': AGGREGATORS}
    found = {title: {key: r.summary(key) for key in r} for title, r in registries.items()}
    found['frameworks'] = {k: text + _saving(k) for k, text in found['frameworks'].items()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for title, entries in found.items():
        width = max(map(len, entries))
        click.echo(title)
        for key, text in entries.items():
            click.echo(f'  {key:{width}}  {text}')


@cache
def _savings() -> dict[str, dict]:
    path = Path(__file__).parents[1] / 'accounting' / 'savings.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _saving(framework: str) -> str:
    saves = _savings().get(framework)
    if saves is None:
        return ''
    parts = [k for k in ('forward', 'training', 'activations') if k in saves]
    counted = ', '.join(f'{part} {-saves[part]:+.1%}' for part in parts)
    return f'; {saves["config"]} at {saves["throw_ratio"]:g}: {counted}'
