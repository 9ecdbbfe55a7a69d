"""What all verbs of ``fewstep edit`` share: options, model, times, and the files of results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fewstep.cli.values import numbers, replaced
from fewstep.errors import UsageError

By = Literal["replacement", "search"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of all verbs."""

    out: Path = Path("edited.png")
    """The PNG of the result. Several results are numbered: edited-0.png, edited-1.png, ..."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """How many results."""
    seed: int = 0
    """Result i is a function of (seed, i)."""
    steps: int | None = None
    """Network calls, or gradient steps of a search."""
    times: str | None = None
    """The times of the calls instead, descending, e.g. 80,24,5.8."""
    eta: float | None = None
    """Of a diffusion model: the share of fresh noise in each step, 0 to 1. By default 0.85
    where something is known of the picture, and 0 of strokes and variations."""
    label: str | None = None
    """The class of the picture, its name or number; by default none, of a model that knows that."""
    prompt: str | None = None
    """A text that the picture follows, of a model that reads texts."""
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another condition, NAME=VALUE, as of fewstep sample; repeat it for several."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is none."""
    average: str | None = None
    """Another of the run's averages than its first."""
    device: str | None = None
    """Where to run; an accelerator if there is one."""


Shared = tyro.conf.OmitArgPrefixes[Options]
DEFAULT = Options()


def run_edit(
    verb: str,
    name: str,
    options: Options,
    work: Callable[[Any, dict[str, Any]], Any],
    facts: dict[str, Any],
    *,
    times_for: Callable[[Any, list[float] | None, int | None], list[float]] | None = None,
    strip: float | None = None,
) -> None:
    """Load the model, work, and write the results.

    Args:
        verb: for metadata.
        name: of the model.
        options: of all verbs.
        work: makes pictures ``(n, c, h, w)`` of the model and the arguments of an edit.
        facts: for metadata, to which ``work`` may add.
        times_for: the times of the calls by (model, times, steps); None leaves both to ``work``.
        strip: seconds of a frame, where the results are frames of one file.
    """
    from fewstep.editing import files

    files.check_out(options.out, [".png"] if strip is None else [".png", ".gif"])
    if options.n < 1:
        raise UsageError(f"-n must be at least 1, got {options.n}")
    times = numbers("--times", options.times, float) if options.times is not None else None
    if times is not None and options.steps is not None:
        raise UsageError("--steps and --times say the same; give one of them")

    from fewstep.model import find, load
    from fewstep.system.bars import bar

    folder = find(name, options.average)
    model = load(folder, device=options.device)
    print(f"model: {folder}", file=sys.stderr)
    given = {"steps": options.steps, "times": times, "eta": options.eta}
    if times_for is not None:
        given |= {"steps": None, "times": times_for(model, times, options.steps)}
    asked = {key: value for key, value in given.items() if value is not None}
    further: dict[str, Any] = {
        "n": options.n,
        "seed": options.seed,
        "prompts": options.prompt,
        "guidance": options.guidance,
        "cond": model.contract.data.parse(options.cond, options.label),
    }
    calls = 0
    with bar("editing", "calls", None, after=2.0) as advance:

        def watch(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            advance(1)

        x = work(model, {**asked, **further, "watch": watch})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {key: getattr(options, key) for key in ("seed", "label", "prompt", "guidance")}
    named = {"verb": verb, "model": name, "sha256": config.get("sha256")}
    made = {k: v for k, v in {**named, **own, **asked, **facts}.items() if v is not None}
    before = replaced(options.out) if options.n == 1 else ""
    if strip is not None:
        files.write_strip(x, options.out, made, strip)
        print(f"wrote {len(x)} frames to {options.out}{before}")
        return
    written = files.write_pictures(x, options.out, made)
    what = "gradient step(s)" if facts.get("by") == "search" else "network call(s)"
    names = str(written[0]) if len(written) == 1 else f"{written[0]} to {written[-1]}"
    print(f"wrote {len(x)} picture(s) after {calls} {what} to {names}{before}")


def by_replacement(model: Any, times: list[float] | None, steps: int | None) -> list[float]:
    """The times of algorithm 4."""
    from fewstep.editing.asked import times_of

    return times_of(model, steps, times)


def photo_of(model: Any, photo: Path) -> Any:
    """The picture of a file, with as many channels as the model's.

    Raises:
        UsageError: the model is not of images, or the file is no picture.
    """
    from fewstep.editing import files

    return files.read_photo(photo, channels_of(model))


def channels_of(model: Any) -> int:
    """The channels of a model of images.

    Raises:
        UsageError: the model is of something else.
    """
    from fewstep.editing.canvas import size_of

    return size_of(model)[0]


def way(by: By, options: Options) -> dict[str, Any]:
    """How ``run_edit`` finds the times of a way to restore.

    Raises:
        UsageError: an option does not belong to it.
    """
    if by == "search":
        refuse("--by search", eta=options.eta)
        return {}
    return {"times_for": by_replacement}


def refuse(verb: str, **given: Any) -> None:
    """Refuse options that a verb does not have."""
    for name, value in given.items():
        if value is not None:
            option = name if name.startswith("-") else f"--{name}"
            raise UsageError(f"fewstep edit {verb} has no {option}, got {value}; leave it out")
