# SPDX-License-Identifier: Apache-2.0
"""``prmim``: the command line. Each file in ``commands/`` is a command, imported when used."""

from __future__ import annotations

import difflib
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

import click

from . import __version__, commands
from .commands._terminal import wrapped
from .errors import Mistake
from .extras import MissingExtraError


class OneLineError(click.ClickException):
    """An error as one line, without the usage; wrapped at words on a terminal only."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(' '.join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to standard error."""
        text = wrapped(f'Error: {self.message}', sys.stderr)
        if sys.stderr.isatty():
            text = click.style('Error:', fg='red', bold=True) + text.removeprefix('Error:')
        click.echo(text, file=file, err=file is None)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except getattr(click.exceptions, 'NoArgsIsHelpError', ()):
        raise  # shows the help
    except click.ClickException as error:
        text = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx is not None:
            stop = '' if text.endswith(('.', '?')) else '.'
            text = f'{text}{stop} See {error.ctx.command_path} --help'
        raise OneLineError(text, error.exit_code) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of what is imported, here and in the processes that measure."""
    if sys.warnoptions:  # python -W and PYTHONWARNINGS bring them back
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sys.warnoptions.append('ignore')  # multiprocessing hands these on
        try:
            yield
        finally:
            sys.warnoptions.clear()


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's, and the nearest command where there is none of that name."""
        name = args[0]
        if not name.startswith('-') and self.get_command(ctx, name) is None:
            names = self.list_commands(ctx)
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f'Commands: {", ".join(names)}.'
            ctx.fail(f"No such command '{name}'. {hint}")
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], *rest: Any, **extra: Any
    ) -> click.Context:
        """Click's, with errors of one line."""
        with _in_one_line():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Click's, with errors of one line; a command that needs an extra says which."""
        with _in_one_line(), _quiet():
            try:
                return super().invoke(ctx)
            except MissingExtraError as error:
                raise Mistake(f'prmim {ctx.invoked_subcommand}: {error}') from None


@click.command(cls=Commands, context_settings={'help_option_names': ['-h', '--help']})
@click.version_option(__version__, prog_name='prmim')
def main() -> None:
    """Progressive partial reconstruction for masked image modeling."""


if __name__ == '__main__':
    main()
