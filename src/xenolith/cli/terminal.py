"""What the verbs share in talking to a terminal: columns that are plain in a pipe, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console:
    """A rich console; in a pipe it neither colours nor folds lines."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 10_000
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
    """Print columns under a header. `styles` are rich styles, one for each column, used on a terminal only."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, style in zip(header, styles, strict=True):
        table.add_column(title, style=style, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def print_json(value: Any) -> None:
    """Print a value for programs."""
    click.echo(json.dumps(value, indent=2))


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A function to be told what is being done and how far it is (0.0–1.0); a bar on standard error shows it.

    Nothing is shown before the first report, and nothing at all where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    bar = _Bar()
    try:
        yield bar.report
    finally:
        bar.stop()


class _Bar:
    """A rich progress bar, one line for each thing done, made at the first report."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def report(self, what: str, share: float) -> None:
        if self._progress is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=console(stderr=True),
            )
            self._progress.start()
        if what not in self._tasks:
            self._finish()
            self._tasks[what] = self._progress.add_task(what, total=1.0)
        self._progress.update(self._tasks[what], completed=share)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _finish(self) -> None:
        """Show what came before as done: the next thing has begun."""
        for task in self._tasks.values():
            self._progress.update(task, completed=1.0)
