"""``fewstep recipes``: the table of what can be trained."""

from __future__ import annotations

from fewstep.errors import UsageError
from fewstep.recipes import NAMES, recipe
from fewstep.recipes.options import NONE


def show_recipes(args: list[str]) -> None:
    """Print the table."""
    if args and args[0] not in {"-h", "--help"}:
        raise UsageError(f"fewstep recipes takes no arguments, got {args}")
    names = ("recipe", "method", "data", "teacher", "cost", "result")
    lines = [names, *map(_line, NAMES)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _line(name: str) -> tuple[str, ...]:
    """A recipe's line of ``fewstep recipes``."""
    shown = recipe(name)
    teacher = shown.start.teacher
    own = teacher.removeprefix("runs/") == teacher
    source = "-" if teacher == NONE else teacher if own else shown.place.trained_by(shown.method)
    result = shown.place.setting(shown.method).result
    return (name, shown.method.title, shown.place.title, source, shown.cost, result)
