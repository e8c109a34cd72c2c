# SPDX-License-Identifier: Apache-2.0
"""Parts of the documentation that are made from the code, for ``tools/check_docs.py``.

``<!-- begin: help NAME -->`` is the help of ``prmim NAME``; ``<!-- begin: options REGISTRY NAME -->``
a table of the options of what that registry holds under that name, from signature and docstring;
``<!-- begin: options attach -->`` and ``PRMIM`` those of the two by themselves.
``<!-- begin: frameworks -->`` is a table of all model classes that an adapter is shipped for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

#: What ``attach`` and the networks put in, not users.
_GIVEN = ('self', 'model', 'width', 'grid', 'mask', 'num_kept', 'noise')
_REQUIRED = 'needed'


def generated(source: str) -> str:
    """The text for a marker.

    Raises:
        ValueError: unknown marker, or an option without a line in the docstring.
    """
    kind, *names = source.split()
    if kind == 'help':
        return command_help(*names)
    if kind == 'options':
        return options_table(*names)
    if kind == 'frameworks':
        return frameworks_table()
    raise ValueError(f'{source!r} is neither a file nor "help NAME" nor "options NAME"')


def frameworks_table() -> str:
    """Model classes and what of them is spared."""
    from prmim_adapters import ADAPTERS

    lines = ['| model class | of | what sees fewer tokens |', '|---|---|---|']
    for key in ADAPTERS._locations:
        package, name = key.split('.')[0], key.split('.')[-1]
        lines.append(f'| `{name}` | `{package}` | {ADAPTERS.summary(key)} |')
    return '\n'.join(lines) + '\n'


def command_help(name: str) -> str:
    """What ``prmim NAME --help`` prints at 80 columns, as a block of text."""
    import click

    from prmim_adapters.cli import main as cli

    assert isinstance(cli, click.Group)
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        raise ValueError(f'prmim has no command {name!r}')
    parent = click.Context(
        cli, info_name='prmim', terminal_width=80, **(cli.context_settings or {})
    )
    context = click.Context(command, info_name=name, parent=parent, terminal_width=80)
    return f'```text\n{click.unstyle(command.get_help(context)).strip()}\n```\n'


def options_table(*names: str) -> str:
    """Markdown table of an object's options; a sentence where it has none."""
    function, fixed = documented_object(*names)
    parameters = inspect.signature(function).parameters.values()
    shown = [p for p in parameters if p.name not in (*_GIVEN, *fixed) and p.kind < p.VAR_KEYWORD]
    shown = [p for p in shown if p.kind is not p.VAR_POSITIONAL]
    if not shown:
        return 'No options of its own.\n'
    meaning = described_arguments(function)
    missing = [p.name for p in shown if p.name not in meaning]
    if missing:
        raise ValueError(f'{" ".join(names)}: no line in the docstring for {", ".join(missing)}')
    lines = ['| option, default | meaning |', '|---|---|']
    lines += [f'| `{p.name}`<br>{_default(p)} | {meaning[p.name]} |' for p in shown]
    return '\n'.join(lines) + '\n'


def documented_object(*names: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """What has the options, and the names of those that are fixed already."""
    import prmim_adapters as prmim

    if names == ('attach',):
        return prmim.attach, ()
    if names == ('PRMIM',):
        from prmim_adapters.openmmlab import PRMIM

        return PRMIM, ()
    registry, name = names
    if registry in ('SAMPLERS', 'AGGREGATORS'):
        found = getattr(prmim, registry).get(name)
    else:
        import mmpretrain.registry

        import prmim_adapters.accounting.cost_hook
        import prmim_adapters.sweep.evaluation
        import prmim_adapters.sweep.pairing
        import prmim_adapters.visualization.reconstruction_hook  # noqa: F401

        found = getattr(mmpretrain.registry, registry).get(name)
    if found is None:
        raise ValueError(f'{registry} has no {name!r}')
    if isinstance(found, partial):
        return found.func, tuple(found.keywords)
    return found, ()


def described_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Name and text of each argument under ``Args:`` of the docstring, a class's parents' too."""
    found: dict[str, str] = {}
    for owner in reversed(getattr(function, '__mro__', (function,))):
        text = inspect.cleandoc(owner.__doc__ or '')
        section = re.search(r'^Args:\n((?:    .*\n?|\n)+)', text, re.M)
        for entry in re.split(r'^    (?=\S)', section[1] if section else '', flags=re.M)[1:]:
            names, _, meaning = entry.partition(':')
            for name in re.sub(r'\(.*?\)', '', names).split(','):
                found[name.strip().lstrip('*')] = _markdown(meaning)
    return found


def _markdown(text: str) -> str:
    """One line of a table from the reST of a docstring."""
    text = re.sub(r':\w+:`~?\.?([^`]+)`', r'`\1`', ' '.join(text.split()))
    text = text.replace('``', '`').replace('|', r'\|').rstrip('.')
    return text[:1].upper() + text[1:] if not text.startswith('`') else text


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return _REQUIRED
    value = parameter.default
    if isinstance(value, float):
        value = f'{value:.4g}'
        return f'`{value}`'
    return f'`{value!r}`'
