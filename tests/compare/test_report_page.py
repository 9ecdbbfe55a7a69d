"""The HTML page of a comparison, of results that are written by hand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli import main
from fewstep.compare import Budget, Plan
from fewstep.compare.report import write_report
from fewstep.compare.table import clear_best
from fewstep.version import __version__

COMMON = {
    "calls": 35,
    "teacher": {"fd": 0.331, "swd": 0.064},
    "floor": {"fd": 0.248, "swd": 0.047},
    "parameters": 1_000_000,
    "device": "cpu",
    "threads": 1,
    "torch": "2.0",
}

METHODS = ("cd", "tcm", "dmd2+adversarial=0", "pcm")
TITLES = ["CD", "TCM", "DMD2, adversarial 0", "PCM"]


def result(fd: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """A result.json with distances for 1, 2 and 4 steps."""
    by_steps = dict(zip("124", fd, strict=True))
    costs = {"seconds": 40.0, "samples": 2000, "nonfinite": 0, "spikes": 0}
    keys = ("fd", "swd", "nn", "images_per_second")
    made = {"date": "2026-03-01", "fewstep": "0.1.0"}
    curve = {"curve": [[20.0, 0.9], [40.0, 0.5]], "settings": [{"recipe": "<one>"}]}
    return {**dict.fromkeys(keys, by_steps), **costs, **curve, **made, **more}


def plan(seeds: int, **changed: Any) -> Plan:
    given = {"data": "digits", "methods": METHODS, "budget": Budget.of("40s"), "seeds": seeds}
    return Plan(**{**given, **changed})


def written(out: Path, of: Plan, results: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The page of a plan with these results of each method, by seed."""
    for name, rows in results.items():
        for k, row in enumerate(rows):
            place = out / name / f"seed-{of.first_seed + k}"
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(row))
    write_report(of, COMMON, out)
    return (out / "report.html").read_text()


RESULTS = {
    "cd": [result([0.30, 0.36, 0.40]), result([0.32, 0.37, 0.41])],
    "tcm": [result([0.35, 0.36, 0.39]), result([0.37, 0.38, 0.42])],
    "dmd2+adversarial=0": [result([0.44, None, None]), result([0.45, None, None])],
    "pcm": [result([None, None, 0.43]), {"failed": "Diverged: <at> 7"}],
}


@pytest.fixture
def two(tmp_path: Path) -> str:
    """The page of two seeds."""
    return written(tmp_path, plan(2), RESULTS)


@pytest.fixture
def one(tmp_path: Path) -> str:
    """The page of one seed."""
    return written(tmp_path, plan(1), {name: rows[:1] for name, rows in RESULTS.items()})


class Tree(HTMLParser):
    """Each element of a page with its ancestors, its attributes and its own text."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str):
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.all: list[dict[str, Any]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        one = {"tag": tag, "text": "", "within": [*self.open], **dict(attrs)}
        self.all.append(one)
        if tag not in self.VOID:
            self.open.append(one)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append({"tag": tag, "text": "", "within": [*self.open], **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1]["text"] += data

    def find(self, tag: str, **attributes: str) -> list[dict[str, Any]]:
        named = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            one
            for one in self.all
            if one["tag"] == tag and all(one.get(k) == v for k, v in named.items())
        ]


def rows(page: str) -> dict[str, dict[str, str]]:
    """The cells of the table by the names of row and column; a wide cell is in each column."""
    tree = Tree(page)
    heads = [one["text"] for one in tree.find("th", scope="col")]
    table: dict[str, dict[str, str]] = {}
    for row in tree.find("tr")[1:]:
        cells = [one for one in tree.all if one["within"] and one["within"][-1] is row]
        wide = [c["text"] for c in cells for _ in range(int(c.get("colspan", 1)))]
        table[wide[0]] = dict(zip(heads, wide, strict=True))
    return table


def test_the_page_fits_a_phone(two):
    tree = Tree(two)
    (viewport,) = tree.find("meta", name="viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    (table,) = tree.find("table")
    scroller = table["within"][-1]
    assert scroller["class"] == "scroller"
    assert scroller["tabindex"] == "0"
    style = re.sub(r"\s+", " ", tree.find("style")[0]["text"])
    assert re.search(r"\.scroller { [^}]*overflow-x: auto", style)
    assert re.search(r"body { [^}]*overflow-wrap: anywhere", style)
    assert re.search(r"figure img { [^}]*width: 100%", style)


def test_a_phone_shows_the_narrow_charts(two):
    tree = Tree(two)
    widths = [(one["class"], one["viewbox"].split()[2]) for one in tree.find("svg")]
    assert widths == [("wide", "760"), ("narrow", "360")] * 2
    style = re.sub(r"\s+", " ", tree.find("style")[0]["text"])
    screen, phone = style.split("@media (max-width: 720px)")
    assert "svg.narrow { display: none }" in screen
    assert "svg.wide { display: none } svg.narrow { display: block" in phone


def test_names_are_equal_in_table_charts_and_settings(two):
    tree = Tree(two)
    heads = [one["text"] for one in tree.find("th", scope="row")]
    assert heads == [*TITLES, "teacher", "floor"]
    for drawing in tree.find("svg"):
        own = [
            one
            for one in tree.all
            if any(one["within"][k] is drawing for k in range(len(one["within"])))
        ]
        texts = [one["text"] for one in own if one["tag"] == "text"]
        assert set(heads) <= set(texts)
        assert [one["text"] for one in own if one["tag"] == "title"] == TITLES
    assert [one["text"] for one in tree.find("summary")] == TITLES
    assert rows(two)["TCM"]["starts from"] == "ECT"
    captions = {one["text"].rsplit(", ", 1)[0] for one in tree.find("figcaption")}
    assert captions <= {*heads}


def test_the_calls_of_the_teacher_have_a_column(two):
    table = rows(two)
    calls = {name: cells["calls"] for name, cells in table.items()}
    assert calls == dict(zip(table, ["1, 2, 4", "1, 2, 4", "1", "4", "35", ""], strict=True))
    assert {table["teacher"][f"fd, {n}"] for n in ("1 step", "2 steps", "4 steps")} == {"0.331"}


def test_numbers_have_the_spread_of_their_seeds(two):
    table = rows(two)
    assert table["CD"]["fd, 1 step"] == "0.310 ± 0.010"
    assert table["DMD2, adversarial 0"]["fd, 2 steps"] == "-"
    # One of two trainings failed.
    assert table["PCM"]["fd, 4 steps"] == "0.430"
    assert [table[title]["seeds"] for title in TITLES] == ["2 of 2"] * 3 + ["1 of 2"]


def test_one_seed_has_no_spread(one, tmp_path):
    assert "±" not in one
    assert 'class="best"' not in one
    assert "once" in one
    table = rows(one)
    assert [table[title]["fd, 1 step"] for title in TITLES] == ["0.300", "0.350", "0.440", "-"]
    told = json.loads((tmp_path / "report.json").read_text())["methods"]["cd"]
    assert told["spread"] == dict.fromkeys("124")
    assert told["fd"]["1"] == 0.3


def test_a_number_is_bold_where_it_is_clearly_the_best(two):
    # 0.310 and 0.360 with spreads of 0.010 each; 0.365 ± 0.005 and 0.370 ± 0.010; 0.405 twice.
    assert re.findall(r'class="best">([^<]*)', two) == ["0.310 ± 0.010"]


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ({"a": (0.3, 0.01), "b": (0.33, 0.01)}, "a"),
        ({"a": (0.3, 0.01), "b": (0.315, 0.01)}, None),
        ({"b": (0.5, 0.0), "c": (0.9, 0.1), "a": (0.3, 0.15)}, "a"),
        ({"b": (0.44, 0.0), "c": (0.9, 0.1), "a": (0.3, 0.15)}, None),
        ({"a": (0.3, 0.01)}, None),
        ({"a": (0.3, None), "b": (0.9, 0.01)}, None),
        ({"a": (0.3, 0.01), "b": (0.9, None)}, None),
        ({"a": (0.3, 0.01), "b": (None, None)}, None),
        ({"a": (float("nan"), float("nan")), "b": (0.3, 0.0), "c": (0.4, 0.0)}, "b"),
        ({}, None),
    ],
)
def test_the_clearly_best(entries, best):
    methods = {n: {"fd": {"2": fd}, "spread": {"2": s}} for n, (fd, s) in entries.items()}
    assert clear_best(methods, 2) == best


def test_the_page_says_that_a_budget_is_whole_updates(two):
    assert "40 seconds of training, rounded to whole updates" in two
    assert "The column samples says what was seen." in two


def test_the_page_says_what_was_said_before_a_training(tmp_path):
    notes = {"notes": ["the warm-up of <500> steps does not end"]}
    results = {"cd": [result([0.30, 0.36, 0.40], **notes)] * 2, "pcm": RESULTS["pcm"]}
    page = written(tmp_path, plan(2, methods=("cd", "pcm")), results)
    assert page.count("CD: the warm-up of &lt;500&gt; steps does not end") == 1
    assert (
        json.loads((tmp_path / "report.json").read_text())["methods"]["cd"]["notes"]
        == (notes["notes"])
    )


def test_the_page_says_command_version_and_date(two, tmp_path):
    assert "fewstep 0.1.0 and torch 2.0" in two
    assert "2026-03-01" in two
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["fewstep"], told["date"]) == ("0.1.0", "2026-03-01")
    assert told["command"] == plan(2).command(tmp_path)


def test_the_date_is_that_of_the_last_result(tmp_path):
    last = result([0.3, 0.3, 0.3], date="2026-03-09", fewstep="0.2.0")
    page = written(tmp_path, plan(2), {"cd": [last, RESULTS["cd"][1]]})
    assert "on 2026-03-09 (UTC)" in page
    assert "fewstep 0.1.0, 0.2.0 and" in page


def test_results_without_a_date_have_that_of_the_page(tmp_path):
    bare = result([0.3, 0.3, 0.3])
    del bare["date"], bare["fewstep"]
    page = written(tmp_path, plan(1), {"cd": [bare]})
    assert re.search(r"on 20\d\d-\d\d-\d\d \(UTC\)", page)
    assert f"fewstep {__version__} and" in page


def test_what_users_write_is_escaped(tmp_path):
    odd = './it\'s <b>&"x"</b> --'
    of = plan(1, data=odd, held_out="<i>", resolution=16, teacher="a & b", methods=("cd", "ect"))
    failure = {**{"failed": "E: <script>"}, "date": "<u>", "fewstep": "<s>"}
    page = written(tmp_path, of, {"cd": [result([0.3, 0.3, 0.3])], "ect": [failure]})
    tree = Tree(page)
    assert {"b", "i", "script", "one", "at", "u", "s"}.isdisjoint({one["tag"] for one in tree.all})
    (command,) = tree.find("pre", class_="command")
    assert command["text"] == of.command(tmp_path)
    assert odd in shlex.split(command["text"])
    assert any("E: <script>" in one["text"] for one in tree.find("td"))


@pytest.mark.parametrize(
    "of",
    [
        plan(2),
        plan(
            1, data="./pictures of <me>", held_out="b c", resolution=16, teacher="t", first_seed=0
        ),
        plan(1, data="./pictures", held_out=0.1, background="#c0c0c0"),
        plan(3, budget=Budget.of("2000000samples"), steps=(1, 8), n=32),
        plan(3, budget=Budget.of("0.25s"), methods=("ect",)),
    ],
)
def test_the_command_makes_the_same_comparison(of, monkeypatch, tmp_path):
    seen = []

    class Noted:
        def __init__(self, given: Plan):
            self.plan = given

        def run(self, out: Path) -> Path:
            seen.append((self.plan.summary(), out))
            return out / "report.html"

    monkeypatch.setattr("fewstep.compare.Study", Noted)
    program, *words = shlex.split(of.command(tmp_path / "it's"))
    assert program == "fewstep"
    main(words)
    assert seen == [(of.summary(), tmp_path / "it's")]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("60s", "60 seconds"),
        ("0.25s", "0.25 seconds"),
        ("2000000samples", "2,000,000 samples"),
        ("512samples", "512 samples"),
    ],
)
def test_a_budget_in_words(text, title):
    assert Budget.of(text).text == text
    assert Budget.of(text).title == title
