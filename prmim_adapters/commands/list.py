# SPDX-License-Identifier: Apache-2.0
"""``prmim list``: what there is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import click

from ..tables import Table
from ._options import formats
from ._terminal import print_tables, working


@click.command('list')
@formats
def list_(as_json: bool, as_markdown: bool) -> None:
    """List frameworks, what thrown tokens skip and save in them, samplers, and aggregators.

    Savings are counted on a config of this repository, with its light stage; see `prmim cost`.
    --json has the qualified names.
    """
    with working('loading torch'):
        from ..adapters import ADAPTERS, AGGREGATORS, SAMPLERS

        registries = {'frameworks': ADAPTERS, 'samplers': SAMPLERS, 'aggregators': AGGREGATORS}
        found = {title: {key: r.summary(key) for key in r} for title, r in registries.items()}
    if as_json:
        found['frameworks'] = {k: text + _saving(k) for k, text in found['frameworks'].items()}
        click.echo(json.dumps(found, indent=2))
        return
    frameworks = [[_short(key), text, *_figures(key)] for key, text in found['frameworks'].items()]
    tables = [Table(_HEAD, frameworks, 'frameworks', words=True)]
    for title in ('samplers', 'aggregators'):
        rows = [[key, text] for key, text in found[title].items()]
        tables.append(Table([title.removesuffix('s'), ''], rows, title, words=True))
    print_tables(tables, as_markdown)


_HEAD = ['framework', 'thrown tokens skip', 'counted on', 'forward', 'training', 'activations']


def _short(key: str) -> str:
    """Class and package: 'MAE (mmpretrain)'."""
    return f'{key.rpartition(".")[2]} ({key.partition(".")[0]})'


@cache
def _savings() -> dict[str, dict]:
    path = Path(__file__).parents[1] / 'accounting' / 'savings.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _figures(framework: str) -> list[str]:
    saves = _savings().get(framework)
    if saves is None:
        return [''] * 4
    shares = [f'{-saves[name]:+.1%}' if name in saves else '' for name in _HEAD[3:]]
    return [f'{saves["config"]} at {saves["throw_ratio"]:g}', *shares]


def _saving(framework: str) -> str:
    counted_on, *shares = _figures(framework)
    if not counted_on:
        return ''
    named = zip(_HEAD[3:], shares, strict=True)
    return f'; {counted_on}: ' + ', '.join(f'{name} {share}' for name, share in named if share)
