"""A share that is held out: which samples it takes, and what a part of a data set is."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch

from fewstep.core import UsageError
from fewstep.data import Arrays, ImageFolder, Part, fingerprint, prepare, split, write_arrays
from fewstep.data.parts import share_of
from tiny import pictures


def points(n: int, label: np.ndarray | None = None) -> Arrays:
    return Arrays(np.arange(2 * n, dtype=np.float32).reshape(n, 2), label)


def held(data, share: float) -> set[str]:
    """The names of the held-out images."""
    return {data.names[i] for i in split(data, share)[1].index}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.29, 1 / 3, 0.5])
@pytest.mark.parametrize("n", [40, 101])
def test_two_parts_make_the_whole(n, share):
    data = points(n)
    train, other = split(data, share)
    assert len(other) == int(n * share + 0.5) or (share == 0.5 and len(other) == n // 2)
    assert sorted([*train.index, *other.index]) == [*range(n)]
    assert torch.equal(train.batch([0, -1]).x0, data.batch(train.index[[0, -1]]).x0)
    assert len(other.batch(range(len(other))).x0) == len(other)


def test_the_share_looks_random_and_is_the_same_each_time():
    index = split(points(1000), 0.1)[1].index
    assert np.array_equal(index, split(points(1000), 0.1)[1].index)
    # Of 100 random numbers below 1000 the mean is 500 with a standard deviation of 27.
    assert abs(index.mean() - 499.5) < 110
    assert len({*np.diff(index)}) > 10


def test_the_split_is_that_of_earlier_runs():
    """Another one would let a resumed run see what it held out before."""
    assert split(points(40), 0.1)[1].index.tolist() == [3, 9, 16, 38]


def test_every_class_gives_its_share():
    rng = np.random.default_rng(0)
    label = rng.choice(4, 400, p=[0.6, 0.3, 0.05, 0.05])
    data = points(400, label)
    _, other = split(data, 0.1)
    counts, taken = np.bincount(label), np.bincount(label[other.index], minlength=4)
    assert len(other) == 40
    assert all(abs(taken - counts * 0.1) < 1)


@pytest.mark.parametrize(("each", "classes"), [(1, 50), (2, 20), (3, 20), (5, 10)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_small_classes_keep_at_least_half_of_their_samples(each, classes, share):
    label = np.arange(each * classes) % classes
    data = points(len(label), label)
    if each == 1:
        with pytest.raises(UsageError, match="holds out 0, and at least 2 are needed"):
            split(data, share)
        return
    train, other = split(data, share)
    taken, kept = (np.bincount(label[part.index], minlength=classes) for part in (other, train))
    assert (taken <= kept).all()
    assert len(other) >= min(int(share * len(label)), classes * (each // 2))


def test_new_samples_move_few_of_the_others(tmp_path):
    before = ImageFolder(pictures(tmp_path / "a", 60, side=4), 4)
    old = held(before, 0.2)
    moved = []
    for name in ("class0/000.png", "class1/zzz.png", "class1/15b.png", "class0/3.png"):
        target = tmp_path / "a" / name
        target.write_bytes((tmp_path / "a" / before.names[0]).read_bytes())
        new = held(ImageFolder(tmp_path / "a", 4), 0.2)
        moved.append(len(old ^ (new - {name})))
        target.unlink()
    assert max(moved) <= 3
    # Another class moves none of the others.
    pictures(tmp_path / "a" / "class2", 20, side=4, classes=0)
    assert {name for name in held(ImageFolder(tmp_path / "a", 4), 0.2) if "class2" not in name} == (
        old
    )


@pytest.mark.parametrize("top", ["", "photos/"])
def test_a_zip_is_split_as_its_folder(tmp_path, top):
    folder = pictures(tmp_path / "a", 40, side=4)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"{top}{file.relative_to(folder).as_posix()}")
    parts = [split(ImageFolder(path, 4), 0.2) for path in (folder, tmp_path / "a.zip")]
    for one, other in zip(*parts, strict=True):
        assert np.array_equal(one.index, other.index)
        assert fingerprint(one) == fingerprint(other)


def test_files_of_arrays_and_prepared_files_keep_their_classes_apart(tmp_path):
    label = np.repeat([0, 1], [10, 90])
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    stored = write_arrays(tmp_path / "x.safetensors", x, label)
    prepared = prepare(
        pictures(tmp_path / "a", 40, side=4), tmp_path / "p.safetensors", resolution=4
    )
    for data, counts in ((stored, [1, 9]), (prepared, [2, 2])):
        _, other = split(data, 0.1)
        found = other.batch(range(len(other))).cond["label"]
        assert np.bincount(found.numpy()).tolist() == counts
        part = pickle.loads(pickle.dumps(other))
        assert torch.equal(part.batch([0]).x0, other.batch([0]).x0)


def test_a_part_is_a_data_set(tmp_path):
    data = ImageFolder(pictures(tmp_path / "a", 20, side=4), 8)
    train, other = split(data, 0.1)
    assert (train.shape, train.labels, train.image, train.spec) == (
        *(data.shape, data.labels, data.image, data.spec),
    )
    assert train.notes == data.notes != ()
    assert other.notes == ()
    again, _ = split(train, 0.25)
    assert again.whole is data
    assert {*again.index} < {*train.index}


def test_fingerprints_know_the_share():
    data = points(40)
    prints = [fingerprint(part) for share in (0.1, 0.2) for part in split(data, share)]
    assert len({one["part"] for one in prints}) == 4
    assert all({**one, "part": ""} == {**fingerprint(data), "part": ""} for one in prints)


@pytest.mark.parametrize("given", [0.0, -0.1, 0.51, 1, "1", "2024", "nan", float("inf")])
def test_shares_out_of_range(given):
    with pytest.raises(UsageError, match=r"above 0 and at most 0\.5, got .* --held-out \./"):
        share_of(given)


def test_what_is_a_share():
    assert [share_of(x) for x in (None, "photos", "./0.1", "0.1", 0.1)] == [None] * 3 + [0.1] * 2
    with pytest.raises(UsageError, match="split takes a share"):
        split(points(40), "photos")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("n", "share", "advice"),
    [(10, 0.1, "give a share of 0.2 or more, or other data"), (3, 0.5, "needed; give other data")],
)
def test_too_few(n, share, advice):
    with pytest.raises(UsageError, match=rf"of {n} sample\(s\) holds out 1, .*{advice}"):
        split(points(n), share)


def test_parts_are_public():
    assert isinstance(split(points(40), 0.1)[0], Part)
