"""A share of own data, or other data, that no training sees: train, resume, evaluate, compare."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.compare import entry
from fewstep.data import ImageFolder, Part, prepare, split, write_arrays
from fewstep.data.pairs import Paired
from fewstep.errors import UsageError
from fewstep.evaluation import named_protocol, training_samples
from fewstep.model import Model, load
from fewstep.recipes import rebuild, recipe
from fewstep.recipes.origins import origin, seen_before
from fewstep.recipes.records import own_data
from fewstep.training.delivery import contract
from fewstep.training.train import train
from tiny import UNET, fewstep, pictures, rows, settings, trained

SIZES = ("--resolution", 16, "--channels", 8, "--multipliers", 1, "--blocks", 1, "--attention", 8)
QUICK = ("--train.batch", 8, "--train.sample-every", 0, "--train.log-every", 1, "--train.warmup", 0)
FEW = (*SIZES, *QUICK, "--train.steps", 2)


@pytest.fixture(autouse=True)
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations on the way take few network calls."""
    monkeypatch.setattr("fewstep.evaluation.report.TEACHER_STEPS", 2)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures, others like them, and a run that held a tenth of them out; no test changes them."""
    root = tmp_path_factory.mktemp("own")
    images, others = pictures(root / "images", 40), pictures(root / "others", 8, seed=1)
    options = {"held_out": 0.1}
    run = trained(root / "run", "edm", data=images, steps=2, options=options)
    whole = trained(root / "whole", "edm", data=images, steps=2)
    return {"images": images, "others": others, "run": run, "whole": whole}


def built(data: Path, held_out: object, **options: object):
    few = settings(steps=2)
    given = {"data": data, "resolution": 16, "held_out": held_out, **options}
    return recipe("edm", **UNET, **given, train=few).build()


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


# Training.


@pytest.mark.parametrize("given", [0.1, "0.1"])
def test_training_sees_the_other_samples_only(places, given, monkeypatch, tmp_path):
    run = built(places["images"], given)
    assert (len(run.data), len(run.held_out), run.arguments["held_out"]) == (36, 4, 0.1)
    asked: set[int] = set()
    whole = run.data.whole
    batch = whole.batch
    monkeypatch.setattr(whole, "batch", lambda index: asked.update(index) or batch(index))
    train(run, tmp_path / "run")
    assert asked <= {*run.data.index}
    assert asked.isdisjoint(run.held_out.index)
    assert len(asked) > 16


def test_the_split_is_recorded_and_said(places, tmp_path, capsys):
    out = tmp_path / "run"
    args = ("train", "edm", "--data", places["images"], *FEW, "--held-out", 0.1, "--out", out)
    outcome = fewstep(capsys, *args)
    assert outcome.code == 0, outcome.err
    assert "edm: 36 samples of" in outcome.err
    assert "held out: 4 samples, which training does not see" in outcome.err
    told = record(out)
    assert told["run"]["arguments"]["held_out"] == 0.1
    assert told["held_out"]["samples"] == 4
    before = told["held_out"]
    # Resumed, and made again from the record, it is the same.
    assert fewstep(capsys, *args, "--train.steps", 3).code == 0
    assert record(out)["held_out"] == before
    again = ("train", "--again", out, "--out", tmp_path / "again")
    assert fewstep(capsys, *again).code == 0
    assert record(tmp_path / "again")["held_out"] == before
    expected = built(places["images"], 0.1).held_out.index
    assert np.array_equal(rebuild(out).build().held_out.index, expected)


def test_another_share_or_changed_data_is_refused(places, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(places["images"], images)
    out = tmp_path / "run"
    args = ("train", "edm", "--data", images, *FEW, "--out", out)
    assert fewstep(capsys, *args, "--held-out", 0.1).code == 0
    before = record(out)
    for other in (("--held-out", 0.2), (), ("--held-out", places["others"])):
        outcome = fewstep(capsys, *args, *other, "--train.steps", 4)
        assert outcome.code == 2
        assert "held_out: was 0.1, now" in outcome.err
    shutil.copy(places["others"] / "class0" / "00.png", images / "class0" / "zz.png")
    outcome = fewstep(capsys, *args, "--held-out", 0.1, "--train.steps", 4)
    assert outcome.code == 2
    assert "the number of samples: 40 before, 41 now" in outcome.err
    assert "which samples are held out: not as before" in outcome.err
    assert record(out) == before


def test_other_data_may_move_but_not_change(places, tmp_path, capsys):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(places["others"], other)
    args = ("train", "edm", "--data", places["images"], *FEW, "--out", out)
    assert fewstep(capsys, *args, "--held-out", other).code == 0
    assert record(out)["held_out"]["samples"] == 8
    other.rename(tmp_path / "moved")
    assert fewstep(capsys, *args, "--held-out", tmp_path / "moved", "--train.steps", 3).code == 0
    (tmp_path / "moved" / "class0" / "00.png").unlink()
    outcome = fewstep(capsys, *args, "--held-out", tmp_path / "moved", "--train.steps", 4)
    assert outcome.code == 2
    assert "held-out data: the number of samples: 8 before, 7 now" in outcome.err


def test_evaluations_on_the_way(places, tmp_path, capsys):
    out = tmp_path / "run"
    args = ("train", "edm", "--data", places["images"], *FEW, "--held-out", 0.1, "--out", out)
    outcome = fewstep(capsys, *args, "--train.evaluate-every", 1, "--train.keep-best", "fd")
    assert outcome.code == 0, outcome.err
    found = [row["eval/fd/3"] for row in rows(out) if "eval/fd/3" in row]
    assert len(found) == 2
    assert (out / "best" / "model.safetensors").exists()
    # The last one is what evaluate says of the finished model, in the first of its draws.
    model, of = load(out, device="cpu"), origin(str(out), None, None)
    protocol = named_protocol(of.data, of.held_out, model.contract.data, 2000, recorded=of.recorded)
    assert len(protocol.held_out) == 4
    assert replace(protocol, draws=1).judge(model, 2)["fd"] == pytest.approx(found[-1], rel=1e-4)


def test_arrays_and_pairs(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "x.safetensors"
    write_arrays(file, rng.normal(size=(50, 2)).astype(np.float32))
    few = settings(steps=2)
    net = {"network": "mlp", "width": 8, "blocks": 1}
    run = recipe("edm", **net, data=file, held_out=0.2, train=few).build()
    assert (len(run.data), len(run.held_out)) == (40, 10)
    assert {name.split("/")[0] for name in run.watch(_delivered(run))} == {"fd", "swd", "nn"}


def _delivered(run):
    return Model(run.objective.deliver(run.objective.student), contract(run))


def test_pairs_lie_beside_the_training_part(places, tmp_path, capsys):
    teacher = str(places["run"])
    folder = tmp_path / "pairs"
    assert (
        fewstep(capsys, "data", "pairs", teacher, "-n", 4, "--steps", 1, "--out", folder).code == 0
    )
    given = {"data": places["images"], "resolution": 16, "held_out": 0.1, "teacher": teacher}
    run = recipe("kd", **given, pairs=str(folder), train=settings(steps=2)).build()
    assert isinstance(run.data, Paired)
    assert isinstance(run.data.data, Part)
    assert len(run.data.data) == 36
    assert run.watch is not None


# What is refused, before anything is written.


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("{images}", "40 of the 40 held-out samples lie in the training data as well"),
        ("{images}/class0", "20 of the 20 held-out samples lie in the training data as well"),
        ("0.01", "holds out 0, and at least 2 are needed; give a share of 0.05 or more"),
        ("0.6", "above 0 and at most 0.5, got 0.6"),
        ("nowhere", "no held-out data at 'nowhere'; give a share"),
        ("{few}", "the classes differ"),
    ],
)
def test_refused(places, tmp_path, capsys, held_out, message):
    few = pictures(tmp_path / "few", 6, classes=3, seed=9)
    text = held_out.format(images=places["images"], few=few)
    out = tmp_path / "out"
    args = ("train", "edm", "--data", places["images"], *FEW, "--held-out", text, "--out", out)
    outcome = fewstep(capsys, *args)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not out.exists()


def test_some_samples_in_both_are_counted(places, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(places["others"], other)
    for k in range(2):
        shutil.copy(places["images"] / "class0" / "00.png", other / "class0" / f"copy{k}.png")
    args = ("train", "edm", "--data", places["images"], *FEW, "--held-out", other)
    outcome = fewstep(capsys, *args, "--out", tmp_path / "out")
    assert outcome.code == 0
    note = "2 of the 10 held-out samples lie in the training data as well"
    assert note in outcome.err
    assert record(tmp_path / "out")["held_out"]["notes"] == [note]
    assert note in fewstep(capsys, "evaluate", tmp_path / "out", "--steps", 1).out


def test_data_with_held_out_samples_of_its_own(capsys, tmp_path):
    outcome = fewstep(capsys, "train", "toy-edm", "--held-out", 0.1, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "two-modes has held-out data of its own; leave out --held-out" in outcome.err


# Evaluation.


def test_evaluate_needs_no_names(places, capsys, tmp_path):
    out = tmp_path / "m.json"
    outcome = fewstep(capsys, "evaluate", places["run"], "--steps", 1, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "4 samples against 4 held-out" in outcome.out
    named = tmp_path / "n.json"
    args = ("--data", places["images"], "--held-out", 0.1, "--steps", 1, "--out", named)
    assert fewstep(capsys, "evaluate", places["run"], *args).code == 0
    floors = [json.loads(file.read_text())["floor"] for file in (out, named)]
    assert floors[0] == floors[1]


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("run", ("--held-out", 0.2), "with --held-out 0.1, so that it has seen samples"),
        ("whole", ("--held-out", 0.1), "was trained on all of"),
        ("whole", (), "--held-out FOLDER or FILE, or the share that its training held out"),
        ("run", ("--held-out", "{images}"), "40 of the 40 held-out samples lie in the training"),
    ],
)
def test_what_a_model_has_seen_is_not_held_out(places, capsys, run, options, message):
    options = [str(one).format(images=places["images"]) for one in options]
    outcome = fewstep(capsys, "evaluate", places[run], "--steps", 1, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_data_that_changed_since_is_refused(places, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(places["images"], images)
    run = trained(tmp_path / "run", "edm", data=images, steps=2, options={"held_out": 0.1})
    assert fewstep(capsys, "evaluate", run, "--steps", 1).code == 0
    shutil.copy(places["others"] / "class0" / "00.png", images / "class0" / "zz.png")
    outcome = fewstep(capsys, "evaluate", run, "--steps", 1)
    assert outcome.code == 2
    assert "is not what the model was trained on (the number of samples: 40 before" in outcome.err
    assert fewstep(capsys, "evaluate", run, "--steps", 1, "--held-out", places["others"]).code == 0


def test_paths_are_those_of_the_training(places, tmp_path, monkeypatch, capsys):
    shutil.copytree(places["images"], tmp_path / "images")
    shutil.copytree(places["others"], tmp_path / "others")
    monkeypatch.chdir(tmp_path)
    args = ("train", "edm", "--data", "images", *FEW, "--held-out", "others", "--out", "run")
    assert fewstep(capsys, *args).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    own = own_data("../run")
    assert (own.data, own.held_out) == (str(tmp_path / "images"), str(tmp_path / "others"))
    assert "8 held-out" in fewstep(capsys, "evaluate", "../run", "--steps", 1).out


@pytest.mark.parametrize("kind", ["arrays", "prepared"])
def test_files(places, tmp_path, capsys, kind):
    """Data in a file takes a share, another file, or a folder as held-out data."""

    def made(name: str, source: Path) -> Path:
        file = tmp_path / f"{name}.safetensors"
        if kind == "prepared":
            prepare(source, file, resolution=16)
        else:
            batch = ImageFolder(source, 16).batch(range(len(ImageFolder(source, 16))))
            write_arrays(file, batch.x0.numpy(), batch.cond["label"].numpy(), image=True)
        return file

    file, other = made("train", places["images"]), made("other", places["others"])
    evaluate = ("evaluate", places["whole"], "--data", file, "--steps", 1)
    outcome = fewstep(capsys, *evaluate)
    assert outcome.code == 2
    assert "--held-out FOLDER or FILE, or the share" in outcome.err
    for held_out, n in ((0.1, 4), (other, 8), (places["others"], 8)):
        outcome = fewstep(capsys, *evaluate, "--held-out", held_out)
        assert outcome.code == 0, outcome.err
        assert f"against {n} held-out" in outcome.out
    out = tmp_path / "run"
    args = ("train", "edm", "--data", file, *SIZES[2:], *QUICK, "--train.steps", 2, "--out", out)
    assert fewstep(capsys, *args, "--held-out", places["others"]).code == 0
    assert "8 held-out" in fewstep(capsys, "evaluate", out, "--steps", 1).out


# Other verbs.


def test_search_and_doctor_leave_the_share_out(places, tmp_path, capsys, monkeypatch):
    seen = []

    def noted(*args, **given):
        found = training_samples(*args, **given)
        seen.append(len(found[0]))
        return found

    monkeypatch.setattr("fewstep.evaluation.training_samples", noted)
    assert fewstep(capsys, "doctor", places["run"], "-n", 8).code in {0, 1}
    student = trained(
        tmp_path / "cd",
        "cd",
        data=places["images"],
        teacher=places["run"],
        steps=2,
        options={"held_out": 0.1},
    )
    outcome = fewstep(capsys, "search", student, "--evaluations", 4, "-n", 8)
    assert outcome.code == 0, outcome.err
    assert json.loads((student / "model" / "search.json").read_text())["held_out"] == 0.1
    outcome = fewstep(capsys, "search", student, "--evaluations", 4, "--held-out", 0.2)
    assert outcome.code == 2
    assert "was trained with --held-out 0.1" in outcome.err
    assert seen == [36, 36]


def test_compare_trains_on_the_same_part(places, tmp_path, capsys, monkeypatch):
    lengths = []

    def noted(run, folder):
        lengths.append((len(run.data), [*run.held_out.index]))
        return train(run, folder)

    monkeypatch.setattr(entry, "train", noted)
    monkeypatch.setattr("fewstep.compare.study.TEACHER_STEPS", 2)
    args = ("compare", "--data", places["images"], "--resolution", 16, "--methods", "ct")
    args += ("--budget", "64samples", "--seeds", 1, "--steps", 1, "--held-out", 0.1)
    outcome = fewstep(capsys, *args, "--teacher", places["run"], "--out", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    assert "has seen samples" not in outcome.err
    assert lengths == [(36, [*built(places["images"], 0.1).held_out.index])]
    assert json.loads((tmp_path / "a" / "study.json").read_text())["held_out"] == 0.1
    outcome = fewstep(capsys, *args, "--teacher", places["whole"], "--out", tmp_path / "b")
    assert f"{places['whole']} was trained on all of" in outcome.err


def test_a_teacher_that_saw_the_share_is_told(places):
    images, whole = str(places["images"]), str(places["whole"])
    assert "so that it has seen samples which are held out now" in str(
        seen_before(whole, images, 0.1)
    )
    for model, held_out in ((str(places["run"]), 0.1), (whole, str(places["others"]))):
        assert seen_before(model, images, held_out) is None
    assert seen_before(str(places["run"]), images, 0.2) is not None
    assert seen_before("digits-edm", images, 0.1) is None
    given = {"data": images, "resolution": 16, "held_out": 0.1, "teacher": whole}
    run = recipe("cd", **given, train=settings(steps=2)).build()
    assert run.note.splitlines()[1].startswith(f"{whole} was trained on all of")


def test_a_teacher_of_other_data_is_named(places):
    images, others, teacher = (str(places[name]) for name in ("images", "others", "run"))
    given = {"resolution": 16, "teacher": teacher, "train": settings(steps=2)}
    note = recipe("cd", **given, data=others).build().note
    assert note.splitlines()[0].endswith(f", which learned from {images} and not from {others}")
    note = recipe("cd", **given, data=f"{images}/../images").build().note
    assert note.splitlines()[0] == f"teacher: {teacher}/model"


def test_a_report_needs_held_out_data(places, tmp_path):
    net = {"network": "ddpmpp", **UNET, "resolution": 16, "teacher": "none"}
    plain = recipe("digits-edm", **net, data=places["images"], train=settings(steps=2)).build()
    assert plain.finish is None
    assert "ends without a table" in plain.note
    given = {**net, "data": places["images"], "held_out": 0.1}
    run = recipe("digits-edm", **given, train=settings(steps=2)).build()
    assert run.finish is not None
    assert "table" not in run.note


def test_split_in_python(places):
    data = built(places["images"], None).data
    train, held_out = split(data, 0.1)
    assert np.array_equal(held_out.index, built(places["images"], 0.1).held_out.index)
    assert len(train) == 36
    with pytest.raises(UsageError, match="held_out is a name or a path"):
        recipe("edm", held_out=[0.1])
