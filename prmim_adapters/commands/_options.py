# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have: one spelling, one meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import Mistake

_PICTURES = ('.png', '.jpg', '.webp', '.pdf')
throw_ratios = click.option(
    '--throw-ratio', 'ratios', type=float, multiple=True, metavar='RATIO',
    help="May be repeated.  [default: the config's own]",
)  # fmt: skip
force_ = click.option(
    '--force', is_flag=True, help='Replace files that exist; never one that is read.'
)
_formats = (
    click.option('--json', 'as_json', is_flag=True, help='Print JSON.'),
    click.option(
        '--markdown', 'as_markdown', is_flag=True,
        help='Print markdown on a terminal, too, as it is printed into a pipe.',
    ),
)  # fmt: skip


def formats(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json`` and ``--markdown``, for commands that print tables."""
    return reduce(lambda made, option: option(made), reversed(_formats), command)


def written(name: str, help: str) -> Callable[..., Any]:
    """An option for a file to write."""
    return click.option(name, type=click.Path(dir_okay=False), metavar='FILE', help=help)


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuse options that stand on the command line and would not be looked at.

    Args:
        names: of parameters of the command that runs.
        why: what is said after the option.

    Raises:
        click.UsageError: one is given.
    """
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or '') is ParameterSource.COMMANDLINE
        if option.name in names and given:
            raise click.UsageError(f'{option.opts[0]} {why}')


def check_output(out: str | None, inputs: Iterable[str], force: bool = False) -> None:
    """Refuse to write over a file that the command reads, whatever its name or link.

    Args:
        out: file to write; None for none.
        inputs: files that are read; names that are no files, as URLs, are passed over.
        force: whether another file may be replaced.

    Raises:
        Mistake: ``out`` is one of the inputs, or is there already without ``force``; or
            its folder cannot be made.
    """
    if out is None:
        return
    target = Path(out)
    for name in inputs:
        if target.exists() and Path(name).is_file() and target.samefile(name):
            raise Mistake(f'{out} is {name}, which is read: give another file to write')
    if target.exists() and not force:
        raise Mistake(f'{out} exists: give another name, or --force to replace it')
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise Mistake(f'{out}: {above} is a file, not a folder: give another name')


def check_checkpoint(checkpoint: str) -> None:
    """Refuse a name that is neither a file nor a URL, before anything is built.

    Raises:
        Mistake: no such file.
    """
    if '://' in checkpoint or Path(checkpoint).is_file():
        return
    if Path(checkpoint).is_dir():
        raise Mistake(
            f'checkpoint {checkpoint} is a folder: give a file in it, as epoch_300.pth; '
            'last_checkpoint holds the name of the last one'
        )
    raise Mistake(f'checkpoint {checkpoint}: no such file; give a file or a URL')


def check_picture(option: str, out: str) -> None:
    """Refuse a name whose ending is no picture's.

    Raises:
        Mistake: says which endings there are.
    """
    if Path(out).suffix.lower() not in _PICTURES:
        raise Mistake(f'{option} {out}: give a picture, whose name ends in {", ".join(_PICTURES)}')


def write_text(out: str, text: str) -> None:
    """Write a file, and its folder where that is missing."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(text, encoding='utf-8')
