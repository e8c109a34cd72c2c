# SPDX-License-Identifier: Apache-2.0
"""A table as data: commands draw it on a terminal, files and pipes get markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells of text under headers.

    Attributes:
        headers: of the columns; the first column names the rows.
        rows: each as long as ``headers``. A first cell that begins with '- ' is a part of the row
            above it.
        title: a line above.
        notes: a paragraph below.
        words: the columns hold words, set to the left, rather than figures.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ''
    notes: str = ''
    words: bool = False

    def markdown(self) -> str:
        """Title, table and notes, an empty line between them."""
        rule = ['---'] * len(self.headers)
        if not self.words:
            rule[1:] = ['---:'] * (len(rule) - 1)
        lines = [_line(self.headers), f'|{"|".join(rule)}|', *map(_line, self.rows)]
        return '\n\n'.join(part for part in (self.title, '\n'.join(lines), self.notes) if part)


def _line(cells: Iterable[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
