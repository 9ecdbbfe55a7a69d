"""The table of a comparison: distances by sampling steps, the best of them, and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from fewstep.compare.measures import DISTANCES, Measures
from fewstep.compare.plan import Entrant, Plan
from fewstep.recipes import METHODS

COLUMNS = {
    "calls": "network calls for one sample. A step of a method is one call.",
    "seconds, samples": "duration of a training, and samples that it saw.",
    "non-finite": "updates that were skipped because a gradient was not finite.",
    "spikes": "logged gradient norms above ten times the median of the hundred before.",
    "starts from": "the teacher, or the method of a first stage, whose weights a method begins "
    "with.",
    "seeds": "trainings that ended well.",
    "floor": "real data, evaluated like a model.",
}
"""What the names of the columns and rows mean, beside those of the measures."""


def words(plan: Plan) -> dict[str, str]:
    """What the names of the columns and rows of a comparison mean."""
    return {"calls": COLUMNS["calls"], **plan.measures.words, **COLUMNS}


def table(plan: Plan, facts: Mapping[str, Any]) -> str:
    """The table of a comparison as HTML.

    Args:
        plan: the comparison.
        facts: the contents of ``report.json``.
    """
    measures = plan.measures
    main, more = measures.main, measures.more
    heads = ["method", "calls", *(f"{main}, {steps_title(n)}" for n in plan.steps), *more]
    heads += ["seconds", "samples", "samples/s", "non-finite", "spikes", "starts from", "seeds"]
    best = {n: clear_best(facts["methods"], n, measures) for n in plan.steps}
    rows = []
    for name, entry in facts["methods"].items():
        cells = [_name(Entrant.of(name).title)]
        if not entry["seeds"]:
            reason = escape(entry["failed"][0].splitlines()[0])
            cells.append(f'<td class="failed" colspan="{len(heads) - 3}">failed: {reason}</td>')
        else:
            cells += _numbers(plan, entry, [n for n in plan.steps if best[n] == name])
        start = entry["start"]
        start = METHODS[start].title if start in METHODS else start
        cells.append(f"<td>{escape(start)}</td>")
        cells.append(f"<td>{entry['seeds']} of {plan.seeds}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    rest = "<td></td>" * (len(heads) - 3 - len(plan.steps))
    for key, calls in (("teacher", str(facts["calls"])), ("floor", "")):
        if main not in facts[key]:
            continue
        over = f'<td class="over" colspan="{len(plan.steps)}">{facts[key][main]:.3f}</td>'
        second = f"<td>{facts[key][more[0]]:.3f}</td>"
        cells = f"{_name(key)}<td>{calls}</td>{over}{second}{rest}"
        rows.append(f'<tr class="reference">{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "\n".join(rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _name(title: str) -> str:
    return f'<th scope="row">{escape(title)}</th>'


def _numbers(plan: Plan, entry: Mapping[str, Any], bold: list[int]) -> list[str]:
    """The cells of a method from its calls on; ``bold`` are the steps in which it is the best."""
    main = plan.measures.main
    possible = [n for n in plan.steps if entry[main][str(n)] is not None]
    cells = [f"<td>{', '.join(map(str, possible)) or '-'}</td>"]
    for n in plan.steps:
        value, spread = entry[main][str(n)], entry["spread"][str(n)]
        text = (
            "-"
            if value is None
            else f"{value:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        )
        cells.append(f'<td class="best">{text}</td>' if n in bold else f"<td>{text}</td>")
    for key in plan.measures.more:
        cells.append(f"<td>{entry[key][str(min(possible))]:.3f}</td>" if possible else "<td>-</td>")
    cells += [
        f"<td>{entry['seconds']:.0f}</td>",
        f"<td>{entry['samples']:,.0f}</td>",
        f"<td>{entry['samples_per_second']:,.0f}</td>",
        f"<td>{entry['nonfinite']:g}</td>",
        f"<td>{entry['spikes']:g}</td>",
    ]
    return cells


def clear_best(
    methods: Mapping[str, Mapping[str, Any]], n: int, measures: Measures = DISTANCES
) -> str | None:
    """The method that is better than all others by more than the spreads.

    Args:
        methods: the entries of ``report.json`` by name.
        n: the number of sampling steps.
        measures: of which the main one decides.

    Returns:
        Its name, or None where the second best is within both spreads, where either has no spread,
        or where there is no second one.
    """
    key = str(n)
    sign = -1 if measures.higher else 1
    values = {name: entry[measures.main][key] for name, entry in methods.items()}
    order = sorted((sign * v, k) for k, v in values.items() if v is not None and math.isfinite(v))
    if len(order) < 2:
        return None
    (least, best), (next_fd, second) = order[:2]
    spreads = [methods[name]["spread"][key] for name in (best, second)]
    return best if None not in spreads and next_fd - least > sum(spreads) else None


def steps_title(n: int) -> str:
    """A number of sampling steps in words: ``1 step``, ``2 steps``."""
    return f"{n} step{'s' * (n > 1)}"
