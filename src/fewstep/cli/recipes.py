"""``fewstep recipes``: the table of what can be trained."""

from __future__ import annotations

from difflib import get_close_matches

from fewstep.errors import UsageError
from fewstep.recipes import NAMES, recipe
from fewstep.recipes.options import NONE

HELP = """\
usage: fewstep recipes [WORD ...]        the recipes whose name, method or data has every word
       fewstep train RECIPE [OPTIONS]    train one; fewstep train RECIPE --help explains its options
       fewstep train --again RUN --out NEW [OPTIONS]    train as the run in a folder was
"""


def show_recipes(args: list[str]) -> None:
    """Print the table: all recipes, or those whose name, method or data contains every word.

    Raises:
        UsageError: there is none of these words.
    """
    words = [word.lower() for word in args if word not in {"-h", "--help"}]
    if len(words) < len(args):
        print(HELP)
    names = ("recipe", "method", "data", "teacher", "cost", "result")
    every = [_line(name) for name in NAMES]
    chosen = [line for line in every if all(w in " ".join(line[:3]).lower() for w in words)]
    if not chosen:
        raise UsageError(
            f"no recipe has {' and '.join(map(repr, words))} in its name, method or data; fewstep "
            f"recipes lists all{_near(words)}"
        )
    lines = [names, *chosen]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _near(words: list[str]) -> str:
    """What may be meant by a word, as the end of a message."""
    known = {part for name in NAMES for part in (name, *name.split("-"))}
    near = [match for word in words for match in get_close_matches(word, known, 1)]
    return f"; did you mean {' '.join(near)}?" if near else ""


def _line(name: str) -> tuple[str, ...]:
    """A recipe's line of ``fewstep recipes``."""
    shown = recipe(name)
    teacher = shown.start.teacher
    own = teacher.removeprefix("runs/") == teacher
    source = "-" if teacher == NONE else teacher if own else shown.place.trained_by(shown.method)
    result = shown.place.setting(shown.method).result
    return (name, shown.method.title, shown.place.title, source, shown.cost, result)
