"""Commands that write where something is already: they say so, or leave it alone."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from tiny import fewstep, pictures, trained

REPLACED = ", which replaced what was there"


def twice(capsys, *words: object) -> None:
    """The first time a command writes, the second time it replaces."""
    for again in (False, True):
        outcome = fewstep(capsys, *words)
        assert outcome.code == 0, outcome.err
        assert (REPLACED in outcome.out) == again, outcome.out


def test_samples_that_are_replaced(tmp_path, capsys):
    for name in ("x.png", "x.npz", "folder"):
        twice(capsys, "sample", "digits-cd", "-n", 2, "--out", tmp_path / name)
    outcome = fewstep(capsys, "sample", "digits-cd", "--seeds", "7,8", "--out", tmp_path / "folder")
    assert REPLACED not in outcome.out  # other pictures beside those of before


def test_data_that_is_replaced(tmp_path, capsys):
    images = pictures(tmp_path / "images")
    words = ("data", "prepare", images, "--resolution", 8, "--out", tmp_path / "x.safetensors")
    twice(capsys, *words)
    twice(capsys, "data", "check", images, "--resolution", 8, "--out", tmp_path / "sheet.png")
    twice(capsys, "data", "check", "moons", "--out", tmp_path / "moons.png")


def test_a_contact_sheet_replaces_no_other_picture(tmp_path, capsys):
    out = tmp_path / "mine.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(out)
    before = out.read_bytes()
    for content in (before, b"no picture"):
        out.write_bytes(content)
        outcome = fewstep(capsys, "data", "check", "moons", "--out", out)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"{out} is no contact sheet of this command; choose another --out" in outcome.err
        assert out.read_bytes() == content


def test_a_run_and_a_model_are_no_data(tmp_path, capsys):
    images = pictures(tmp_path / "images")
    run = trained(tmp_path / "run", "edm", data=images, steps=1, batch=4)
    for folder, kind in ((run, "a run"), (run / "model", "a model")):
        for words in (
            ("data", "check", folder, "--out", tmp_path / "sheet.png"),
            ("train", "edm", "--data", folder, "--resolution", 16, "--out", tmp_path / "other"),
        ):
            outcome = fewstep(capsys, *words)
            assert (outcome.code, outcome.out) == (2, "")
            assert f"{folder} is {kind} and not data" in outcome.err
    assert not (tmp_path / "other").exists()


def test_evaluations_by_another_solver(tmp_path, capsys):
    out = tmp_path / "m.json"
    words = ("evaluate", "digits-edm", "--steps", 2, "--metrics", "swd", "--out", out)
    outcome = fewstep(capsys, *words)
    assert "3 calls" in outcome.out
    heun = json.loads(out.read_text())
    outcome = fewstep(capsys, *words, "--solver", "ddim")
    assert "2 calls" in outcome.out
    assert REPLACED in outcome.out
    ddim = json.loads(out.read_text())
    assert (ddim["solver"], "solver" in heun) == ("ddim", False)
    assert ddim["model"]["2"]["swd"] != heun["model"]["3"]["swd"]
    refused = fewstep(capsys, "evaluate", "digits-cd", "--solver", "ddim")
    assert refused.code == 2
    assert "means nothing to it" in refused.err
