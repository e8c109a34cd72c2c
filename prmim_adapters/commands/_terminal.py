# SPDX-License-Identifier: Apache-2.0
"""What commands print: tables on standard output, progress on standard error."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from ..progress import reported_to
from ..tables import Table

if TYPE_CHECKING:
    from rich.console import Console

_SAVED, _ADDED = r'^-[\d.]+%$|\(-[\d.]+%\)', r'^\+[\d.]+%$|\(\+[\d.]+%\)'


def wrapped(text: str, stream: IO[str]) -> str:
    """A paragraph, in lines of the terminal's width where the stream is one, broken between words."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def say(text: str) -> None:
    """Print a paragraph."""
    click.echo(wrapped(text, sys.stdout))


def print_tables(tables: Sequence[Table], as_markdown: bool = False) -> None:
    """Drawn on a terminal; as markdown into a pipe, where it is asked for, or without rich."""
    if not as_markdown and sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            draw(tables, Console())
            return
    click.echo('\n\n'.join(table.markdown() for table in tables))


def draw(tables: Sequence[Table], console: Console) -> None:
    """Tables within the console's width: figures to the right, what is saved green, added red."""
    from rich import box
    from rich.table import Table as Drawing
    from rich.text import Text

    for table in tables:
        drawing = Drawing(
            title=table.title, title_justify='left', title_style='bold', box=box.SIMPLE_HEAD,
            header_style='bold', pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        for index, header in enumerate(table.headers):
            justify: Any = 'right' if index > 0 and not table.words else 'left'
            names_rows = index == 0 and not table.words
            drawing.add_column(header, justify=justify, overflow='fold', no_wrap=names_rows)
        for row in table.rows:
            part = row[0].startswith('- ')
            cells = [Text(cell.replace('**', '')) for cell in row]
            for cell in cells:
                cell.highlight_regex(_SAVED, 'green')
                cell.highlight_regex(_ADDED, 'red')
                cell.highlight_regex('differs', 'bold red')
            if part:
                cells[0] = Text('  ' + row[0].removeprefix('- '))
            drawing.add_row(*cells, style='dim' if part else None)
        console.print(drawing)
        if table.notes:
            console.print(Text(table.notes, style='dim'))
            console.print()


@contextmanager
def working(what: str = 'loading', ticking: bool = True) -> Iterator[None]:
    """Show on standard error, if that is a terminal, what is being done and how far it is.

    Args:
        what: shown until the work says otherwise (:mod:`prmim_adapters.progress`).
        ticking: move the clock between steps, too, by a thread; not while steps are timed.
    """
    if not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column
    except ImportError:
        yield
        return
    whole = Column(no_wrap=True)
    columns = (
        TextColumn('{task.description}', table_column=Column(no_wrap=True, overflow='ellipsis')),
        BarColumn(20, table_column=whole), TextColumn('{task.fields[count]}', table_column=whole),
        TimeElapsedColumn(table_column=whole),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, auto_refresh=ticking, refresh_per_second=2
    ) as shown:
        task = shown.add_task(what, total=None, count='')

        def report(description: str, done: int, total: int | None) -> None:
            count = '' if total is None else f'{done}/{total}'
            shown.update(
                task,
                description=description,
                completed=done,
                total=total,
                count=count,
                refresh=True,
            )

        with reported_to(report):
            yield
