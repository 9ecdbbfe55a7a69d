"""What a comparison found: ``report.json``, and one HTML page that needs no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from fewstep.compare.charts import NAMESPACE, Line, chart
from fewstep.compare.plan import Entrant, Plan
from fewstep.recipes import METHODS
from fewstep.system.files import whole_file, write_json

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #d8dee4 }
th:first-child, td:first-child { text-align: left } td.best { font-weight: 700 }
svg { width: 100%; height: auto } .wide { overflow-x: auto }
.grids { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 }
figure img { width: 250px; image-rendering: pixelated } figcaption { font-size: .85rem }
pre { white-space: pre-wrap; font-size: .8rem; background: #f6f8fa; padding: .6rem }
"""


def write_report(plan: Plan, common: Mapping[str, Any], out: Path) -> None:
    """Write the report of what is done so far."""
    methods = {name: _method(plan, name, out) for name in plan.methods}
    methods = {name: found for name, found in methods.items() if found}
    facts = {
        "data": plan.data,
        "budget": f"{plan.budget.amount:g} {plan.budget.kind}",
        "seeds": plan.seeds,
        **common,
        "methods": methods,
    }
    rounded = json.loads(json.dumps(facts), parse_float=lambda s: float(f"{float(s):.6g}"))
    write_json(out / "report.json", rounded)
    drawn = _charts(plan, rounded)
    for name, svg in drawn.items():
        _write(out / f"{name}.svg", svg)
    _write(out / "report.html", _page(plan, rounded, drawn, out))


def _method(plan: Plan, name: str, out: Path) -> dict[str, Any]:
    """The mean over seeds of what is there, and its spread: a population standard deviation."""
    places = [out / name / f"seed-{plan.first_seed + k}" / "result.json" for k in range(plan.seeds)]
    found = [json.loads(p.read_text(encoding="utf-8")) for p in places if p.exists()]
    good = [row for row in found if "failed" not in row]
    failed = [row["failed"] for row in found if "failed" in row]
    if not found:
        return {}
    entry: dict[str, Any] = {
        "start": METHODS[Entrant.of(name).method].after or "teacher",
        "seeds": len(good),
    }
    if failed:
        entry["failed"] = failed
    if not good:
        empty = {str(n): None for n in plan.steps}
        return {
            **entry,
            "fd": empty,
            "spread": empty,
            "seconds": None,
            "samples": None,
            "nonfinite": None,
        }
    for key in ("fd", "swd", "nn", "images_per_second"):
        columns = {str(n): [row[key][str(n)] for row in good] for n in plan.steps}
        entry[key] = {n: _unless_none(mean, column) for n, column in columns.items()}
        if key == "fd":
            entry["spread"] = {n: _unless_none(pstdev, column) for n, column in columns.items()}
    for key in ("seconds", "samples", "nonfinite", "spikes"):
        entry[key] = mean(row[key] for row in good)
    entry["samples_per_second"] = entry["samples"] / entry["seconds"]
    entry["curves"] = [row["curve"] for row in good]
    entry["settings"] = good[0]["settings"]
    return entry


def _unless_none(of: Any, column: Sequence[float | None]) -> float | None:
    return None if None in column else of(column)


def _charts(plan: Plan, facts: Mapping[str, Any]) -> dict[str, str]:
    floors = {
        f"teacher, {facts['calls']} calls": facts["teacher"]["fd"],
        "floor": facts["floor"]["fd"],
    }
    by_steps = [
        Line(
            name,
            [
                (k, entry["fd"][str(n)])
                for k, n in enumerate(plan.steps)
                if entry["fd"][str(n)] is not None
            ],
        )
        for name, entry in facts["methods"].items()
    ]
    by_time = [
        Line(name, _mean_curve(entry["curves"]))
        for name, entry in facts["methods"].items()
        if entry.get("curves")
    ]
    ticks = {float(k): str(n) for k, n in enumerate(plan.steps)}
    return {
        "steps": chart(by_steps, floors, "sampling steps", "fd", ticks=ticks),
        "time": chart(by_time, floors, "seconds of training", "fd, fewest steps, one draw"),
    }


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    return [
        (mean(p[0] for p in points), mean(p[1] for p in points))
        for points in zip(*curves, strict=False)
    ]


def _page(plan: Plan, facts: Mapping[str, Any], drawn: Mapping[str, str], out: Path) -> str:
    title = f"{len(facts['methods'])} methods on {plan.data}, {facts['budget']} each"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_preface(plan, facts))}</p>",
        f'<div class="wide">{_table(plan, facts)}</div>',
        "<h2>Distance against steps</h2>",
        drawn["steps"].replace(NAMESPACE, ""),
        "<h2>Distance against training time</h2>",
        drawn["time"].replace(NAMESPACE, ""),
        "<h2>Samples</h2>",
        *_grids(plan, facts, out),
        "<h2>Settings</h2>",
        *(
            f"<details><summary>{escape(Entrant.of(name).title)}</summary>"
            f"<pre>{escape(json.dumps(entry['settings'], indent=1))}</pre></details>"
            for name, entry in facts["methods"].items()
            if "settings" in entry
        ),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _preface(plan: Plan, facts: Mapping[str, Any]) -> str:
    return (
        f"Every method starts from the same teacher ({facts['parameters']:,} parameters), sees the "
        f"same data in the same order and has {facts['budget']} of training, on {facts['device']} "
        f"with {facts['threads']} thread(s) and torch {facts['torch']}. Means over {plan.seeds} "
        "trainings, with their standard deviation; fd is the Frechet distance to held-out data "
        "in the features of this data's protocol. Settings were chosen on other seeds. A dash "
        "means that the method cannot be sampled so; (1 of 3) that the other trainings failed or "
        "are still to come."
        + (
            f" {facts['pairs']['n']:,} pairs of noise and the teacher's samples, for methods that "
            f"learn from them, were made before, in {facts['pairs']['seconds']:,.0f} s."
            if "pairs" in facts
            else ""
        )
    )


def _table(plan: Plan, facts: Mapping[str, Any]) -> str:
    heads = ["method", "starts from"]
    heads += [f"fd, {n} step{'s' * (n > 1)}" for n in plan.steps]
    heads += ["swd", "nn", "seconds", "samples", "samples/s", "non-finite", "spikes"]
    best = {
        n: min(
            (e["fd"][str(n)] for e in facts["methods"].values() if e["fd"][str(n)] is not None),
            default=None,
        )
        for n in plan.steps
    }
    rows = []
    for name, entry in facts["methods"].items():
        part = f" ({entry['seeds']} of {plan.seeds})" if entry["seeds"] < plan.seeds else ""
        cells = [f"<td>{escape(Entrant.of(name).title)}{part}</td>"]
        cells.append(f"<td>{escape(entry['start'])}</td>")
        if not entry["seeds"]:
            span = len(heads) - 2
            reason = escape(entry["failed"][0].splitlines()[0])
            rows.append("".join([*cells, f'<td colspan="{span}">failed: {reason}</td>']))
            continue
        for n in plan.steps:
            fd, spread = entry["fd"][str(n)], entry["spread"][str(n)]
            mark = ' class="best"' if fd is not None and fd == best[n] else ""
            text = "-" if fd is None else f"{fd:.3f} ± {spread:.3f}"
            cells.append(f"<td{mark}>{text}</td>")
        fewest = next((str(n) for n in plan.steps if entry["fd"][str(n)] is not None), None)
        for key in ("swd", "nn"):
            cells.append("<td>-</td>" if fewest is None else f"<td>{entry[key][fewest]:.3f}</td>")
        cells += [
            f"<td>{entry['seconds']:.0f}</td>",
            f"<td>{entry['samples']:,.0f}</td>",
            f"<td>{entry['samples_per_second']:,.0f}</td>",
            f"<td>{entry['nonfinite']:g}</td>",
            f"<td>{entry['spikes']:g}</td>",
        ]
        rows.append("".join(cells))
    for title, key in ((f"teacher, {facts['calls']} calls", "teacher"), ("floor", "floor")):
        fd = f'<td colspan="{len(plan.steps)}">{facts[key]["fd"]:.3f}</td>'
        swd = f"<td>{facts[key]['swd']:.3f}</td>"
        rest = "<td></td>" * (len(heads) - 3 - len(plan.steps))
        rows.append(f"<td>{escape(title)}</td><td></td>{fd}{swd}{rest}")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _grids(plan: Plan, facts: Mapping[str, Any], out: Path) -> list[str]:
    shown = [_figure(out / "teacher.png", f"teacher, {facts['calls']} calls")]
    for name, entry in facts["methods"].items():
        for n in plan.steps:
            file = out / name / f"seed-{plan.first_seed}" / f"samples-{n}.png"
            if entry["fd"][str(n)] is not None:
                caption = f"{Entrant.of(name).title}, {n} step{'s' * (n > 1)}"
                shown.append(_figure(file, caption))
    return ['<div class="grids">', *shown, "</div>"]


def _figure(file: Path, caption: str) -> str:
    if not file.exists():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _write(path: Path, text: str) -> None:
    with whole_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
