"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()
"""Where every verb prints; rich drops colours and live bars when it is no terminal."""


class Advance(Protocol):
    """Call after each unit of work, with a short text to show beside the bar."""

    def __call__(self, text: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, *, completed: int = 0) -> Iterator[Advance]:
    """A bar of `total` steps inside the block; yields the function that advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=completed, text="")

        def advance(text: str = "") -> None:
            bar.update(task, advance=1, text=text)

        yield advance
