"""Progress for people: a bar on a terminal, nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tightrope.app.cli.frame import Common
from tightrope.profiler.measure import Progress as Tell


@contextmanager
def bar(common: Common, title: str, label: str = "starting the engine") -> Iterator[Tell]:
    """A function `(done, total, label)` that moves the bar; it is taken away at the end."""
    console = Console(stderr=True, quiet=common.quiet or common.as_json)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[label]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None, label=label)

        def tell(done: int, total: int, label: str) -> None:
            progress.update(task, completed=done, total=total, label=label)

        yield tell
