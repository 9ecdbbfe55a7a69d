"""The Markdown of a model card: how to sample, data, evaluation, licence."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fewstep import hub
from fewstep.bundled import BUNDLED
from fewstep.contract import Contract, DataSpec
from fewstep.errors import UsageError
from fewstep.image_grid import drawable

PICTURE = "samples.png"
"""The grid of samples beside the card."""

SHOWN = 16
"""Samples in the grid, and in the calls that a card shows."""

UNSET = (
    "Not set. Whoever publishes the model should choose one, and the licence of the data may limit "
    "which. `fewstep train RECIPE --licence NAME` sets it, and in Python `model.save(FOLDER, "
    'card=dataclasses.replace(model.card, licence="..."))`.'
)
"""What is said where a model has no licence."""

MOVED = "Where the folder has moved, give its new place."

KINDS = {
    "ode": "A solver follows the ODE of a diffusion model. `solver`, `eta` and `churn` choose "
    "another solver than Heun's, or add noise between its steps.",
    "renoise": "One call answers. Each further step adds noise to the answer and calls the model "
    "again, so more than a few steps seldom help.",
    "deterministic": "Each step jumps to an earlier time, the last one to data, without new noise.",
    "gamma": "Each step jumps to an earlier time, and a share `gamma` of noise is added between.",
}
"""How a model is sampled, by the kind of its contract."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model's card says beside its contract; ``config.json`` keeps it.

    Args:
        title: of the card; by default it names the method.
        text: Markdown that says how the model was made.
        data: what the model learned from, and where that is from.
        licence: of the model, e.g. ``CC-BY-4.0``; empty where nobody has set one.
        options: of the training, by name.
    """

    title: str = ""
    text: str = ""
    data: str = ""
    licence: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value}


LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0"),
        *("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0"),
        *("openrail", "openrail++", "creativeml-openrail-m", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
        *("mpl-2.0", "unlicense", "isc", "artistic-2.0", "odbl"),
    }
)
"""Licences that the Hub knows by these identifiers; it has more."""

Numbers = Mapping[str, Mapping[str, float]]
"""Measurements by name, of samples by caption."""


def read_card(value: Any, source: Path) -> Card:
    """The card of a ``config.json``; an empty one where it has none.

    Raises:
        UsageError: it is damaged.
    """
    try:
        return TypeAdapter(Card).validate_python(value if value is not None else {})
    except ValidationError as error:
        lines = [f"card.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError(f"{source}: " + "; ".join(lines)) from error


def text(
    card: Card,
    contract: Contract,
    place: str,
    *,
    steps: int,
    calls: int,
    custom: str | None = None,
    shown: int = 0,
    numbers: Numbers | None = None,
    note: str = "",
) -> str:
    """The Markdown of a card.

    Args:
        card: what is known beside the contract.
        contract: of the model.
        place: the folder or name that the model is loaded by.
        steps: of a sample, by default.
        calls: of the network in a sample.
        custom: the name of the network where it is the user's own.
        shown: samples in the grid; 0 where there is none.
        numbers: the evaluation of the model, where there is one.
        note: how the numbers were measured.
    """
    python, command = _calls(contract, place, steps, custom)
    moves = place not in BUNDLED and not hub.names(place)
    parts = [
        front_matter(card, contract) if hub.names(place) else "",
        f"# {card.title or f'Model of the method {contract.method}, made with fewstep'}",
        card.text,
        f"![samples]({PICTURE})" if shown else "",
        f"*{shown} samples of seed 0, {steps} step(s) each.*" if shown else "",
        "## Sampling",
        f"```python\n{python}\n```",
        f"```bash\n{command}\n```" if command else _no_command(custom),
        MOVED if moves else "",
        _kinds(contract, steps, calls),
        "## Data",
        _data(card, contract.data),
        "## Evaluation",
        _table(numbers, note) if numbers else "This card has no evaluation of the model.",
        "## Licence",
        card.licence or UNSET,
        "## Limits",
        "The model can only generate what its data showed it.",
        *(["## Options", _rows(("option", "value"), _options(card))] if card.options else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: Card, contract: Contract) -> str:
    """What the Hub reads of a card, in YAML: licence, library and tags.

    A licence that is none of ``LICENCES`` is ``other``, with a name.
    """
    image = ["image-generation"] if drawable(contract.data.shape) else []
    tags = [json.dumps(tag) for tag in ("fewstep", contract.method, *image)]
    lines = ["library_name: fewstep", "tags:", *(f"- {tag}" for tag in tags)]
    identifier = card.licence.strip().lower()
    if identifier in LICENCES:
        lines.insert(0, f"license: {identifier}")
    elif identifier:
        name = re.sub(r"[^a-z0-9.-]+", "-", identifier).strip("-.")[:60] or "other"
        lines[:0] = ["license: other", f"license_name: {json.dumps(name)}"]
    return "\n".join(["---", *lines, "---"])


def _calls(contract: Contract, place: str, steps: int, custom: str | None) -> tuple[str, str]:
    """How to sample in Python, and on the command line where that is possible."""
    data = contract.data
    shape = ", ".join("length" if size is None else str(size) for size in data.shape)
    network = f", network={custom}(...)" if custom else ""
    free = data.conditions.get("mask")
    length = None if free is None else data.shape[-1] or getattr(free, "length", None) or 64
    lengths = "" if length is None else f", lengths={length}"
    python = (
        f"import fewstep\n\nmodel = fewstep.load({json.dumps(place)}{network})\n"
        f"x = model.sample({SHOWN}, steps={steps}, seed=0{lengths})  # ({SHOWN}, {shape})"
    )
    if custom:
        return python, ""
    words = ["fewstep", "sample", place, "-n", str(SHOWN), "--steps", str(steps), "--seed", "0"]
    words += [] if length is None else ["--lengths", str(length)]
    words += ["--out", "grid.png" if drawable(data.shape) else "samples.npz"]
    return python, shlex.join(words)


def _no_command(custom: str | None) -> str:
    return (
        f"The command line cannot load the model, because the network `{custom}` is not one of the "
        "library's."
    )


def _kinds(contract: Contract, steps: int, calls: int) -> str:
    sampling = contract.sampling
    known = ", ".join(map(str, sorted(sampling.times)))
    parts = [KINDS[sampling.kind], f"A sample of {steps} step(s) costs {calls} network call(s)."]
    if known:
        others = "other numbers are allowed" if sampling.any_times else "no others are allowed"
        parts.append(f"The contract lists times for {known} step(s); {others}.")
    if sampling.guidance is not None:
        low, high = sampling.guidance.min, sampling.guidance.max
        parts.append(f"`guidance` may lie between {low:g} and {high:g}; 1 is none.")
        if sampling.guidance.embedded:
            parts.append(f"The network reads the scale itself; by default it is {low:g}.")
    return " ".join(parts)


def _data(card: Card, data: DataSpec) -> str:
    values = "unbounded" if data.range is None else f"in [{data.range[0]:g}, {data.range[1]:g}]"
    lines = [("source", card.data or "not recorded"), ("one sample", f"{data.shape}, {values}")]
    if data.labels:
        named = ", ".join(data.class_names) or f"0 to {data.labels - 1}, which have no names"
        lines.append(("classes", f"{data.labels}: {named}"))
    for name, one in data.conditions.items():
        if name not in {"label", "mask"}:
            lines.append((f"condition `{name}`", type(one).__name__))
    return _rows(("", ""), lines)


def _table(numbers: Numbers, note: str) -> str:
    names = list(dict.fromkeys(name for row in numbers.values() for name in row))
    lines = [
        (caption, *(f"{row[name]:.4g}" if name in row else "" for name in names))
        for caption, row in numbers.items()
    ]
    return "\n\n".join(filter(None, (_rows(("", *names), lines), note)))


def _options(card: Card) -> list[tuple[str, str]]:
    return [(name, f"`{value}`" if value else "") for name, value in card.options.items()]


def _rows(head: tuple[str, ...], lines: list[Any]) -> str:
    cells = [head, ("---",) * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in c)} |" for c in cells)
