# SPDX-License-Identifier: Apache-2.0
"""Commands of the documentation: those that exist, and what happens when they run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path


def run_commands(code: str) -> str | None:
    """Run the ``prmim`` commands of a block, in this process; what is wrong with them.

    Only such commands: what has to be loaded, is loaded once for all of them.
    """
    from click.testing import CliRunner

    from prmim_adapters.cli import main as cli

    for words in commands(code):
        if words[0] != 'prmim':
            return f'only prmim commands are run, not {words[0]}'
        done = CliRunner().invoke(cli, words[1:])
        if done.exit_code:
            return f'{shlex.join(words)} fails:\n{done.output}{done.exception!r}'
    return None


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command, without the variables that are set for it."""
    for line in code.replace('\\\n', ' ').splitlines():
        for command in re.split(r'&&|;|\|', line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r'\w+=\S*', words[0]):
                words = words[1:]
            if words:
                yield words


def unknown_commands(code: str) -> Iterator[str]:
    """What a block names and this repository lacks: targets, configs, files, options, extras."""
    for words in commands(code):
        if words[:1] == ['make']:
            yield from unknown_targets(words[1:])
        elif words[:2] == ['mim', 'train'] and words[3].startswith('configs/mmpretrain/'):
            yield from unknown_file(words[3])
        elif words[:3] == ['mim', 'train', 'prmim-adapters']:
            yield from unknown_file(f'configs/mmpretrain/{words[3]}')
        elif words[:1] == ['prmim']:
            yield from unknown_options(words[1:])
        elif words[:1] == ['python'] and words[1].endswith('.py'):
            yield from unknown_file(words[1])
        elif words[:2] == ['pip', 'install']:
            yield from unknown_extras(' '.join(words))


def unknown_extras(command: str) -> Iterator[str]:
    """Extras of this package that setup.cfg lacks."""
    from setuptools.config.setupcfg import read_configuration

    known = read_configuration('setup.cfg')['options']['extras_require']
    for extras in re.findall(r'(?:prmim[-_]adapters|\.)\[([\w,]+)\]', command):
        for extra in set(extras.split(',')) - set(known):
            yield f'setup.cfg has no extra {extra!r}'


def unknown_targets(words: list[str]) -> Iterator[str]:
    """Targets that the Makefile lacks."""
    makefile = Path('Makefile').read_text()
    for target in (word for word in words if '=' not in word and not word.startswith('-')):
        if not re.search(rf'^{re.escape(target)}:', makefile, re.M):
            yield f'make has no target {target!r}'


def unknown_file(name: str) -> Iterator[str]:
    """A file of this repository that is not there."""
    if not Path(name).exists():
        yield f'{name} does not exist'


def unknown_options(words: list[str]) -> Iterator[str]:
    """Commands and options that ``prmim`` lacks, and configs that do not exist."""
    import click

    from prmim_adapters.cli import main as cli

    if not words or words[0].startswith('-'):
        return
    assert isinstance(cli, click.Group)
    context = click.Context(cli)
    command = cli.get_command(context, words[0])
    if command is None:
        yield f'prmim has no command {words[0]!r}'
        return
    if not command.context_settings.get('allow_interspersed_args', True):  # another program's
        return
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith('--') and word.split('=')[0] not in known | {'--help'}:
            yield f'prmim {words[0]} has no option {word}'
        if word.startswith('configs/'):
            yield from unknown_file(word)
        if word.startswith('prmim_adapters::'):
            yield from unknown_file(word.replace('prmim_adapters::', 'configs/mmpretrain/'))
