"""MNIST, Fashion-MNIST and CIFAR-10 are found, checked and read as their authors wrote them."""

from __future__ import annotations

import gzip
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.data import STANDARD, cifar10, fashion_mnist, mnist, standard
from fewstep.errors import UsageError

COUNTS = (7, 3)
SMALL = {name: replace(data, counts=COUNTS) for name, data in STANDARD.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty $FEWSTEP_DATA, no system data sets, no Hub."""
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr(standard, "SYSTEM", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    return tmp_path


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def idx(path: Path, array: np.ndarray, compressed: bool = True) -> None:
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data) if compressed else data)


def write_idx(folder: Path, compressed: bool) -> None:
    for prefix, n in zip(("train", "t10k"), COUNTS, strict=True):
        suffix = ".gz" if compressed else ""
        idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images(n, 28, 28), compressed)
        label = np.arange(n, dtype=np.uint8)
        idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", label, compressed)


def check(name: str, shape: tuple[int, ...]) -> None:
    for split, n in zip(("train", "held_out"), COUNTS, strict=True):
        data = SMALL[name](split)  # pyright: ignore
        assert (len(data), data.shape, data.labels, data.image) == (n, shape, 10, True)
        assert len(set(data.spec.class_names)) == 10
        batch = data.batch(range(n))
        wanted = images(n, *shape).astype(np.float32) / 127.5 - 1
        np.testing.assert_array_equal(batch.x0.numpy(), wanted)
        assert batch.cond["label"].tolist() == [*range(n)]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files(name, compressed, folder):
    write_idx(folder / name, compressed)
    check(name, (1, 28, 28))


def test_the_systems_copy_comes_second(folder, monkeypatch):
    monkeypatch.setattr(standard, "SYSTEM", folder / "system")
    (folder / "system").mkdir()
    write_idx(folder / "system" / "mnist", compressed=True)
    check("mnist", (1, 28, 28))


def test_npz(folder):
    (folder / "mnist").mkdir()
    parts = {}
    for prefix, n in zip(("train", "test"), COUNTS, strict=True):
        parts |= {f"{prefix}_images": images(n, 28, 28), f"{prefix}_labels": np.arange(n)}
    np.savez(folder / "mnist" / "mnist.npz", **parts)
    check("mnist", (1, 28, 28))


def test_cifars_binary_version(folder):
    inside = folder / "cifar10" / "cifar-10-batches-bin"
    inside.mkdir(parents=True)

    def records(x: np.ndarray, label: np.ndarray) -> bytes:
        return np.concatenate([label[:, None].astype(np.uint8), x.reshape(len(x), -1)], 1).tobytes()

    x, label = images(COUNTS[0], 3, 32, 32), np.arange(COUNTS[0])
    for i, part in enumerate(np.array_split(np.arange(COUNTS[0]), 5), 1):
        (inside / f"data_batch_{i}.bin").write_bytes(records(x[part], label[part]))
    held_out = records(images(COUNTS[1], 3, 32, 32), np.arange(COUNTS[1]))
    (inside / "test_batch.bin").write_bytes(held_out)
    check("cifar10", (3, 32, 32))


def test_pickles_are_not_read(folder):
    inside = folder / "cifar10" / "cifar-10-batches-py"
    inside.mkdir(parents=True)
    (inside / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UsageError, match="cifar10 was not found"):
        cifar10("train")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("data", [mnist, fashion_mnist, cifar10], ids=lambda d: d.name)
def test_what_is_missing_is_told(data):
    with pytest.raises(UsageError, match=rf"FEWSTEP_DATA/{data.name}.*fewstep\[datasets\]"):
        data("train")


def test_another_split_is_refused():
    with pytest.raises(UsageError, match="choose train or held_out"):
        mnist("test")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[:100], "its header promises"),
        (lambda b: gzip.compress(gzip.decompress(b)[:-5]), "its header promises"),
        (lambda b: gzip.compress(b"\0\0\x0d" + gzip.decompress(b)[3:]), "no IDX file"),
        (lambda b: b"", "cannot be read"),
    ],
)
def test_damaged_files_are_named(damage, says, folder):
    write_idx(folder / "mnist", compressed=True)
    file = folder / "mnist" / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError, match=says) as caught:
        SMALL["mnist"]("train")
    assert "mnist" in str(caught.value)


def test_another_set_under_the_name_is_refused(folder):
    write_idx(folder / "mnist", compressed=True)
    with pytest.raises(UsageError, match=r"expected \(60000, 1, 28, 28\)"):
        mnist("train")


# The real ones, where they are.

REAL = os.environ.get("FEWSTEP_DATA")
STATISTICS = {
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
}
"""Published means and standard deviations of the training pixels in [0, 1]."""


@pytest.mark.skipif(not REAL, reason="FEWSTEP_DATA is not set")
@pytest.mark.parametrize("name", STANDARD)
def test_real_data(name, monkeypatch):
    monkeypatch.setenv("FEWSTEP_DATA", str(REAL))
    monkeypatch.setattr(standard, "SYSTEM", Path("/usr/share/datasets"))
    try:
        data = STANDARD[name]("train")
    except UsageError as error:
        if "was not found" not in str(error):
            raise
        pytest.skip(f"FEWSTEP_DATA holds no {name}")
    batch = data.batch(range(len(data)))
    x = (batch.x0 + 1) / 2
    mean, std = STATISTICS[name]
    np.testing.assert_allclose(x.mean((0, 2, 3)), mean, atol=2e-4)
    np.testing.assert_allclose(x.std((0, 2, 3)), std, atol=2e-4)
    assert np.bincount(batch.cond["label"]).min() >= 5000
