# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a sweep."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Counts the points that have ended, and names the one that began last.

    Args:
        total, finished: number of points, and of those that have a result already.
        console: where it goes; None = standard output.
    """

    def __init__(self, total: int, finished: int, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            speed_estimate_period=1e9,
        )
        self._bar = self._progress.add_task('sweep', total=total, completed=finished)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begun(self, name: str) -> None:
        """A point begins."""
        self._progress.update(self._bar, description=name)

    def ended(self, name: str, failed: bool) -> None:
        """A point has a result, or has failed."""
        if failed:
            self._progress.console.print(f'[red]failed[/red] {name}')
        self._progress.advance(self._bar)
