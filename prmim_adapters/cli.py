# SPDX-License-Identifier: Apache-2.0
"""``prmim``: the command line. Each file in ``commands/`` is a command, imported when used."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import click

from . import __version__, commands
from .extras import MissingExtraError


class Commands(click.Group):
    """Finds commands by file name, so that ``prmim --help`` imports no framework."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
        return [name for name in names if not name.startswith('_')]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command of that name, or None."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f'{commands.__name__}.{cmd_name}')
        return next(
            value
            for value in vars(module).values()
            if isinstance(value, click.Command) and value.name == cmd_name
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; one that needs an extra says which."""
        try:
            return super().invoke(ctx)
        except MissingExtraError as error:
            raise click.UsageError(f'prmim {ctx.invoked_subcommand}: {error}') from None


@click.command(cls=Commands, context_settings={'help_option_names': ['-h', '--help']})
@click.version_option(__version__, prog_name='prmim')
def main() -> None:
    """Progressive partial reconstruction for masked image modeling."""


if __name__ == '__main__':
    main()
