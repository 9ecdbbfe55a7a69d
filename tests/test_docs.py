"""What the pages promise: their Python runs, their commands parse, their files exist."""

import re
from pathlib import Path

import pytest

from fewstep.recipes import METHODS, STUDENTS
from fewstep.recipes.places import DIGITS

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
    assert len(rows) == len(shown) - 2
    for title, *cells in rows:
        _, one, two, four, _, nn, seconds, samples, *_ = shown[title]
        assert cells[:3] == [one, two, four], title
        assert float(cells[3]) == pytest.approx(float(nn), abs=0.0051)
        assert cells[4:6] == [seconds, samples], title
    for title in ("teacher", "floor"):
        assert f"| {title} | {shown[title][0]} | {shown[title][1]} |".replace("  ", " ") in page


def test_method_files_are_short():
    for file in (ROOT / "src" / "fewstep" / "objectives").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 200, file.name
