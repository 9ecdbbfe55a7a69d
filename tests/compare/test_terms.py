"""The terms of a comparison: what all methods are given, and what a reader is told of failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewstep.compare import Budget, Plan, Study
from fewstep.compare.entry import Entry
from fewstep.compare.plan import Entrant
from fewstep.compare.report import write_report
from fewstep.data.pairs import Pairs
from fewstep.errors import UsageError
from fewstep.evaluation import named_protocol
from fewstep.model import load
from tiny import pictures, trained


@pytest.fixture(scope="module")
def toy_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("toys") / "toy-edm", "toy-edm", steps=2)


def study(**changed: object) -> Study:
    given = {"data": "two-modes", "methods": ["ct"], "budget": Budget("samples", 512), "n": 20}
    return Study(Plan(**{**given, "seeds": 1, "steps": (1,), **changed}))


def test_methods_are_told_of_labels_as_the_teacher_is(tmp_path):
    images = pictures(tmp_path / "labelled")
    # The teacher learnt from the same kind of pictures without labels.
    bare = pictures(tmp_path / "unlabelled", classes=0)
    teacher = trained(tmp_path / "edm", "edm", data=bare, steps=2)
    held_out = str(pictures(tmp_path / "held-out", 6, seed=1))
    made = load(teacher, device="cpu").contract.data
    entry = Entry(
        study(data=str(images), resolution=16, teacher=str(teacher), held_out=held_out).plan,
        Entrant.of("ct"),
        1,
        str(teacher),
        named_protocol(str(images), held_out, made, 6),
        tmp_path / "study",
    )
    assert entry.built("ct", str(teacher), 1).data.labels == 0


def test_threads_are_those_of_the_trainings(toy_teacher, tmp_path):
    torch.set_num_threads(2)
    page = study(teacher=str(toy_teacher)).run(tmp_path)
    assert json.loads(page.with_name("report.json").read_text())["threads"] == 1


def test_another_study_is_refused_by_what_differs(toy_teacher, tmp_path):
    study(teacher=str(toy_teacher)).run(tmp_path / "study")
    with pytest.raises(UsageError, match="n: was 20, now 30"):
        study(teacher=str(toy_teacher), n=30).run(tmp_path / "study")
    with pytest.raises(UsageError) as refused:
        study(
            teacher=str(toy_teacher),
            budget=Budget("seconds", 2),
            methods=["ct", "cd"],
            held_out=0.1,
        ).run(tmp_path / "study")
    for part in (
        "methods: was ct, now ct,cd",
        "budget: was 512samples, now 2s",
        "held_out: was not given, now 0.1",
    ):
        assert part in str(refused.value), refused.value
    trained(toy_teacher, "toy-edm", steps=3)
    with pytest.raises(UsageError, match="weights: was"):
        study(teacher=str(toy_teacher)).run(tmp_path / "study")


def test_a_damaged_study_is_refused(toy_teacher, tmp_path):
    (tmp_path / "study.json").write_text('{"data": "two-')
    with pytest.raises(UsageError, match=r"study\.json is damaged; choose another --out"):
        study(teacher=str(toy_teacher)).run(tmp_path)


def test_all_start_from_a_diffusion_model(toy_teacher, tmp_path):
    student = trained(tmp_path / "cd", "toy-cd", teacher=toy_teacher, steps=2)
    with pytest.raises(UsageError, match="a cd model; all methods start from a diffusion model"):
        study(teacher=str(student)).run(tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_pairs_are_made_once_for_all_that_learn_from_them(toy_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.compare.study.PAIRS", 8)
    methods = ("kd", "dmd", "dmd+regression=0.5")
    page = study(teacher=str(toy_teacher), methods=methods).run(tmp_path)
    told = json.loads(page.with_name("report.json").read_text())
    assert told["pairs"]["n"] == len(Pairs(tmp_path / "pairs")) == 8
    assert "8 pairs of noise" in page.read_text()
    assert not any("failed" in one for one in told["methods"].values())
    weights = {name: told["methods"][name]["settings"][0]["regression"] for name in methods[1:]}
    assert weights == {"dmd": 0.25, "dmd+regression=0.5": 0.5}
    assert "DMD, regression 0.5</th>" in page.read_text()


@pytest.mark.parametrize(
    ("entrant", "message"),
    [
        ("dmd3", "unknown method 'dmd3'.*dmd"),
        ("dmd+regression", "METHOD[+]NAME=VALUE, got 'dmd[+]regression'"),
        ("dmd+regress=0", "no option 'regress'.*regression"),
        ("dmd+pairs=there", "no option 'pairs'"),
        ("dmd+regression=much", "regression cannot be 'much'"),
        ("dmd2+features=others", "features cannot be 'others'"),
    ],
)
def test_options_that_a_method_has_not(entrant, message):
    with pytest.raises(UsageError, match=message):
        study(methods=[entrant])


def test_the_table_says_how_many_trainings_it_shows(toy_teacher, tmp_path):
    two = study(teacher=str(toy_teacher), seeds=2)
    page = two.run(tmp_path)
    assert "<td>2 of 2</td>" in page.read_text()
    (tmp_path / "ct" / "seed-2" / "result.json").write_text('{"failed": "Diverged: so"}')
    write_report(two.plan, json.loads((tmp_path / "teacher.json").read_text()), tmp_path)
    assert "<td>1 of 2</td>" in page.read_text()
    two.run(tmp_path)  # what failed is tried again
    assert "<td>2 of 2</td>" in page.read_text()
