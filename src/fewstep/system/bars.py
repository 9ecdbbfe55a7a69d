"""A bar with rate and time left on a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(
    doing: str, things: str, total: int | None, after: float = 0.0
) -> Iterator[Callable[[int], None]]:
    """While the block lasts; what it gives is told how many more are done.

    Args:
        doing: what is done, as a participle.
        things: of what, in the plural.
        total: how many there are, or None where nobody knows.
        after: seconds that the block may take without a bar.
    """
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
    shown = Progress(*columns, console=Console(stderr=True))
    task = shown.add_task("", total=total, all="?" if total is None else total, rate="-")

    def advance(count: int) -> None:
        shown.advance(task, count)
        speed = shown.tasks[0].speed
        shown.update(task, rate="-" if speed is None else f"{speed:,.{0 if speed >= 10 else 2}f}")

    # A thread of its own, since a block may be long at its first thing.
    late = threading.Timer(after, shown.start)
    late.daemon = True
    late.start() if after else shown.start()
    try:
        yield advance
    finally:
        late.cancel()
        if late.ident is not None:
            late.join()
        shown.stop()
