"""Processes decode the images of a folder: the same bytes, errors in order, and no half file."""

from __future__ import annotations

import os
import signal
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.core import UsageError
from fewstep.data import prepare
from fewstep.data.formats import is_hidden, suffix_of
from fewstep.data.reading import CHUNK, Decoder
from tiny import pictures

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def folder(tmp_path) -> Path:
    return pictures(tmp_path / "images", n=2 * CHUNK + 3, side=8)


@forks
def test_processes_decode_a_folder(folder, tmp_path, monkeypatch):
    prepare(folder, tmp_path / "0.safetensors", resolution=4)
    own, whole = os.getpid(), Decoder.__call__

    def elsewhere(self, item):
        assert os.getpid() != own
        return whole(self, item)

    monkeypatch.setattr(Decoder, "__call__", elsewhere)
    prepare(folder, tmp_path / "2.safetensors", resolution=4, workers=2)
    both = [(tmp_path / f"{n}.safetensors").read_bytes() for n in (0, 2)]
    assert both[0] == both[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_image_is_named(workers, folder, tmp_path):
    names = sorted(p.relative_to(folder) for p in folder.rglob("*.png"))
    for name in (names[CHUNK + 1], names[CHUNK + 5]):
        (folder / name).write_bytes(b"no image")
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match=f"{names[CHUNK + 1]} in .* is broken"):
        prepare(folder, out, resolution=4, workers=workers)
    data = prepare(folder, out, resolution=4, workers=workers, on_error="skip")
    assert [name for name, _ in data.about.skipped] == [
        str(names[CHUNK + 1]),
        str(names[CHUNK + 5]),
    ]


@forks
def test_a_killed_process_ends_in_a_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Decoder, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match="want of memory; take fewer --workers"):
        prepare(folder, out, resolution=4, workers=2)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


def test_pixels_that_need_no_change_are_those_of_the_file(tmp_path):
    (tmp_path / "images").mkdir()
    image = Image.frombytes("RGB", (8, 8), bytes(range(192)))
    image.save(tmp_path / "images" / "a.png")
    data = prepare(tmp_path / "images", tmp_path / "out.safetensors", resolution=8)
    x = (data.batch([0]).x0[0] + 1) * 127.5
    assert bytes(x.round().byte().permute(1, 2, 0).flatten().tolist()) == bytes(range(192))


@given(st.lists(st.sampled_from(["a", ".", "..", "/", "__MACOSX", ".png", "b.PNG"]), min_size=1))
def test_names_are_read_as_paths_are(parts):
    name = "".join(parts)
    path = PurePosixPath(name)
    assert is_hidden(name) == any(part.startswith((".", "__MACOSX")) for part in path.parts)
    if name.rpartition("/")[2] not in {"", "."}:
        assert suffix_of(name) == path.suffix.lower()
