"""Every source ends in the same kind of file, with the pixels and labels that it holds."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fewstep.core import UsageError
from fewstep.data import Dataset, ImageFolder, Prepared, open_images, prepare
from image_files import (
    as_bytes,
    encoded,
    header_of,
    idx,
    label_of,
    pixels,
    png_that_claims,
    stored,
    with_header,
)

both = pytest.mark.parametrize("form", ["folder", "zip"])


def files(n: int = 7, classes: str = "ab") -> dict[str, bytes]:
    side = pixels(n) % 9 + 8
    return {
        f"{classes[i % len(classes)]}/{i}.png": encoded(pixels(side[i], 20 - side[i], 3))
        for i in range(n)
    }


@both
@pytest.mark.parametrize("channels", [None, 1])
def test_a_prepared_file_is_the_folder(tmp_path, form, channels):
    path = stored(tmp_path, form, files())
    data = prepare(path, tmp_path / "x.safetensors", resolution=4, channels=channels)
    dataset: Dataset = data
    folder = ImageFolder(path, 4, channels=channels)
    assert (len(dataset), dataset.shape, dataset.labels, dataset.image) == (
        7,
        folder.shape,
        2,
        True,
    )
    np.testing.assert_array_equal(as_bytes(data), as_bytes(folder))
    np.testing.assert_array_equal(data.batch([3]).x0, folder.batch([3]).x0)
    assert label_of(data) == label_of(folder) == [0, 0, 0, 0, 1, 1, 1]
    assert data.about.class_names == folder.class_names == ("a", "b")
    assert data.about.source == path.name
    assert (data.about.resolution, data.about.crop, data.about.skipped) == (4, "center", ())
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "x.safetensors"]


def test_the_file_is_safetensors_with_its_sums_and_no_path(tmp_path):
    path = stored(tmp_path, "folder", files())
    out = tmp_path / "x.safetensors"
    data = prepare(path, out, resolution=4)
    with safe_open(out, "np") as file:
        images, label = file.get_tensor("images"), file.get_tensor("labels")
        about = json.loads(file.metadata()["dataset"])
    np.testing.assert_array_equal(images, as_bytes(data))
    assert (label.dtype, label.tolist()) == (np.int64, label_of(data))
    assert about["sha256"] == {
        "images": hashlib.sha256(images.tobytes()).hexdigest(),
        "labels": hashlib.sha256(label.tobytes()).hexdigest(),
    }
    assert str(tmp_path).encode() not in out.read_bytes()
    content = out.read_bytes()
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0  # int64 labels begin there


@both
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_source_gives_the_same_bytes(tmp_path, form, workers):
    path = stored(tmp_path, form, files(30) | {"a/bad.png": b""})
    outs = [tmp_path / f"{i}.safetensors" for i in range(2)]
    prepare(path, outs[0], resolution=4, on_error="skip")
    prepare(path, outs[1], resolution=4, on_error="skip", workers=workers)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_pixels_are_mapped_not_read(tmp_path, monkeypatch):
    path = stored(tmp_path, "folder", files())
    out = tmp_path / "x.safetensors"
    prepare(path, out, resolution=4)
    maps = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *a, **k: maps.append(a[2]) or memmap(*a, **k))
    data = Prepared(out)
    assert maps == ["r"]
    data.batch([0]).x0.zero_()
    assert data.batch([0]).x0.abs().max() > 0


def test_all_grey_images_need_one_channel(tmp_path):
    grey = {f"{i}.png": encoded(pixels(9, 9)) for i in range(3)}
    path = stored(tmp_path, "zip", grey)
    data = prepare(path, tmp_path / "x.safetensors", resolution=4)
    assert data.shape == (1, 4, 4)
    np.testing.assert_array_equal(as_bytes(data), as_bytes(ImageFolder(path, 4)))
    # One picture in colour is enough.
    path = stored(tmp_path, "folder", grey | {"1b.png": encoded(pixels(4, 4, 3))})
    data = prepare(path, tmp_path / "x.safetensors", resolution=4)
    assert data.shape == (3, 4, 4)
    np.testing.assert_array_equal(as_bytes(data), as_bytes(ImageFolder(path, 4, channels=3)))


def test_bad_images_are_refused_or_listed(tmp_path):
    good = files()
    bad = {"a/0bad.png": b"", "b/z\x1b.jpg": png_that_claims(9000, 9000)}
    path = stored(tmp_path, "folder", good | bad)
    out = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match=r"a/0bad\.png in .*data is broken"):
        prepare(path, out, resolution=4)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    data = prepare(path, out, resolution=4, on_error="skip")
    assert [name for name, _ in data.about.skipped] == ["a/0bad.png", "b/z?.jpg"]
    assert str(tmp_path) not in str(data.about.skipped)
    (tmp_path / "good").mkdir()
    whole = prepare(stored(tmp_path / "good", "folder", good), out, resolution=4)
    np.testing.assert_array_equal(as_bytes(data), as_bytes(whole))
    assert label_of(data) == label_of(whole)


def test_many_bad_images_end_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.data.reading.MAX_SKIPPED", 2)
    path = stored(tmp_path, "folder", files(1) | {f"{i}.png": b"" for i in range(3)})
    with pytest.raises(UsageError, match=r"over 2 images cannot be used.*2\.png"):
        prepare(path, tmp_path / "x.safetensors", resolution=4, on_error="skip")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


# Crops.


def test_crop_of_adm(tmp_path):
    x = pixels(21, 34, 3)
    path = stored(tmp_path, "folder", {"a.png": encoded(x)})
    # 21 x 34 is halved to 10 x 17 and to 5 x 8; the rest, 4 / 5, is bicubic to 4 x 6.
    image = Image.fromarray(x)
    for size in ((17, 10), (8, 5)):
        image = image.resize(size, Image.Resampling.BOX)
    expected = np.asarray(image.resize((6, 4), Image.Resampling.BICUBIC))[:, 1:5]
    data = prepare(path, tmp_path / "x.safetensors", resolution=4, crop="adm")
    np.testing.assert_array_equal(as_bytes(data)[0], expected.transpose(2, 0, 1))
    assert data.about.crop == "adm"


def test_without_crop_images_must_be_square(tmp_path):
    x = pixels(8, 8, 3)
    path = stored(tmp_path, "folder", {"a.png": encoded(x), "b.png": encoded(pixels(8, 9, 3))})
    with pytest.raises(UsageError, match=r"b\.png in .* is 9 x 8 pixels, not square"):
        prepare(path, tmp_path / "x.safetensors", resolution=8, crop="none")
    data = prepare(path, tmp_path / "x.safetensors", resolution=8, crop="none", on_error="skip")
    np.testing.assert_array_equal(as_bytes(data), x.transpose(2, 0, 1)[None])


# Arrays.


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 3, 4, 4), None), ((5, 4, 4, 3), (0, 3, 1, 2)), ((5, 4, 4), None)]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(tmp_path, shape, axes, save):
    x = pixels(*shape)
    save(tmp_path / "x.npz", images=x, label=np.array([3, 0, 1, 1, 0], np.int32))
    data = prepare(tmp_path / "x.npz", tmp_path / "x.safetensors", resolution=4)
    expected = x if axes is None else x.transpose(axes)
    np.testing.assert_array_equal(as_bytes(data), expected.reshape(5, -1, 4, 4))
    assert label_of(data) == [2, 0, 1, 1, 0]
    assert data.about.class_names == ("0", "1", "3")
    none = prepare(tmp_path / "x.npz", tmp_path / "n.safetensors", resolution=4, labels="none")
    assert (none.labels, none.batch([0]).cond) == (0, {})


def test_arrays_are_resized_like_images(tmp_path):
    x = pixels(2, 3, 12, 8)
    np.savez(tmp_path / "x.npz", x=x)
    data = prepare(tmp_path / "x.npz", tmp_path / "x.safetensors", resolution=4)
    image = Image.fromarray(x[0, :, 2:10].transpose(1, 2, 0)).resize((4, 4), Image.Resampling.BOX)
    np.testing.assert_array_equal(as_bytes(data)[0], np.asarray(image).transpose(2, 0, 1))


def test_batches_of_the_downsampled_imagenet(tmp_path):
    x, label = pixels(6, 3 * 8 * 8), np.array([1, 1000, 7, 2, 3, 4])
    folder = tmp_path / "imagenet8"
    folder.mkdir()
    for i, part in enumerate((slice(0, 4), slice(4, 6))):
        np.savez(folder / f"train_data_batch_{i}.npz", data=x[part], labels=label[part])
    for given in (folder, sorted(folder.iterdir())):
        data = prepare(given, tmp_path / "x.safetensors", resolution=8)
        np.testing.assert_array_equal(as_bytes(data), x.reshape(6, 3, 8, 8))
        assert label_of(data) == [0, 999, 6, 1, 2, 3]
        assert data.labels == 1000
    assert data.about.source == "train_data_batch_0.npz ... train_data_batch_1.npz"


def test_sample_files_of_openai(tmp_path):
    x = pixels(4, 4, 4, 3)
    np.savez(tmp_path / "x.npz", x, np.array([5, 0, 5, 1]))
    data = prepare(tmp_path / "x.npz", tmp_path / "x.safetensors", resolution=4)
    np.testing.assert_array_equal(as_bytes(data), x.transpose(0, 3, 1, 2))
    assert (label_of(data), data.spec.class_names) == ([2, 0, 2, 1], ("0", "1", "5"))


@pytest.mark.parametrize("label", [[0, 1, 1], [0, 0, 0], None])
def test_samples_of_this_library(tmp_path, label):
    x = pixels(3, 1, 4, 4)
    floats = (x / 127.5 - 1).astype(np.float32)
    arrays = {} if label is None else {"label": np.array(label)}
    np.savez(tmp_path / "x.npz", x=floats, **arrays)
    data = prepare(tmp_path / "x.npz", tmp_path / "x.safetensors", resolution=4)
    np.testing.assert_array_equal(as_bytes(data), x)
    assert data.labels == (2 if label == [0, 1, 1] else 0)
    if label == [0, 0, 0]:
        assert data.notes == ("all labels of x.npz are 0 and are not read",)
    np.savez(tmp_path / "x.npz", x=np.where(floats > 0, np.float32("nan"), floats))
    with pytest.raises(UsageError, match=r"row 0 in .*x\.npz holds floats"):
        prepare(tmp_path / "x.npz", tmp_path / "x.safetensors", resolution=4)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path, packed):
    x, label = pixels(4, 28, 28), np.array([7, 0, 3, 1], np.uint8)
    end = ".gz" if packed else ""
    for name, array in (("train-images-idx3-ubyte", x), ("train-labels-idx1-ubyte", label)):
        content = idx(array)
        (tmp_path / f"{name}{end}").write_bytes(gzip.compress(content) if packed else content)
    source = tmp_path / f"train-images-idx3-ubyte{end}"
    data = prepare(source, tmp_path / "x.safetensors", resolution=28)
    np.testing.assert_array_equal(as_bytes(data), x[:, None])
    assert (label_of(data), data.about.class_names) == ([3, 0, 2, 1], ("0", "1", "3", "7"))
    (tmp_path / f"train-labels-idx1-ubyte{end}").unlink()
    assert prepare(source, tmp_path / "x.safetensors", resolution=28).labels == 0


# The file.


@pytest.fixture
def made(tmp_path) -> Path:
    out = tmp_path / "x.safetensors"
    prepare(stored(tmp_path, "folder", files()), out, resolution=4)
    return out


def test_a_flipped_bit_is_found_if_asked_for(made):
    assert len(Prepared(made, verify=True)) == 7
    content = bytearray(made.read_bytes())
    content[-5] ^= 1
    made.write_bytes(content)
    assert len(Prepared(made)) == 7
    with pytest.raises(UsageError, match=r"images of .*x\.safetensors do not match their sha256"):
        Prepared(made, verify=True)


def changed(made: Path, **about: object) -> bytes:
    header, tensors = header_of(made)
    found = json.loads(header["__metadata__"]["dataset"]) | about
    header["__metadata__"]["dataset"] = json.dumps(found)
    return with_header(header, tensors)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda p: b"", "cut short"),
        (lambda p: p.read_bytes()[:7], "cut short"),
        (lambda p: p.read_bytes()[:100], "cut short"),
        (lambda p: p.read_bytes()[:-1], r"bytes, expected"),
        (lambda p: p.read_bytes() + b"\0", r"bytes, expected"),
        (lambda p: (2**62).to_bytes(8, "little") + bytes(100), "cut short"),
        (lambda p: b"PK\3\4" + bytes(2000), "not what fewstep data prepare writes"),
        (lambda p: with_header(b"{ ", b""), "no data set of fewstep"),
        (lambda p: with_header(b"[" * 100_000, b""), "no data set of fewstep"),
        (lambda p: with_header([1], b""), "no data set of fewstep"),
        (lambda p: with_header({"__metadata__": {"format": "pt"}}, b""), "no data set of fewstep"),
        (lambda p: with_header({"__metadata__": {"dataset": 3}}, b""), "does not know"),
        (lambda p: changed(p, format=2), r"does not know \(format"),
        (lambda p: changed(p, extra=2), r"does not know \(extra"),
        (lambda p: changed(p, count=8), "contradicts itself"),
        (lambda p: changed(p, count=2**70), "contradicts itself"),
        (lambda p: changed(p, shape=[3, 4, 5]), "contradicts itself"),
        (lambda p: changed(p, resolution=8), "contradicts itself"),
        (lambda p: changed(p, labels=3), "contradicts itself"),
        (lambda p: changed(p, labels=1, class_names=["a"]), "labels out of range"),
    ],
)
def test_another_or_damaged_file_is_refused(made, broken, message):
    made.write_bytes(broken(made))
    with pytest.raises(UsageError, match=message) as caught:
        Prepared(made)
    assert str(made) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(UsageError, match="does not exist, or is no file; run fewstep data"):
            Prepared(path)


# Other processes.


def first(data: Dataset) -> np.ndarray:
    return as_bytes(data)[:5]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_other_processes_read_the_same(tmp_path, made, way, monkeypatch):
    packed = stored(tmp_path, "zip", files())
    monkeypatch.setattr("fewstep.data.images.IN_MEMORY", 0)
    datasets = [Prepared(made), Prepared(made, labels="none"), ImageFolder(packed, 4)]
    with multiprocessing.get_context(way).Pool(1) as pool:
        for data in datasets:
            for found in pool.map(first, [data, data]):
                np.testing.assert_array_equal(found, first(data))
    for data in datasets:
        again = pickle.loads(pickle.dumps(data))
        assert (again.shape, again.labels) == (data.shape, data.labels)
    # Maps and open files stay behind.
    assert len(pickle.dumps(Prepared(made))) < 300


def test_a_zip_is_opened_anew_after_a_fork(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.data.images.IN_MEMORY", 0)
    data = ImageFolder(stored(tmp_path, "zip", files(40)), 4)
    expected = as_bytes(data)

    def read() -> None:
        same = all(np.array_equal(as_bytes(data), expected) for _ in range(3))
        os._exit(0 if same else 1)  # without the test runner's own ending

    children = [multiprocessing.get_context("fork").Process(target=read) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0] * 3


def test_a_bad_file_is_told_from_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.data.images.IN_MEMORY", 0)
    good = encoded(pixels(9, 9))
    path = stored(tmp_path, "folder", {"a.png": good, "b.png": good[:60]})
    data = ImageFolder(path, 4)
    with pytest.raises(UsageError) as caught:
        data.batch([1])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    assert str(again).startswith(f"b.png in {path} cannot be read")


# Opening.


def test_open_images(tmp_path, made):
    folder = tmp_path / "data"
    assert isinstance(open_images(folder, 4), ImageFolder)
    assert open_images(folder, 4, "none", channels=1).shape == (1, 4, 4)
    data = open_images(str(made), 4)
    assert isinstance(data, Prepared)
    assert open_images(made, 4, "none").labels == 0
    with pytest.raises(UsageError, match="prepared at resolution 4, asked for is 8"):
        open_images(made, 8)
    with pytest.raises(UsageError, match=r"prepared with 3 channel\(s\)"):
        open_images(made, 4, channels=1)
    assert open_images(made, 4, background="white").shape == (3, 4, 4)
    with pytest.raises(UsageError, match="on the background white, asked for is black; prepare"):
        open_images(made, 4, background="black")
    assert open_images(folder, 4, background="black").shape == (3, 4, 4)
    for name in ("x.tar", "x.tar.gz", "x.TGZ", "x.parquet", "x.npz", "t10k-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(
            UsageError, match=rf"run fewstep data prepare .*{name} --out .* 8, then"
        ):
            open_images(tmp_path / name, 8)
    with pytest.raises(UsageError, match="run fewstep data prepare hf:owner/name --out"):
        open_images("hf:owner/name", 8)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"run fewstep data prepare .*shards"):
        open_images(tmp_path / "shards", 8)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        open_images(tmp_path / "nowhere", 8)


def test_statistics_beside_images_do_not_make_shards_of_a_folder(tmp_path):
    path = stored(tmp_path, "folder", files() | {"statistics.npz": b""})
    assert len(open_images(path, 4)) == 7
    assert len(prepare(path, tmp_path / "x.safetensors", resolution=4)) == 7


# Arguments.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resolution": 0}, "resolution=0"),
        ({"resolution": 10_000}, "resolution=10000"),
        ({"channels": 2}, "channels=2"),
        ({"crop": "left"}, "crop='left'; expected one of center, adm, none"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"workers": -1}, "workers=-1"),
        ({"labels": "breed"}, "labels='breed'; folders and zips"),
        ({"out": "x.npz"}, r"out=x\.npz; expected a file that ends in \.safetensors"),
        ({"source": []}, "no source"),
        ({"source": "nowhere"}, "nowhere does not exist; .*hf:OWNER/NAME"),
        ({"source": "hf:../x y"}, "expected hf:OWNER/NAME"),
        ({"source": ["a.png", "a.png"]}, "got 2 sources; only shards"),
        ({"source": ["x.npz", "x.tar"]}, r"several kinds, \.npz \.tar"),
        ({"source": "notes.txt"}, r"notes\.txt is neither a folder nor a zip"),
        ({"source": "empty"}, "empty holds no images"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.png", "x.npz", "x.tar", "notes.txt"):
        Path(name).write_bytes(encoded(pixels(4, 4)))
    before = sorted(tmp_path.iterdir())
    options = {"source": ".", "out": "x.safetensors", "resolution": 4} | given
    with pytest.raises(UsageError, match=message):
        prepare(options.pop("source"), options.pop("out"), **options)
    assert sorted(tmp_path.iterdir()) == before
