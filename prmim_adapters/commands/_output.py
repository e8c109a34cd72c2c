# SPDX-License-Identifier: Apache-2.0
"""What a command may write over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click


def check_output(out: str, inputs: Iterable[str], force: bool = True) -> None:
    """Refuse to write over a file that the command reads, whatever its name or link.

    Args:
        out: file to write.
        inputs: files that are read; names that are no files, as URLs, are passed over.
        force: whether another file may be replaced.

    Raises:
        click.UsageError: ``out`` is one of the inputs, or is there already without ``force``.
    """
    target = Path(out)
    for name in inputs:
        if target.exists() and Path(name).is_file() and target.samefile(name):
            raise click.UsageError(f'{out} is {name}, which is read: give another file to write')
    if target.exists() and not force:
        raise click.UsageError(f'{out} exists: give another name, or --force to replace it')
