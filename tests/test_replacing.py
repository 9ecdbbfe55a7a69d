"""Writing a model or an export never deletes what is something else."""

from __future__ import annotations

import re

import pytest

import fewstep as library
from fewstep.errors import UsageError
from tiny import fewstep, tree


@pytest.fixture
def model():
    return library.load("digits-cd", device="cpu")


def test_a_model_replaces_an_earlier_model_alone(model, tmp_path):
    folder = tmp_path / "model"
    model.save(folder, samples=0)
    model.save(folder)  # an earlier one, without its picture
    (folder / "notes.txt").write_text("mine")
    before = tree(folder)
    with pytest.raises(UsageError, match="'notes\\.txt', which writing here would delete"):
        model.save(folder)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["README.md", "samples.png"])
def test_a_file_of_a_models_name_is_no_model(name, model, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=re.escape(name)):
        model.save(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_is_filled_and_a_file_is_kept(model, tmp_path):
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty", samples=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file; choose"):
        model.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_export_deletes_no_model_and_no_photo(model, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"mine")
    own = model.save(tmp_path / "model", samples=0)
    for place in (photos, own):
        before = tree(place)
        args = ("export", own, "--to", "torch", "--out", place)
        outcome = fewstep(capsys, *args)
        assert outcome.code == 2
        assert "would delete" in outcome.err
        assert tree(place) == before
