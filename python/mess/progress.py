"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

IS_FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
"""False in all but one of the processes that `torchrun` starts."""

console = Console(width=None if sys.stdout.isatty() else 120, quiet=not IS_FIRST_PROCESS)
"""Where every verb prints; rich drops colours and live bars when it is no terminal."""


class Bar:
    """A running bar: call it after each unit of work, with a short text to show beside it."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, text: str = "") -> None:
        self._bar.update(self._task, advance=1, text=text)

    def set(self, done: int, total: int, text: str = "") -> None:
        """Move to `done` of `total`, for work that counts by itself."""
        self._bar.update(self._task, completed=done, total=total, text=text)


@contextmanager
def progress(title: str, total: int, completed: int = 0) -> Iterator[Bar]:
    """A bar of `total` steps inside the block, of which `completed` are done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, disable=console.quiet or not console.is_terminal, transient=True) as bar:
        yield Bar(bar, bar.add_task(title, total=total, completed=completed, text=""))


def say(text: str) -> None:
    """Print a line as it is, without markup and unbroken however long: names of files may hold anything, and other
    programs read it."""
    console.print(text, highlight=False, soft_wrap=True, markup=False, emoji=False)
