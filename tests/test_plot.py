"""fewstep plot: walks from noise to samples, strips, paths, films and curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli import main
from fewstep.errors import UsageError
from fewstep.model import load
from fewstep.plotting import animation, paths, strip, walk
from teachers import points

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(("name", "steps", "calls"), [("digits-edm", 4, 7), ("digits-cd", 2, 2)])
def test_a_walk_goes_from_the_noise_to_the_samples(name, steps, calls):
    model = load(name)
    walked = walk(model, name, 3, steps=steps, seed=5)
    noise = model.noise([(5, i) for i in range(3)])(0)
    assert walked.calls == calls
    assert len(walked.levels) == len(walked.states) == steps + 1
    assert walked.levels[0] == 80.0
    assert walked.levels[-1] == 0.0
    assert [*walked.levels] == sorted(walked.levels, reverse=True)
    torch.testing.assert_close(walked.states[0], noise * 80 / (1 + 80**2) ** 0.5)
    assert torch.equal(walked.states[-1], model.sample(3, steps=steps, seed=5, batch=3))
    assert walked.answers is not None
    assert torch.equal(walked.answers[-1].clamp(-1, 1), walked.states[-1])


def test_walks_of_two_models_begin_at_the_same_noise():
    walks = [walk(load(name), name, 2, seed=3) for name in ("digits-edm", "digits-cd")]
    assert torch.equal(walks[0].states[0], walks[1].states[0])


def test_a_strip_has_a_column_for_each_state(tmp_path):
    walks = [walk(load("digits-edm"), "t", 2, steps=3), walk(load("digits-cd"), "s", 2, steps=1)]
    assert strip(walks, tmp_path / "s.png") == 4
    with Image.open(tmp_path / "s.png") as image:
        picture = np.asarray(image)[..., 0].astype(int)
    side, gap = 48, 3
    rows = [picture[i * (side + gap) : i * (side + gap) + side] for i in range(6)]
    cells = [[row[:, j * (side + gap) : j * (side + gap) + side] for j in range(4)] for row in rows]
    # A teacher's states and answers, and a student's states, whose two middle places are empty.
    for first in (0, 3):
        assert np.array_equal(cells[first][0], cells[first + 2][0])
        assert not np.array_equal(cells[first][1], cells[first + 1][1])
        assert cells[first + 2][1].std() == cells[first + 2][2].std() == 0
    own = load("digits-cd").sample(2, steps=1, batch=2)
    shown = cells[2][3][:: side // 8, :: side // 8]
    assert np.abs(shown - (own[0, 0].numpy() * 127.5 + 128)).max() <= 1


def test_paths_and_films_of_the_plane(tmp_path):
    model = points()
    walks = [walk(model, "teacher", 12, steps=5), walk(model, "two steps", 12, steps=2)]
    paths(walks, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert "<!-- teacher: 9 network calls -->" in text
    assert "<!-- two steps: 3 network calls -->" in text
    animation(walks, tmp_path / "p.gif")
    with Image.open(tmp_path / "p.gif") as film:
        assert film.n_frames >= 6  # frames without a step are one longer frame
        first = np.asarray(film.convert("RGB")).astype(int)
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(first - last).max() > 50
    with pytest.raises(UsageError, match="paths are drawn of models of the plane"):
        paths([walk(load("digits-cd"), "digits", 2)], tmp_path / "q.png")
    assert not (tmp_path / "q.png").exists()


def run_folder(path: Path, losses: dict[int, float], **further: float) -> Path:
    path.mkdir()
    (path / "run.json").write_text("{}")
    rows = [{"step": step, "loss": loss, **further} for step, loss in losses.items()]
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
    return path


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    code = 0
    try:
        main(["plot", *map(str, args)])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_curves_of_two_runs(tmp_path, capsys):
    a = run_folder(tmp_path / "a", {1: 1.0, 2: 0.1, 3: 0.01}, **{"eval/fd": 0.5})
    b = run_folder(tmp_path / "b", {1: -1.0, 3: 0.5})
    code, said = command(capsys, a, b, "--out", tmp_path / "c.svg")
    assert (code, said) == (0, f"loss, fd of 2 run(s) in {tmp_path / 'c.svg'}\n")
    text = (tmp_path / "c.svg").read_text()
    assert text.count("<!-- loss -->") == text.count("<!-- fd -->") == 1
    assert "<!-- a -->" in text
    assert "<!-- b -->" in text
    code, said = command(capsys, a, "--out", tmp_path / "c.svg")
    assert "which replaced what was there" in said


def test_a_strip_by_the_command(tmp_path, capsys):
    out = tmp_path / "s.png"
    code, said = command(capsys, "digits-edm", "digits-cd", "--steps", "2,1", "-n", 1, "--out", out)
    assert code == 0
    assert said.splitlines()[0] == f"3 columns, from noise to samples, in {out}"
    assert "digits-cd: 1 network call(s); noise levels 80, 0" in said
    with Image.open(out) as image:
        assert image.size == (3 * 51 - 3, 3 * 51 - 3)


def test_mistakes(tmp_path, capsys):
    a = run_folder(tmp_path / "a", {1: 1.0})
    empty = run_folder(tmp_path / "empty", {})
    folder = tmp_path / "folder"
    folder.mkdir()
    out = tmp_path / "x.png"
    for args, words in (
        ((a, "digits-cd", "--out", out), "is a run, whose curves are drawn"),
        ((a, "--out", tmp_path / "x.gif"), "must end in .png, .svg or .pdf"),
        ((empty, "--out", out), "has no loss yet"),
        ((folder, "--out", out), "is neither a model folder nor a run"),
        (("digits-cd", "--out", tmp_path / "x.svg"), "a strip of images is a .png picture"),
        (("digits-cd", "--out", tmp_path / "x.jpg"), "must end in .png, .svg, .pdf or .gif"),
        (("digits-cd", "digits-edm", "--steps", "1,2,3", "--out", out), "gives 3 numbers for 2"),
        (("digits-cd", "-n", 0, "--out", out), "-n must be at least 1, got 0"),
        (("digits-cd", "--label", 11, "--out", out), "label"),
    ):
        code, said = command(capsys, *args)
        assert (code, words in said) == (2, True), said
        assert "Traceback" not in said
    assert [*tmp_path.glob("x.*")] == []
