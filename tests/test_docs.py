"""What the pages promise: their Python runs, their commands parse, their files exist."""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest

from fewstep.cli import main
from fewstep.cli.evaluate import evaluate
from fewstep.cli.export import export
from fewstep.cli.import_ import import_
from fewstep.cli.sample import sample
from fewstep.cli.search import search
from fewstep.recipes import METHODS, STUDENTS, Recipe, recipe
from fewstep.recipes.places import DIGITS
from fewstep.training.config import TrainConfig

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def test_the_readme_begins_with_its_two_commands():
    train, test = blocks("README.md", "")[:2]
    for command in (train, test):
        assert command.count("\n") == 1
        assert not re.search(r"(^|&& )cd |git clone", command)
    assert train.rstrip().endswith("fewstep train digits-cd")
    assert "-m pytest" in test


@pytest.mark.parametrize("code", blocks("docs/tutorial.md", "python"))
def test_the_tutorials_python_runs(code):
    exec(compile(code, "tutorial", "exec"), {})


@pytest.mark.parametrize("code", blocks("docs/editing.md", "python"))
def test_the_python_of_editing_runs(code):
    exec(compile(code, "editing", "exec"), {})


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_pictures_and_pages_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_method_has_its_row_and_its_files():
    table = (ROOT / "docs" / "methods.md").read_text()
    shared = {"__init__", "base"}
    for file in (ROOT / "src" / "fewstep" / "objectives").glob("*.py"):
        assert file.stem in shared or f"`objectives/{file.name}`" in table, file.name
    for name in set(re.findall(r"`(test_\w+\.py)`", table)):
        assert list((ROOT / "tests").rglob(name)), name


def test_figures_of_the_digits_are_those_of_the_comparison():
    page = (ROOT / "docs" / "compare.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if " ± " in line]
    found = {title: [cell.split()[0] for cell in cells[:3]] for title, *cells in rows}
    methods = (ROOT / "docs" / "methods.md").read_text()
    for name in STUDENTS:
        calls, fd = re.findall(r"[\d.]+", DIGITS.setting(METHODS[name]).result)
        if name == "cd":  # of a run of its own: docs/results.md
            continue
        assert fd == dict(zip("124", found[METHODS[name].title], strict=True))[calls], name
        assert re.search(rf"`digits-{name}`.*\(compare.md#on-the-digits\)[^|]* {fd}\b", methods), (
            name
        )


def options(verb: str) -> set[str]:
    """The options of a verb, or of a recipe."""
    verbs = {"sample": sample, "evaluate": evaluate, "search": search, "import": import_}
    verbs |= {"export": export}
    if verb in verbs:
        names = {*inspect.signature(verbs[verb]).parameters}
        names |= {"as"} if "reading" in names else set()
    else:
        train = {f"train.{f.name}" for f in dataclasses.fields(TrainConfig)}
        names = {*recipe(verb).arguments(), *train, "out", "fresh", "dry_run"}
    return {f"--{name}".replace("_", "-") for name in names}


def test_the_options_of_other_code_exist_here():
    """Whatever stands in the second column of the tables."""
    page = (ROOT / "docs" / "coming-from.md").read_text()
    known = set().union(*map(options, ["edm", "cd", "ct", "ect", "progressive"]))
    sections = re.findall(r"^### (Training|Sampling)[^\n]*$(.*?)(?=^##)", page, re.M | re.S)
    assert [name for name, _ in sections] == ["Training", "Sampling", "Training", "Sampling"]
    checked = 0
    for name, text in sections:
        here = known if name == "Training" else options("sample") | options("evaluate")
        for line in re.findall(r"^\| .*", text, re.M):
            for option in re.findall(r"(?<![\w-])--(?:no-)?([a-z][\w.-]*)", line.split(" | ")[1]):
                assert f"--{option}" in here, line
                checked += 1
    assert checked > 60


def commands(page: str) -> list[str]:
    """The lines of a page that are commands."""
    text = (ROOT / page).read_text().replace("\\\n", "")
    return re.findall(r"^fewstep .*", text, re.M)


@pytest.mark.parametrize("line", commands("docs/coming-from.md"))
def test_the_launch_lines_are_understood(line, monkeypatch):
    program, verb, *words = shlex.split(line)
    assert program == "fewstep"
    if verb != "train":
        flags = {word for word in words if word.startswith("--")}
        assert flags <= options(verb)
        return
    seen = []
    monkeypatch.setattr(Recipe, "check", lambda self: None)
    monkeypatch.setattr("fewstep.cli.prepared.prepared", lambda recipe, *_, **__: recipe)
    monkeypatch.setattr("fewstep.training.train.train", lambda *args, **_: seen.append(args))
    main([verb, *words])
    ((made, out),) = seen
    assert str(out) == f"runs/{made.name}" or "--out" in words


def test_the_report_of_the_digits_has_the_numbers_of_its_page():
    report = (ROOT / "docs" / "compare-digits.html").read_text()
    assert '<meta name="viewport"' in report
    assert "fewstep compare --data digits" in report
    shown = {
        title: [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", cells)]
        for title, cells in re.findall(r'<th scope="row">(.*?)</th>(.*)</tr>', report)
    }
    page = (ROOT / "docs" / "compare.md").read_text()
    rows = [
        line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\|.* ± ", line)
    ]
    assert len(rows) == len(shown) - 2 + 1  # LCM's
    for title, *cells in rows:
        if title in {"sCT", "sCD"}:  # of a later day than the report, as the page says
            assert "The rows of sCT and sCD are of 2026-12-01" in page
            continue
        if title == "LCM":  # which the report does not have
            assert "The row of LCM is of the same day" in page
            continue
        _, one, two, four, _, nn, seconds, samples, *_ = shown[title]
        assert cells[:3] == [one, two, four], title
        assert float(cells[3]) == pytest.approx(float(nn), abs=0.0051)
        assert cells[4:6] == [seconds, samples], title
    for title in ("teacher", "floor"):
        assert f"| {title} | {shown[title][0]} | {shown[title][1]} |".replace("  ", " ") in page


def test_method_files_are_short():
    for file in (ROOT / "src" / "fewstep" / "objectives").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 200, file.name
