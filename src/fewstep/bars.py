"""A bar with rate and time left on a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(doing: str, things: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """While the block lasts; what it gives is told how many more are done."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (
        TextColumn(doing),
        BarColumn(),
        TextColumn("{task.completed}/{task.fields[all]}"),
        TextColumn("{task.fields[rate]} " + things + "/s  left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=total, all="?" if total is None else total, rate="-")

        def advance(count: int) -> None:
            shown.advance(task, count)
            speed = shown.tasks[0].speed
            shown.update(task, rate="-" if speed is None else f"{speed:,.0f}")

        yield advance
