"""The report of a comparison: ``report.json``, two charts, and one HTML page with all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from fewstep.compare.charts import Line, chart
from fewstep.compare.measures import DISTANCES, Measures
from fewstep.compare.page import page
from fewstep.compare.plan import Entrant, Plan
from fewstep.recipes import METHODS
from fewstep.system.files import whole_file, write_json
from fewstep.version import __version__


def write_report(plan: Plan, common: Mapping[str, Any], out: Path) -> None:
    """Write the report of the results that exist so far.

    Args:
        plan: the comparison.
        common: the measurements that all methods share: of the teacher, the floor and the pairs.
        out: the folder of the study.
    """
    results = {name: _results(plan, name, out) for name in plan.methods}
    facts = {
        "data": plan.data,
        "budget": plan.budget.title,
        "seeds": plan.seeds,
        "command": plan.command(out),
        **_origin([row for rows in results.values() for row in rows]),
        **common,
        "methods": {name: _method(plan, name, rows) for name, rows in results.items() if rows},
    }
    rounded = json.loads(json.dumps(facts), parse_float=lambda s: float(f"{float(s):.6g}"))
    write_json(out / "report.json", rounded)
    for name, draw in charts(plan.steps, rounded, plan.measures).items():
        _write(out / f"{name}.svg", draw())
    _write(
        out / "report.html", page(plan, rounded, charts(plan.steps, rounded, plan.measures), out)
    )


def _results(plan: Plan, name: str, out: Path) -> list[dict[str, Any]]:
    """The results of a method, by seed."""
    places = [out / name / f"seed-{plan.first_seed + k}" / "result.json" for k in range(plan.seeds)]
    return [json.loads(p.read_text(encoding="utf-8")) for p in places if p.exists()]


def _origin(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The date of the last result, in UTC, and the versions of fewstep that made the results."""
    today = datetime.now(UTC).date().isoformat()
    versions = {row["fewstep"] for row in rows if "fewstep" in row} or {__version__}
    return {
        "fewstep": ", ".join(sorted(versions)),
        "date": max((row["date"] for row in rows if "date" in row), default=today),
    }


def _method(plan: Plan, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means over the seeds; the spread is a standard deviation of the population."""
    good = [row for row in rows if "failed" not in row]
    failed = [row["failed"] for row in rows if "failed" in row]
    entry: dict[str, Any] = {
        "start": METHODS[Entrant.of(name).method].after or "teacher",
        "seeds": len(good),
    }
    if failed:
        entry["failed"] = failed
    if not good:
        empty = {str(n): None for n in plan.steps}
        nothing = dict.fromkeys(("seconds", "samples", "nonfinite"))
        return {**entry, plan.measures.main: empty, "spread": empty, **nothing}
    for key in plan.measures.kept:
        columns = {str(n): [row[key][str(n)] for row in good] for n in plan.steps}
        entry[key] = {n: _unless_none(mean, column) for n, column in columns.items()}
        if key == plan.measures.main:
            entry["spread"] = {n: _unless_none(_spread, column) for n, column in columns.items()}
    for key in ("seconds", "samples", "nonfinite", "spikes"):
        entry[key] = mean(row[key] for row in good)
    entry["samples_per_second"] = entry["samples"] / entry["seconds"]
    entry["curves"] = [row["curve"] for row in good]
    entry["settings"] = good[0]["settings"]
    # Results of older versions have no notes.
    entry["notes"] = [*dict.fromkeys(note for row in good for note in row.get("notes", ()))]
    return entry


def _unless_none(of: Any, column: Sequence[float | None]) -> float | None:
    return None if None in column else of(column)


def _spread(values: Sequence[float]) -> float | None:
    """The standard deviation of two values or more; one value has none."""
    return pstdev(values) if len(values) > 1 else None


def charts(
    steps: Sequence[int], facts: Mapping[str, Any], measures: Measures = DISTANCES
) -> dict[str, Callable[..., str]]:
    """The charts of a report by name, as functions of :func:`chart`'s width.

    Args:
        steps: the numbers of sampling steps.
        facts: the contents of ``report.json``.
        measures: of which the main one is drawn.
    """
    main = measures.main
    levels = {k: facts[k][main] for k in ("teacher", "floor") if main in facts[k]}
    by_steps = [
        Line(
            Entrant.of(name).title,
            [
                (k, entry[main][str(n)])
                for k, n in enumerate(steps)
                if entry[main][str(n)] is not None
            ],
        )
        for name, entry in facts["methods"].items()
    ]
    by_time = [
        Line(Entrant.of(name).title, _mean_curve(entry.get("curves", [])))
        for name, entry in facts["methods"].items()
    ]
    ticks = {float(k): str(n) for k, n in enumerate(steps)}
    y_title = f"{main} of the fewest steps, by one set of samples"
    return {
        "steps": partial(chart, by_steps, levels, "sampling steps", main, ticks=ticks),
        "time": partial(chart, by_time, levels, "seconds of training", y_title),
    }


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    return [
        (mean(p[0] for p in points), mean(p[1] for p in points))
        for points in zip(*curves, strict=False)
    ]


def _write(path: Path, text: str) -> None:
    with whole_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
