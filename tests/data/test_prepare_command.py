"""fewstep data prepare: what it prints, writes and refuses."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from fewstep.data import Prepared
from image_files import encoded, pixels, shard, stored
from tiny import fewstep

WITHOUT_TORCH = """
import sys
from fewstep.cli import main
for args in (
    ["data"], ["data", "prepare", "--help"], ["data", "check", "--help"], ["data", "prepar"],
    ["data", "prepare"], ["data", "check"],
):
    try:
        main(args)
    except SystemExit:
        pass
assert "torch" not in sys.modules
"""


def test_help_imports_no_torch():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, capture_output=True)


def test_what_it_prints(tmp_path, capsys):
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(pixels(9, 9, 3)) for i in range(7)}
    bad = {f"a/bad{i}.png": b"" for i in range(7)}
    path, out = stored(tmp_path, "folder", files | bad), tmp_path / "new" / "x.safetensors"
    command = ("data", "prepare", path, "--out", out, "--resolution", 4)
    outcome = fewstep(capsys, *command)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"fewstep: a/bad0.png in {path} is broken")
    assert not out.exists()
    outcome = fewstep(capsys, *command, "--on-error", "skip", "--workers", 2)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"wrote 7 image(s) of 3x4x4 in 2 classes to {out}"
    assert lines[1] == "skipped 7, all of which the file lists:"
    assert [line.split()[0] for line in lines[2:7]] == [f"a/bad{i}.png" for i in range(5)]
    about = Prepared(out, verify=True).about
    assert lines[7:] == [f"sha256 of the {k}: {v}" for k, v in about.sha256.items()]
    assert len(about.skipped) == 7


def test_several_shards_and_no_labels(tmp_path, capsys):
    paths = [shard(tmp_path / f"{i}.tar", {"0.png": encoded(pixels(4, 4))}) for i in range(2)]
    out = tmp_path / "x.safetensors"
    outcome = fewstep(capsys, "data", "prepare", *paths, "--out", out, "--resolution", 4)
    assert outcome.out.startswith(f"wrote 2 image(s) of 1x4x4 without labels to {out}\n")


def test_simple_mistakes(capsys):
    assert "data prepare SOURCE" in fewstep(capsys, "data").out
    outcome = fewstep(capsys, "data", "prepar")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown command 'data prepar'; did you mean 'prepare'" in outcome.err


@pytest.mark.parametrize("form", ["folder", "shard"])
def test_a_bar_on_a_terminal(tmp_path, form, monkeypatch):
    files = {f"{i}.png": encoded(pixels(4, 4)) for i in range(3)}
    path = stored(tmp_path, "folder", files)
    if form == "shard":
        path = shard(tmp_path / "0.tar", files)
    ours, theirs = pty.openpty()
    monkeypatch.setattr(sys, "stderr", os.fdopen(theirs, "w"))
    from fewstep.data import prepare

    prepare(path, tmp_path / "x.safetensors", resolution=4)
    sys.stderr.close()
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "preparing" in shown
    assert ("3/3" if form == "folder" else "3/?") in shown
    assert "images/s" in shown
