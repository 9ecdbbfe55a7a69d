"""Comparing methods by the command line, on points: what is written, what is refused, resuming."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fewstep as library
from fewstep.cli import main
from fewstep.compare import Budget, Plan, Study
from fewstep.compare.entry import Entry
from fewstep.compare.plan import Entrant
from fewstep.data import positions
from fewstep.data.pairs import Paired, Pairs
from fewstep.errors import UsageError
from fewstep.evaluation import Protocol, named
from fewstep.recipes import METHODS, PLACES, STUDENTS, recipe
from fewstep.recipes.places import DIGITS, IMAGES, PLANE
from fewstep.training import feed
from survive import held_by_another, living, until
from tiny import Outcome, fewstep, pictures, rows, trained, tree

METHODS_HERE = ("ect", "pcm", "tcm", "ict")
"""Any number of steps; four only; two legs; a schedule that has no room in so few steps."""

STEPS = ("1", "2", "4")


@pytest.fixture(autouse=True)
def one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "Protocol", partial(Protocol, draws=1))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("compare") / "teacher", "toy-edm", steps=5)


def command(teacher: Path, out: Path, methods: str, budget: str, *more: object) -> list[str]:
    words = ["compare", "--data", "two-modes", "--teacher", teacher, "--methods", methods]
    words += ["--budget", budget, "--seeds", 1, "-n", 32, "--out", out, *more]
    return [str(word) for word in words]


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def study(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A finished comparison with two seeds, and the data that it saw, in order."""
    out, seen, own = tmp_path_factory.mktemp("study") / "out", [], feed.positions

    def noted(seed: int, step: int, *more: int) -> np.ndarray:
        found = own(seed, step, *more)
        seen.append((seed, step, tuple(found)))
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feed, "positions", noted)
        patched.setattr(named, "Protocol", partial(Protocol, draws=1))
        main(command(teacher, out, ",".join(METHODS_HERE), "1100samples", "--seeds", 2))
    return out, seen


# Budgets.


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("60s", "seconds", 60.0),
        (" 0.5s ", "seconds", 0.5),
        ("20000samples", "samples", 20_000.0),
        ("500 samples", "samples", 500.0),
    ],
)
def test_a_budget(text, kind, amount):
    assert Budget.of(text) == Budget(kind, amount)
    assert Budget.of(text).share(0.5) == Budget(kind, amount / 2)


@pytest.mark.parametrize("text", ["", "60", "s", "0s", "-1s", "1e9s", "60min", "60s!", "infs"])
def test_no_budget(text):
    with pytest.raises(UsageError, match="60s or 20000samples"):
        Budget.of(text)


# The report.


def test_the_reports_shape(study):
    told = read(study[0])
    assert list(told["methods"]) == list(METHODS_HERE)
    for name in ("ect", "pcm", "tcm"):
        entry = told["methods"][name]
        assert {"fd", "spread", "seconds", "samples", "nonfinite"} <= entry.keys()
        assert entry["seeds"] == 2
        assert "failed" not in entry
        for column in ("fd", "spread", "swd", "nn"):
            assert tuple(entry[column]) == STEPS
        for n in STEPS:
            served = name != "pcm" or n == "4"
            assert (entry["fd"][n] is not None) == (entry["spread"][n] is not None) == served
            assert not served or (entry["fd"][n] > 0 and entry["spread"][n] >= 0)
        assert entry["seconds"] > 0
        assert entry["nonfinite"] == 0
        assert len(entry["curves"]) == 2
        for curve in entry["curves"]:
            assert curve == sorted(curve)
            assert len(curve) >= 1
    # Whole batches of 512; TCM's halves are rounded apart.
    assert [told["methods"][name]["samples"] for name in ("ect", "pcm", "tcm")] == [1024] * 3
    assert told["floor"]["fd"] > 0
    assert told["teacher"]["fd"] > 0


def test_a_method_without_the_counts_asked_for_has_no_number(teacher, tmp_path, capsys):
    args = command(teacher, tmp_path, "progressive", "512samples", "--steps", "1,2")
    assert fewstep(capsys, *args).code == 0
    entry = read(tmp_path)["methods"]["progressive"]
    assert entry["fd"] == entry["spread"] == {"1": None, "2": None}
    assert entry["samples"] == 512
    assert "progressive distillation" in (tmp_path / "report.html").read_text()


def test_a_method_runs_beside_itself_with_other_options(teacher, tmp_path, capsys):
    args = command(teacher, tmp_path, "pcm,pcm+phases=2", "512samples")
    assert fewstep(capsys, *args).code == 0
    told = read(tmp_path)["methods"]
    assert [told["pcm"]["fd"][n] is None for n in STEPS] == [True, True, False]
    assert [told["pcm+phases=2"]["fd"][n] is None for n in STEPS] == [True, False, True]
    assert told["pcm+phases=2"]["settings"][0]["phases"] == 2
    assert ">PCM, phases 2</th>" in (tmp_path / "report.html").read_text()


def test_a_method_that_fails_is_told_and_the_others_go_on(study):
    out, _ = study
    entry = read(out)["methods"]["ict"]
    assert entry["seeds"] == 0
    assert len(entry["failed"]) == 2
    assert all("UsageError: Doubling" in reason for reason in entry["failed"])
    assert entry["fd"] == entry["spread"] == dict.fromkeys(STEPS)
    assert entry["seconds"] is entry["samples"] is entry["nonfinite"] is None
    assert "failed: UsageError: Doubling" in (out / "report.html").read_text()


def test_a_comparison_without_a_result_says_so(teacher, tmp_path, capsys):
    outcome = fewstep(capsys, *command(teacher, tmp_path, "ict", "1100samples"))
    assert outcome.code == 2
    assert "all 1 training(s) failed, the first by UsageError: Doubling" in outcome.err
    assert "Doubling" in (tmp_path / "report.html").read_text()


def test_no_pairs_are_made_for_who_does_not_learn_from_them(teacher, tmp_path, capsys):
    outcome = fewstep(capsys, *command(teacher, tmp_path, "dmd+regression=0", "1100samples"))
    assert outcome.code == 0
    assert not (tmp_path / "pairs").exists()
    assert read(tmp_path)["methods"]["dmd+regression=0"]["settings"][0]["pairs"] == ""


def test_the_page_needs_no_other_file(study):
    out, _ = study
    page = (out / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    grids = {"teacher.png", *(str(p.relative_to(out)) for p in out.glob("*/seed-1/samples-*.png"))}
    assert len(grids) == 1 + 3 + 1 + 3
    assert len(sources) == len(grids)
    for name in METHODS_HERE:
        assert METHODS[name].title in page
    for caption in ("ECT, 1 step", "ECT, 2 steps", "PCM, 4 steps", "TCM, 4 steps", "teacher, 35"):
        assert f"<figcaption>{caption}" in page
    assert "PCM, 1 step" not in page


def test_all_methods_see_the_same_data(study):
    _, seen = study
    # By seed: ECT, PCM, and TCM's two legs, which are half as long.
    sizes = Counter((seed, len(index)) for seed, _, index in seen)
    assert sizes == {(seed, 256): 4 + 4 + 2 + 2 for seed in (1, 2)}
    stream = {seed: tuple(positions(seed, 0, 1100, 20_000)) for seed in (1, 2)}
    for seed, step, index in seen:
        at = step * len(index)
        assert index == stream[seed][at : at + len(index)]
    assert stream[1] != stream[2]


@pytest.mark.parametrize("place", [p for p in PLACES if p.compares], ids=lambda p: p.compares)
def test_the_batch_of_every_method_is_among_the_settings_told(place):
    # Those of a leg have no accumulation, so a batch is an update's.
    named = [place.named(n) for n in STUDENTS if place.has(METHODS[n])]
    assert {recipe(name).train.accumulation for name in named} == {1}


def test_seeds_and_settings_are_the_studys(study, teacher):
    out, _ = study
    for seed in (1, 2):
        run = json.loads((out / "ect" / f"seed-{seed}" / "run" / "run.json").read_text())["run"]
        assert (run["train"]["seed"], run["train"]["steps"]) == (seed, 4)
        assert run["arguments"]["teacher"] == str(teacher)
    last = json.loads((out / "tcm" / "seed-1" / "run" / "run.json").read_text())["run"]
    assert last["arguments"]["teacher"] == str(out / "tcm" / "seed-1" / "first")
    legs = read(out)["methods"]["tcm"]["settings"]
    assert [leg["recipe"] for leg in legs] == ["toy-ect", "toy-tcm"]
    batches = {
        name: read(out)["methods"][name]["settings"][0]["train"]["batch"] for name in ("ect", "pcm")
    }
    assert batches == {"ect": 256, "pcm": 256}
    # The student's network is the teacher's, whatever the recipe has for new weights.
    for leg in legs:
        assert (leg["network"], leg["network.width"], leg["network.blocks"]) == ("mlp", 8, 1)
        assert "width" not in leg
    assert read(out)["methods"]["tcm"]["start"] == "ect"


def test_seconds_become_steps_once_for_all_seeds(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.compare.entry.CALIBRATION", 0.05)
    args = command(teacher, tmp_path, "ect", "0.05s", "--seeds", 2)
    assert fewstep(capsys, *args).code == 0
    rate = json.loads((tmp_path / "ect" / "ect.rate.json").read_text())["steps_per_second"]
    ran = [rows(tmp_path / "ect" / f"seed-{seed}" / "run")[-1]["step"] for seed in (1, 2)]
    assert ran == [max(1, round(0.05 * rate))] * 2


# Going on, and not.


def test_a_finished_study_is_not_trained_again(study, teacher, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(study[0], out)
    monkeypatch.setattr("fewstep.compare.entry.train", None)
    args = command(teacher, out, ",".join(METHODS_HERE), "1100samples", "--seeds", 2)
    outcome = fewstep(capsys, *args)
    assert outcome.code == 0
    # Only what failed is tried again.
    assert all("ict" in told or "Doubling" in told for told in outcome.err.splitlines())
    # The copy has another folder, and the retry may be of another day.
    own = {"command": None, "date": None}
    assert read(out) | own == read(study[0]) | own


@pytest.mark.parametrize(
    ("option", "value"),
    [("--budget", "1200samples"), ("--seeds", "3"), ("-n", "33"), ("--methods", "ect")],
)
def test_another_study_is_refused(option, value, study, teacher, capsys):
    out, _ = study
    args = command(teacher, out, ",".join(METHODS_HERE), "1100samples", "--seeds", 2)
    before = (out / "report.json").read_bytes()
    outcome = fewstep(capsys, *args, option, value)
    refused(outcome, "holds another study", "another --out")
    assert (out / "report.json").read_bytes() == before


def test_what_is_no_study_is_left_alone(teacher, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(fewstep(capsys, *command(teacher, tmp_path, "ect", "500samples")), "something else")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_study_in_use_stays_as_it_is(study, teacher, capsys):
    out, _ = study
    before = tree(out)
    with held_by_another(out):
        args = command(teacher, out, ",".join(METHODS_HERE), "1100samples", "--seeds", 2)
        refused(fewstep(capsys, *args), f"another process is comparing in {out}")
    assert tree(out) == before


def test_a_lock_alone_is_no_study(teacher, tmp_path, capsys):
    (tmp_path / ".lock").touch()
    args = command(teacher, tmp_path, "progressive", "512samples", "--steps", "1")
    assert fewstep(capsys, *args).code == 0


def test_pairs_are_guided_as_their_teacher_is(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.compare.study.PAIRS", 12)
    images = pictures(tmp_path / "images")
    edm = trained(tmp_path / "edm", "edm", data=images, steps=1, batch=4)
    methods = ("kd", "kd+guidance=2", "dmd+guidance=2", "ect")
    plan = Plan(
        data=str(images), methods=methods, budget=Budget("samples", 8), resolution=16, seeds=1
    )
    told = Study(plan)._pairs(library.load(edm, device="cpu"), tmp_path)["pairs"]
    assert told["n"] == 24
    for folder, guidance in (("pairs", 1.0), ("pairs-2", 2.0)):
        assert Pairs(tmp_path / folder).about.guidance == guidance
    protocol = SimpleNamespace(labelled=True)
    for method in methods[:3]:
        name = method.split("+")[0]
        entry = Entry(plan, Entrant.of(method), 1, str(edm), protocol, tmp_path / method / "seed")
        assert isinstance(entry.built(name, str(edm), 1).data, Paired)


HELD = """
import signal, sys, time
from functools import partial
from pathlib import Path
import torch
from fewstep.evaluation import Protocol, named
from fewstep.cli import main

torch.set_num_threads(1)
# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
where, least, place, here, sent, *command = sys.argv[1:]
place, here, sent = Path(place), Path(here), Path(sent)
own = Protocol.judge

def reached():
    if where == "judging":
        return (place / "samples-1.png").exists()
    log = place / "run" / "log.jsonl"
    return log.exists() and log.read_text().count("\\n") >= int(least)

def judge(self, *a):
    if not here.exists() and reached():
        here.touch()
        while not sent.exists():
            time.sleep(0.01)
    return own(self, *a)

Protocol.judge = judge
named.Protocol = partial(Protocol, draws=1)
main(command)
"""
"""A comparison that waits for a signal where it is meant to come, however slow a machine is."""


LONGER = ("ect,shortcut", "40000samples")


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(named, "Protocol", partial(Protocol, draws=1))
        main(command(teacher, out, *LONGER))
    return out


@pytest.mark.parametrize("where", ["training", "judging"])
def test_an_interrupted_study_ends_as_if_it_had_not_been(where, whole, teacher, tmp_path):
    out = tmp_path / "out"
    said, step = tmp_path / "said", rows(whole / "ect" / "seed-1" / "run")[-1]["step"]
    first = command(teacher, out, *LONGER)
    here, sent, place = tmp_path / "here", tmp_path / "sent", out / "ect" / "seed-1"
    held = [sys.executable, "-c", HELD, where, str(step // 3), *map(str, (place, here, sent))]
    with said.open("w") as told:
        child = subprocess.Popen([*held, *first], stdout=told, stderr=told)
    with living(child.pid):
        until(lambda: here.exists() or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        sent.touch()
        assert child.wait(60) == 130
    text = said.read_text()
    assert "interrupted" in text
    assert "Traceback" not in text
    if where == "training":
        assert "the same command resumes" in text
        assert 0 < rows(out / "ect" / "seed-1" / "run")[-1]["step"] < step
    assert not (out / "ect" / "seed-1" / "result.json").exists()
    main(first)
    one, other = read(whole)["methods"], read(out)["methods"]
    for name in ("ect", "shortcut"):
        for column in ("fd", "swd", "nn", "spread", "samples", "nonfinite"):
            assert one[name][column] == other[name][column], (name, column)
        curves = [[fd for _, fd in told[name]["curves"][0]] for told in (one, other)]
        assert curves[0] == curves[1]
        assert len(curves[0]) >= 6


# Refusals.


def refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2 and one line that says all of ``parts``."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("fewstep: ")
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    for part in parts:
        assert part in outcome.err


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--methods": "ect,pmc"}, ["unknown method 'pmc'", "did you mean 'pcm'?"]),
        ({"--methods": "ect,ect"}, ["once"]),
        ({"--methods": ""}, ["unknown method ''"]),
        ({"--methods": "ect+stages"}, ["METHOD+NAME=VALUE", "'ect+stages'"]),
        ({"--methods": "ect+stage=2"}, ["ect has no option 'stage'", "did you mean 'stages'?"]),
        ({"--methods": "ect+stages=two"}, ["--stages cannot be 'two'"]),
        ({"--methods": "ect+teacher=x"}, ["ect has no option 'teacher'"]),
        ({"--budget": "soon"}, ["--budget", "60s or 20000samples"]),
        ({"--seeds": "0"}, ["--seeds", "at least 1"]),
        ({"--first-seed": "-1"}, ["--first-seed"]),
        ({"-n": "1"}, ["-n at least 2"]),
        ({"--steps": "0"}, ["--steps"]),
        ({"--steps": "one"}, ["--steps", "'one'"]),
        ({"--teacher": None}, ["needs --teacher", "fewstep train toy-edm"]),
        ({"--teacher": "nowhere"}, ["no model 'nowhere'"]),
        ({"--teacher": "digits-edm"}, ["the model draws (1, 8, 8)", "two-modes is (2,)"]),
        ({"--data": "two-nodes"}, ["no data at 'two-nodes'", "did you mean 'two-modes'?"]),
        (
            {"--data": "digits", "--teacher": "digits-cd"},
            ["a cd model", "fewstep train digits-edm"],
        ),
    ],
)
def test_bad_input(change, parts, teacher, tmp_path, capsys):
    given = dict(
        zip(*[iter(command(teacher, tmp_path / "out", "ect", "500samples")[1:])] * 2, strict=True)
    )
    given |= change
    words = [word for pair in given.items() if pair[1] is not None for word in pair]
    refused(fewstep(capsys, "compare", *words), *parts)
    assert not (tmp_path / "out").exists()


def test_images_need_their_resolution_and_held_out_ones(tmp_path, capsys):
    images = pictures(tmp_path / "images")
    edm = trained(tmp_path / "edm", "edm", data=images, steps=1, batch=4)
    words = [
        "compare",
        "--data",
        images,
        "--teacher",
        edm,
        "--methods",
        "ect",
        "--out",
        tmp_path / "out",
    ]
    refused(fewstep(capsys, *words), "--resolution")
    refused(fewstep(capsys, *words, "--resolution", 16), "--held-out")


def test_where_a_study_runs():
    few = {"methods": ["cd"], "budget": Budget("samples", 1)}
    for data, place in (("digits", DIGITS), ("moons", PLANE), ("./images", IMAGES)):
        assert Plan(data=data, **few).place is place
    for place in PLACES[3:5]:
        assert Plan(data=place.data.data, **few).place is place
    with pytest.raises(UsageError, match="imagenet-64 has no recipes to compare"):
        Plan(data="imagenet-64", **few)
