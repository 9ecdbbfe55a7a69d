"""Data and teachers of a resumed run: the same ones may have moved, others are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.core import UsageError
from fewstep.data import Arrays
from fewstep.model import load
from fewstep.training.train import dry, train
from own_networks import POINTS, Net, made, run_of
from tiny import WithPairs, build, pictures, rows, trained


class Known:
    """Points with a fingerprint and notes."""

    def __init__(self, print_: str | None = "a" * 40, notes: tuple[str, ...] = ()) -> None:
        self.shape, self.labels, self.image, self.spec = (2,), 0, False, POINTS.spec
        self.print, self.notes = print_, notes

    def __len__(self) -> int:
        return 300

    def fingerprint(self) -> str | None:
        return self.print

    def batch(self, indices):
        return POINTS.batch(indices)


def of(data, steps=4, arguments=None, **settings):
    return replace(run_of(made(Net), data=data, steps=steps, **settings), arguments=arguments or {})


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def test_fingerprint_and_notes_are_recorded_and_said(tmp_path, capsys):
    notes = ("2 images were passed over: a.txt, b.txt", "orientation was applied to 3 images")
    run = of(Known("f" * 40, notes))
    assert "2 images were passed over" in dry(run, tmp_path)
    train(run, tmp_path / "run")
    said = capsys.readouterr().err
    assert f"\n{notes[0]}\n{notes[1]}\n" in said
    assert record(tmp_path / "run")["data"] == {"fingerprint": "f" * 40, "notes": [*notes]}


def test_wrapped_data_speaks_for_itself(tmp_path):
    train(of(WithPairs(Known("c" * 40, ("one note",)))), tmp_path / "run")
    assert record(tmp_path / "run")["data"] == {"fingerprint": "c" * 40, "notes": ["one note"]}


def test_changed_data_is_refused_unless_allowed(tmp_path):
    train(of(Known("a" * 40)), tmp_path / "run")
    with pytest.raises(
        UsageError,
        match=r"the data is not what the run began with.*was aaaaaaaaaaaa, now bbbbbbbbbbbb.*"
        r"--train\.allow-changed-data",
    ):
        train(of(Known("b" * 40), 6), tmp_path / "run")
    train(of(Known("b" * 40), 6, allow_changed_data=True), tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    # What it goes on with is now the run's data.
    train(of(Known("b" * 40), 7), tmp_path / "run")
    with pytest.raises(UsageError, match="was bbbb"):
        train(of(Known("a" * 40), 8), tmp_path / "run")


@pytest.mark.parametrize(("before", "now"), [(None, "a" * 40), ("a" * 40, None)])
def test_data_without_a_fingerprint_is_taken(before, now, tmp_path):
    train(of(Known(before)), tmp_path / "run")
    train(of(Known(now), 6), tmp_path / "run")


def test_another_spelling_and_place_of_the_data(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)

    def go(path: str, print_: str | None, steps: int, out: str) -> None:
        train(of(Known(print_), steps, {"data": path}), tmp_path / out)

    for out, print_ in (("known", "a" * 40), ("unknown", None)):
        go("photos", print_, 4, out)
        go("./photos/", print_, 5, out)
        go(str(tmp_path / "other/../photos"), print_, 6, out)
        monkeypatch.chdir(tmp_path / "other")
        go("../photos", print_, 7, out)
        with pytest.raises(UsageError, match=r"data: was '\.\./photos', now '\.'"):
            go(".", print_ and "b" * 40, 8, out)
        monkeypatch.chdir(tmp_path)
        assert record(tmp_path / out)["run"]["arguments"] == {"data": "../photos"}
    (tmp_path / "photos").rename(tmp_path / "moved")
    go("moved", "a" * 40, 9, "known")
    with pytest.raises(UsageError, match=r"data: was '\.\./photos', now 'moved'"):
        go("moved", None, 9, "unknown")


def test_a_data_set_s_name_is_no_place(tmp_path):
    train(of(Known(None), arguments={"data": "rings"}), tmp_path / "run")
    with pytest.raises(UsageError, match="data: was 'rings', now 'two-modes'"):
        train(of(Known(None), 6, {"data": "two-modes"}), tmp_path / "run")


def test_records_of_older_versions_resume(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    train(of(Known(), 4, {"data": "photos"}), tmp_path / "run")
    old = record(tmp_path / "run")
    for name in ("data", "places", "models"):
        del old[name]
    del old["run"]["train"]["keep_best"], old["run"]["train"]["allow_changed_data"]
    (tmp_path / "run/run.json").write_text(json.dumps(old))
    train(of(Known(), 6, {"data": "./photos"}), tmp_path / "run")


def test_a_moved_teacher_of_the_same_weights(tmp_path):
    teacher = trained(tmp_path / "teacher", "toy-edm", steps=2)
    train(build("toy-cd", teacher=teacher, steps=2), tmp_path / "cd")
    assert record(tmp_path / "cd")["models"]["teacher"]
    shutil.copytree(teacher / "model", tmp_path / "alone")
    teacher.rename(tmp_path / "elsewhere")
    for steps, place in ((3, "elsewhere"), (4, "elsewhere/model"), (5, "alone")):
        train(build("toy-cd", teacher=tmp_path / place, steps=steps), tmp_path / "cd")
    other = trained(tmp_path / "other", "toy-edm", steps=3)
    with pytest.raises(UsageError, match=r"teacher: was .*/alone', now .*/other'"):
        train(build("toy-cd", teacher=other, steps=6), tmp_path / "cd")


def test_another_teacher_in_the_same_place_is_refused(tmp_path):
    teacher = trained(tmp_path / "teacher", "toy-edm", steps=2)
    train(build("toy-cd", teacher=teacher, steps=2), tmp_path / "cd")
    shutil.rmtree(teacher)
    trained(teacher, "toy-edm", steps=3)
    with pytest.raises(UsageError, match=r"weights of its step\.teacher"):
        train(build("toy-cd", teacher=teacher, steps=3), tmp_path / "cd")


def test_a_moved_folder_of_images(tmp_path):
    images = pictures(tmp_path / "images")
    train(build("edm", data=images, steps=1), tmp_path / "run")
    train(build("edm", data=f"{tmp_path}/./images/../images", steps=2), tmp_path / "run")
    assert load(tmp_path / "run", device="cpu").sample(2).shape == torch.Size([2, 3, 16, 16])


def test_notes_of_wrong_kinds_do_no_harm(tmp_path):
    data = Arrays(torch.zeros(8, 2))
    train(of(data), tmp_path / "run")
    assert record(tmp_path / "run")["data"]["notes"] == []
