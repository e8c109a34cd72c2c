# SPDX-License-Identifier: Apache-2.0
"""``prmim list``: what there is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import click

from ..tables import Table
from ._options import formats
from ._terminal import print_tables, working


@click.command('list', short_help='Frameworks, samplers, aggregators.')
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
    tables = []
    for title, entries in found.items():
        names = {_short(key) if title == 'frameworks' else key: key for key in entries}
        rows = [[name, entries[key]] for name, key in names.items()]
        head = ['framework', 'thrown tokens skip'] if title == 'frameworks' else [title[:-1], '']
        tables.append(Table(head, rows, title, words=True))
    tables.insert(1, _savings_table())
    print_tables(tables, as_markdown)


_SHARES = ('forward', 'training', 'activations')


def _short(key: str) -> str:
    """Class and package: 'MAE (mmpretrain)'."""
    return f'{key.rpartition(".")[2]} ({key.partition(".")[0]})'


@cache
def _savings() -> dict[str, dict[str, Any]]:
    path = Path(__file__).parents[1] / 'accounting' / 'savings.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _savings_table() -> Table:
    rows = [
        [saves['config'], f'{saves["throw_ratio"]:g}', *_shares(saves).values()]
        for saves in _savings().values()
    ]
    notes = 'Counted, light stage included; `prmim cost CONFIG` counts yours.'
    return Table(['config', 'ratio', *_SHARES], rows, 'what it saves', notes)


def _shares(saves: dict[str, Any]) -> dict[str, str]:
    return {name: f'{-saves[name]:+.1%}' if name in saves else '' for name in _SHARES}


def _saving(framework: str) -> str:
    """What follows the summary of a framework in JSON."""
    saves = _savings().get(framework)
    if saves is None:
        return ''
    shares = ', '.join(f'{name} {share}' for name, share in _shares(saves).items() if share)
    return f'; {saves["config"]} at {saves["throw_ratio"]:g}: {shares}'
