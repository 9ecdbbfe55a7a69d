"""The same data has the same fingerprint wherever it lies; other data has another, and why."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fewstep.data import (
    Arrays,
    ImageFolder,
    Prepared,
    differences,
    digits,
    fingerprint,
    prepare,
    toy,
    write_arrays,
)
from image_files import encoded, pixels, stored

FILES = {f"{name}/{i}.png": encoded(pixels(4, 4)) for name in ("cat", "dog") for i in range(3)}


def of(path) -> dict:
    found = fingerprint(ImageFolder(path, 4))
    assert json.loads(json.dumps(found)) == found
    return found


def test_another_place_and_another_spelling_are_the_same(tmp_path, monkeypatch):
    path = stored(tmp_path, "folder", FILES)
    first = of(path)
    monkeypatch.chdir(tmp_path)
    assert differences(first, of("data/../data/")) == ()
    shutil.move(path, tmp_path / "moved")
    assert differences(first, of(tmp_path / "moved")) == ()
    for top in ("", "set/"):
        zipped = stored(tmp_path, "zip", {f"{top}{name}": one for name, one in FILES.items()})
        assert differences(first, of(zipped)) == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cat/9.png": encoded(pixels(4, 4))}, "the number of samples: 6 before, 7 now"),
        ({"cat/0.png": encoded(pixels(9, 9))}, "the sizes of the images' files: not as before"),
        ({"cat/0.png": None, "cat/00.png": "cat/0.png"}, "the names of the images: not as before"),
        ({"cat": "puma"}, "the classes: cat, dog before, dog, puma now"),
        (
            {"dataset.json": json.dumps({"labels": [[k, 0] for k in FILES]}).encode()},
            "the classes: cat, dog before, 0 now",
        ),
    ],
)
def test_changed_data_is_told(tmp_path, change, told):
    first = of(stored(tmp_path, "folder", FILES))
    shutil.rmtree(tmp_path / "data")
    files = dict(FILES)
    if "cat" in change:
        files = {name.replace("cat/", "puma/"): one for name, one in files.items()}
        change = {}
    for name, one in change.items():
        files[name] = FILES[one] if isinstance(one, str) else one
    files = {name: one for name, one in files.items() if one is not None}
    assert told in differences(first, of(stored(tmp_path, "folder", files)))


def test_other_labels_are_told(tmp_path):
    sums = []
    for k in range(2):
        labels = {"labels": [[name, (i + k) % 2] for i, name in enumerate(FILES)]}
        files = FILES | {"dataset.json": json.dumps(labels).encode()}
        sums.append(of(stored(tmp_path, "folder", files)))
        shutil.rmtree(tmp_path / "data")
    assert differences(*sums) == ("the labels: not as before",)


def test_a_prepared_file_by_its_sums(tmp_path):
    path = stored(tmp_path, "folder", FILES)
    first = fingerprint(prepare(path, tmp_path / "a.safetensors", resolution=4))
    shutil.move(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert differences(first, fingerprint(Prepared(tmp_path / "b.safetensors"))) == ()
    # Pixels of the same size in a file of the same size.
    (path / "cat/0.png").write_bytes(encoded(pixels(4, 4)))
    other = fingerprint(prepare(path, tmp_path / "a.safetensors", resolution=4))
    assert differences(first, other) == ("the pixels: not as before",)
    kinds = differences(first, of(path))
    assert kinds == ("the kind of data: Prepared before, ImageFolder now",)


def test_arrays_by_their_rows(tmp_path):
    x = np.random.default_rng(0).standard_normal((3000, 2)).astype(np.float32)
    first = fingerprint(Arrays(x, np.arange(3000) % 2))
    assert differences(first, fingerprint(Arrays(x.copy(), np.arange(3000) % 2))) == ()
    labels = fingerprint(Arrays(x, (np.arange(3000) + 1) % 2))
    assert differences(first, labels) == ("the values: not as before",)
    assert differences(first, fingerprint(Arrays(x + 1, np.arange(3000) % 2))) != ()
    assert differences(fingerprint(toy("moons")), fingerprint(toy("moons", seed=1))) != ()
    assert differences(fingerprint(digits("train")), fingerprint(digits("train"))) == ()
    files = [fingerprint(write_arrays(tmp_path / f"{k}.safetensors", x + k)) for k in (0, 0, 1)]
    assert differences(*files[:2]) == ()
    assert differences(*files[1:]) == ("the values: not as before",)


def test_a_users_own(tmp_path):
    class Own:
        shape, labels, image, fingerprint = (2,), 0, False, "a"

        def __len__(self) -> int:
            return 3

        def batch(self, indices):
            return Arrays(np.zeros((3, 2))).batch(indices)

    first = fingerprint(Own())
    Own.fingerprint = lambda self: "b"
    assert differences(first, fingerprint(Own())) == ("the values: not as before",)
