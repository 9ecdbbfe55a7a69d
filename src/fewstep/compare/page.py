"""The HTML page of a comparison, which needs no other file and fits phones."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from fewstep.compare.charts import NAMESPACE, NARROW, WIDE
from fewstep.compare.plan import Entrant, Plan
from fewstep.compare.table import steps_title, table, words

STYLE = """
*, ::before, ::after { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p, dl, pre { max-width: 60rem }
.scroller { overflow-x: auto; overflow-wrap: normal }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap;
        font-size: .85rem }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #d8dee4 }
thead th { vertical-align: bottom } tbody th { font-weight: 400 } td.best { font-weight: 700 }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff }
td.over { text-align: center } td.failed { text-align: left; white-space: normal }
.reference th, .reference td { background: #f6f8fa }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; font-size: .85rem }
dd { margin: 0 }
svg { display: block; width: 100%; height: auto; max-width: 900px } svg.narrow { display: none }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-size: .85rem }
figure img { width: 100%; max-width: 250px; image-rendering: pixelated }
pre { white-space: pre-wrap; font-size: .8rem; background: #f6f8fa; padding: .6rem }
@media (max-width: 720px) {
  svg.wide { display: none } svg.narrow { display: block; max-width: 540px }
  dt { max-width: 6rem }
  th:first-child { white-space: normal; min-width: 6.5rem; max-width: 8rem }
}
"""

Charts = Mapping[str, Callable[..., str]]


def page(plan: Plan, facts: Mapping[str, Any], charts: Charts, out: Path) -> str:
    """The HTML page.

    Args:
        plan: the comparison.
        facts: the contents of ``report.json``.
        charts: functions of a width that draw the charts ``steps`` and ``time``.
        out: the folder of the study, which has the pictures.
    """
    title = f"{len(facts['methods'])} methods on {plan.data}, {facts['budget']} each"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_terms(facts))}</p>",
        f"<p>{escape(_origin(facts))}</p>",
        f'<pre class="command">{escape(facts["command"])}</pre>',
        "<h2>Distances and costs</h2>",
        f"<p>{escape(_reading(plan))}</p>",
        '<div class="scroller" role="region" aria-label="Distances and costs" tabindex="0">',
        table(plan, facts),
        "</div>",
        "<dl>",
        *(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in words(plan).items()),
        "</dl>",
        *(
            f"<p>{escape(Entrant.of(name).title)}: {escape(note)}</p>"
            for name, entry in facts["methods"].items()
            for note in entry.get("notes", ())
        ),
        "<h2>Distance against steps</h2>",
        *_drawings(charts["steps"]),
        "<h2>Distance against training time</h2>",
        *_drawings(charts["time"]),
        "<h2>Samples</h2>",
        *_pictures(plan, facts, out),
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
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _terms(facts: Mapping[str, Any]) -> str:
    threads = f"{facts['threads']} thread" + "s" * (facts["threads"] != 1)
    terms = (
        f"Every method starts from the same teacher ({facts['parameters']:,} parameters), sees the "
        f"same data in the same order and has {facts['budget']} of training, rounded to whole "
        f"updates, on {facts['device']} with {threads}. The column samples says what was seen. "
        "Settings were chosen on other seeds."
    )
    if "pairs" not in facts:
        return terms
    return terms + (
        f" {facts['pairs']['n']:,} pairs of noise and the teacher's samples, for methods that "
        f"learn from them, were made before, in {facts['pairs']['seconds']:,.0f} s."
    )


def _origin(facts: Mapping[str, Any]) -> str:
    return (
        f"Made with fewstep {facts['fewstep']} and torch {facts['torch']}; the last training ended "
        f"on {facts['date']} (UTC). The command was:"
    )


def _reading(plan: Plan) -> str:
    if plan.seeds == 1:
        return (
            "Each method was trained once. Therefore the spread between trainings is not known, "
            "and no distance is bold."
        )
    return (
        f"Numbers are means over {plan.seeds} trainings; the number after ± is their standard "
        "deviation. A bold distance is smaller than the second best of its column by more than "
        "the standard deviations of both together. A dash means that the method cannot be sampled "
        "in this number of steps. The teacher and the floor have one distance each."
    )


def _drawings(draw: Callable[..., str]) -> list[str]:
    """A chart for screens and one for phones, of which the style shows one."""
    widths = {"wide": WIDE, "narrow": NARROW}
    return [draw(width=w).replace(NAMESPACE, f' class="{name}"') for name, w in widths.items()]


def _pictures(plan: Plan, facts: Mapping[str, Any], out: Path) -> list[str]:
    teacher = out / "teacher.png"
    shown = [_figure(teacher, f"teacher, {facts['calls']} calls")] if teacher.exists() else []
    for name, entry in facts["methods"].items():
        for n in plan.steps:
            file = out / name / f"seed-{plan.first_seed}" / f"samples-{n}.png"
            if entry[plan.measures.main][str(n)] is not None and file.exists():
                shown.append(_figure(file, f"{Entrant.of(name).title}, {steps_title(n)}"))
    return ['<div class="samples">', *shown, "</div>"]


def _figure(file: Path, caption: str) -> str:
    if not file.exists():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
