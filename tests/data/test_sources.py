"""Shards, Parquet files and Hugging Face data sets: which images, which labels, in which order."""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fewstep.core import UsageError
from fewstep.data import Prepared, open_images, prepare
from image_files import as_bytes, encoded, label_of, pixels, shard

RESOLUTION = 4


def read(tmp_path: Path, source, **options) -> Prepared:
    return prepare(source, tmp_path / "x.safetensors", resolution=RESOLUTION, **options)


def images(n: int) -> tuple[np.ndarray, list[bytes]]:
    x = pixels(n, RESOLUTION, RESOLUTION, 3)
    return x.transpose(0, 3, 1, 2), [encoded(one) for one in x]


# Shards.


def test_a_shard_of_numbers(tmp_path):
    x, png = images(4)
    files = {
        "README.txt": b"not a sample",
        "b/000.png": png[0],
        "b/000.cls": b"3\n",
        "a/001.seg.png": png[3],
        "a/001.cls": b"0",
        "a/001.json": b'{"label": 7}',
        "a/001.PNG": png[1],
        "./002.json": b'{"label": 1, "other": [2]}',
        "./002.webp": png[2],
        "._002.png": b"not an image",
    }
    path = shard(tmp_path / "0.tar", files)
    data = read(tmp_path, path)
    # In the order of the shard, not of the names; a mask beside an image is no image.
    np.testing.assert_array_equal(as_bytes(data), x[:3])
    assert label_of(data) == [2, 0, 1]
    assert data.about.class_names == ("0", "1", "3")
    assert "a/001.seg.png" in " ".join(data.notes)
    assert "the labels 0, 1, 3 do not count from 0 without gaps" in " ".join(data.notes)
    four = read(tmp_path, path, classes=4)
    assert (label_of(four), four.about.class_names) == ([3, 0, 1], ("0", "1", "2", "3"))
    assert "1 of 4 class(es) have no image: 2" in four.notes
    with pytest.raises(UsageError, match=r"label 3; expected an integer in \[0, 3\)"):
        read(tmp_path, path, classes=3)
    assert read(tmp_path, path, labels="none").labels == 0


def test_a_folder_of_shards_in_their_order(tmp_path):
    x, png = images(6)
    folder = tmp_path / "shards"
    folder.mkdir()
    for k in (2, 0, 1):
        part = {f"{i}.png": png[i] for i in (2 * k, 2 * k + 1)}
        labels = {f"{i}.cls": str(i).encode() for i in (2 * k, 2 * k + 1)}
        both = {**part, **labels}
        shard(folder / f"{k}.tar", dict(sorted(both.items())))
    data = read(tmp_path, folder)
    np.testing.assert_array_equal(as_bytes(data), x)
    assert label_of(data) == [0, 1, 2, 3, 4, 5]
    assert data.about.source == "shards"
    two = read(tmp_path, [folder / "1.tar", folder / "0.tar"])
    np.testing.assert_array_equal(as_bytes(two), x[[2, 3, 0, 1]])


def test_a_column_of_json_may_hold_names(tmp_path):
    _, png = images(3)
    files: dict[str, bytes] = {}
    for i, breed in enumerate(("poodle", "beagle", "poodle")):
        files |= {f"{i}.png": png[i], f"{i}.json": json.dumps({"breed": breed}).encode()}
    data = read(tmp_path, shard(tmp_path / "0.tar", files), labels="breed")
    assert (label_of(data), data.about.class_names) == ([1, 0, 1], ("beagle", "poodle"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((b"1", None), "has the label None, the first image 1"),
        ((None, b"1"), "has the label 1, the first image None"),
        ((b"1", b"-1"), r"has the label -1; expected an integer in \[0, 1048576\)"),
        ((b"1", b"9999999"), "has the label 9999999"),
        ((b"1", b"cat"), "the label of 1.png in .* cannot be read"),
        ((b"1", b"9" * 5000), "the label of 1.png in .* cannot be read"),
        ((b"1", bytes(2**20 + 1)), "has beside it a text of 1048577 bytes"),
    ],
)
def test_odd_labels_are_named(tmp_path, labels, message):
    x, png = images(2)
    files: dict[str, bytes] = {}
    for i, label in enumerate(labels):
        files |= {f"{i}.png": png[i]} | ({} if label is None else {f"{i}.cls": label})
    path = shard(tmp_path / "0.tar", files)
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, path)
    assert "1.png in " in str(caught.value)
    data = read(tmp_path, path, on_error="skip")
    np.testing.assert_array_equal(as_bytes(data), x[:1])
    assert [name for name, _ in data.about.skipped] == ["0.tar/1.png"]


@pytest.mark.parametrize(
    "text", [b"3", b"[1]", b"{", b'{"label": 1.5}', b'{"label": true}', b'{"label": ["a"]}']
)
def test_odd_json_is_named(tmp_path, text):
    _, png = images(2)
    files = {"0.png": png[0], "0.cls": b"0", "1.png": png[1], "1.json": text}
    with pytest.raises(UsageError, match=r"1\.png in "):
        read(tmp_path, shard(tmp_path / "0.tar", files))


@pytest.mark.parametrize("end", ["tar", "tar.gz", "tgz"])
def test_dots_in_the_names_of_a_shard(tmp_path, end):
    x, png = images(5)
    files = {
        "0001.png": png[0],
        "0001.cls": b"0",
        "v1.2_0002.png": png[1],
        "v1.2_0002.cls": b"1",
        "v1.2_0003.png": png[2],
        "v1.2_0003.json": b'{"label": 0}',
        "0004.image.png": png[3],
        "0004.cls": b"1",
        "0005.png": png[4],
        "0005.depth.png": png[0],
        "0005.cls": b"0",
    }
    path = packed(shard(tmp_path / "0.tar", files), end)
    data = read(tmp_path, path)
    np.testing.assert_array_equal(as_bytes(data), x)
    assert label_of(data) == [0, 1, 0, 1, 0]
    notes = " ".join(data.notes)
    assert "3 image(s) have several dots in their names, such as v1.2_0002.png" in notes
    assert "1 image(s) are passed over" in notes
    assert "0005.depth.png" in notes
    assert "labels of 5 image(s) are not read" in " ".join(
        read(tmp_path, path, labels="none").notes
    )


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_many_names_that_begin_alike(tmp_path, end):
    x, png = images(10)
    files = {f"v1.{i:03d}.png": png[i % 10] for i in range(200)}
    data = read(tmp_path, packed(shard(tmp_path / "0.tar", files), end))
    np.testing.assert_array_equal(as_bytes(data), np.concatenate([x] * 20))


def packed(path: Path, end: str) -> Path:
    """A shard under another suffix, compressed unless it is ``tar``."""
    if end == "tar":
        return path
    place = path.with_suffix(f".{end}")
    place.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return place


def test_a_folder_of_compressed_shards(tmp_path):
    x, png = images(4)
    folder = tmp_path / "shards"
    folder.mkdir()
    for k in range(2):
        files = {f"{i}.png": png[2 * k + i] for i in range(2)}
        packed(shard(folder / f"{k}.tar", files), "tar.gz")
    np.testing.assert_array_equal(as_bytes(read(tmp_path, folder)), x)
    with pytest.raises(UsageError, match=r"run fewstep data prepare .*shards"):
        open_images(folder, 4)


def test_a_compressed_shard_that_was_cut_short(tmp_path):
    _, png = images(3)
    path = packed(shard(tmp_path / "0.tar", {f"{i}.png": one for i, one in enumerate(png)}), "tgz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match=r"0\.tgz "):
        read(tmp_path, path)


def test_a_compressed_shard_that_unpacks_to_much(tmp_path):
    path = packed(shard(tmp_path / "0.tar", {"a.txt": bytes(2**26)}), "tar.gz")
    with pytest.raises(UsageError, match=r"0\.tar\.gz unpacks to more than 200 times its size"):
        read(tmp_path, path)


def test_links_in_a_shard_have_no_power(tmp_path):
    _, png = images(1)
    (tmp_path / "secret.png").write_bytes(png[0])
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"../{i}.png")
            member.type, member.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(member)
    with pytest.raises(UsageError, match="is a link, a device or sparse"):
        read(tmp_path, path)
    with pytest.raises(UsageError, match=r"no usable image; the first, 0\.tar/\.\./0\.png"):
        read(tmp_path, path, on_error="skip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.tar", "secret.png"]


def test_paths_in_a_shard_have_no_power(tmp_path):
    x, png = images(2)
    names = [f"{tmp_path}/out.png", "../../out.png"]
    data = read(tmp_path, shard(tmp_path / "0.tar", dict(zip(names, png, strict=True))))
    np.testing.assert_array_equal(as_bytes(data), x)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("cut", ["within an image", "between two", "before the end mark"])
def test_a_shard_that_was_cut_short_is_no_whole_one(tmp_path, cut):
    x, png = images(3)
    path = shard(tmp_path / "0.tar", {f"{i}.png": one for i, one in enumerate(png)})
    size = {"within an image": 1536, "between two": 2048, "before the end mark": 3072}[cut]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"0\.tar "):
        read(tmp_path, path)
    whole = shard(tmp_path / "1.tar", {"a.png": png[2]})
    data = read(tmp_path, [path, whole], on_error="skip")
    left = {"within an image": 1, "between two": 2, "before the end mark": 3}[cut]
    np.testing.assert_array_equal(as_bytes(data), x[[*range(left), 2]])
    assert data.about.skipped[-1][0] == "0.tar"


# Parquet.


def table(path: Path, columns: dict[str, object], metadata: dict | None = None, **options) -> Path:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    found = pa.table(columns)
    if metadata is not None:
        found = found.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    parquet.write_table(found, path, **options)
    return path


def struct(png: list) -> list:
    return [{"bytes": one, "path": "/etc/hostname"} for one in png]


def test_parquet_as_hugging_face_writes_it(tmp_path):
    x, png = images(40)
    names = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "x"}}}}
    label = [i % 2 for i in range(40)]
    table(tmp_path / "0.parquet", {"img": struct(png), "label": label}, names, row_group_size=10)
    data = read(tmp_path, tmp_path / "0.parquet", workers=2)
    np.testing.assert_array_equal(as_bytes(data), x)
    assert label_of(data) == label
    assert (data.labels, data.about.class_names) == (3, ("cat", "dog", "owl"))


def test_plain_parquet_of_several_files(tmp_path):
    x, png = images(5)
    folder = tmp_path / "rows"
    folder.mkdir()
    table(folder / "1.parquet", {"id": [0, 1], "picture": png[3:], "breed": ["b", "a"]})
    table(folder / "0.parquet", {"id": [0] * 3, "picture": png[:3], "breed": ["b", "c", "b"]})
    data = read(tmp_path, folder, labels="breed")
    np.testing.assert_array_equal(as_bytes(data), x)
    assert (label_of(data), data.about.class_names) == ([1, 2, 1, 1, 0], ("a", "b", "c"))
    bare = read(tmp_path, folder)
    assert bare.labels == 0
    assert "no column is called label; the columns are id, picture, breed" in bare.notes[0]
    with pytest.raises(UsageError, match="no column 'kind'; it has id, picture, breed"):
        read(tmp_path, folder, labels="kind")


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "/etc/hostname"}, b"", b"text"])
def test_rows_without_an_image_are_named(tmp_path, value):
    x, png = images(2)
    rows = (
        [png[0], value, png[1]]
        if isinstance(value, bytes)
        else [*struct(png[:1]), value, *struct(png[1:])]
    )
    path = table(tmp_path / "0.parquet", {"image": rows})
    with pytest.raises(UsageError, match=r"^row 1 in .*0\.parquet "):
        read(tmp_path, path)
    data = read(tmp_path, path, on_error="skip")
    np.testing.assert_array_equal(as_bytes(data), x)
    assert [name for name, _ in data.about.skipped] == ["0.parquet row 1"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1]}, "columns that could be it: none"),
        ({"image": ["a", "b"]}, "columns that could be it: none"),
        ({"image": [[b"a"], [b"b"]]}, "columns that could be it: none"),
        ({"image": [{"deep": {"bytes": b"a"}}] * 2}, "columns that could be it: none"),
        ({"left": [b"a", b"b"], "right": [b"a", b"b"]}, "columns that could be it: left, right"),
    ],
)
def test_columns_that_hold_no_images_are_refused(tmp_path, columns, message):
    path = table(tmp_path / "0.parquet", columns)
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, path, on_error="skip")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "label", [[1.5, 2.5], [True, False], [[1], [2]], [None, None, 1][:2], [-1, -1]]
)
def test_columns_that_hold_no_labels(tmp_path, label):
    _, png = images(2)
    path = table(tmp_path / "0.parquet", {"image": png, "label": label})
    if label == [None, None]:
        assert read(tmp_path, path).labels == 0
        return
    with pytest.raises(UsageError, match=r"row 0 in .* has the label"):
        read(tmp_path, path)


def test_a_damaged_file_among_others_is_listed(tmp_path):
    x, png = images(40)
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i in range(3):
        table(paths[i], {"image": png[10 * i : 10 * i + 10]}, compression="none")
    paths[0].write_bytes(b"PAR1 garbage PAR1")
    content = bytearray(paths[1].read_bytes())
    content[4:40] = bytes(36)
    paths[1].write_bytes(content)
    with pytest.raises(UsageError, match=r"0\.parquet cannot be read"):
        read(tmp_path, paths)
    data = read(tmp_path, paths, on_error="skip")
    np.testing.assert_array_equal(as_bytes(data), x[20:30])
    assert [name for name, _ in data.about.skipped] == ["0.parquet", "1.parquet"]


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [("pyarrow.parquet", "x.parquet", "parquet"), ("datasets", "hf:a/b", "datasets")],
)
def test_without_the_extra(tmp_path, monkeypatch, module, name, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    Path("x.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"pip install 'fewstep\[{extra}\]'"):
        read(tmp_path, name)


# Hugging Face data sets.


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("datasets")
    module.disable_progress_bars()
    return module


def saved(datasets, path: Path, png: list[bytes], label: list[int], name: str = "label"):
    features = datasets.Features(
        {"image": datasets.Image(), name: datasets.ClassLabel(names=["cat", "dog", "owl"])}
    )
    rows = [{"bytes": one, "path": None} for one in png]
    found = datasets.Dataset.from_dict({"image": rows, name: label}, features=features)
    if path.suffix == ".parts":
        found = datasets.DatasetDict({"train": found, "test": found.select([0])})
    found.save_to_disk(str(path))


def test_a_data_set_on_the_disk(tmp_path, datasets):
    x, png = images(5)
    saved(datasets, tmp_path / "set", png, [0, 1, 1, 0, 1])
    data = read(tmp_path, tmp_path / "set")
    np.testing.assert_array_equal(as_bytes(data), x)
    assert (label_of(data), data.about.class_names) == ([0, 1, 1, 0, 1], ("cat", "dog", "owl"))
    assert data.about.source == "set"
    saved(datasets, tmp_path / "set.parts", png, [0, 1, 1, 0, 1], "breed")
    data = read(tmp_path, tmp_path / "set.parts", split="test", labels="breed")
    assert (len(data), data.labels) == (1, 3)
    with pytest.raises(UsageError, match="no split 'held_out'; it has train, test"):
        read(tmp_path, tmp_path / "set.parts", split="held_out")


def test_a_bad_row_of_a_data_set(tmp_path, datasets):
    x, png = images(3)
    saved(datasets, tmp_path / "set", [png[0], b"text", png[2]], [0, 0, 0])
    with pytest.raises(UsageError, match=r"^row 1 in .*set is broken"):
        read(tmp_path, tmp_path / "set")
    data = read(tmp_path, tmp_path / "set", on_error="skip")
    np.testing.assert_array_equal(as_bytes(data), x[[0, 2]])
    assert data.about.skipped[0][0] == "set row 1"


def test_a_damaged_data_set_is_named(tmp_path, datasets):
    _, png = images(3)
    saved(datasets, tmp_path / "set", png, [0, 0, 0])
    for file in (tmp_path / "set").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"set cannot be read"):
        read(tmp_path, tmp_path / "set")


def test_the_hub(tmp_path, datasets, monkeypatch):
    x, png = images(2)
    asked = []

    def load(name: str, split: str):
        asked.append((name, split))
        if name == "a/missing":
            raise FileNotFoundError("offline")
        saved(datasets, tmp_path / "set", png, [0, 1])
        return datasets.load_from_disk(str(tmp_path / "set"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = read(tmp_path, "hf:a/b", split="test")
    np.testing.assert_array_equal(as_bytes(data), x)
    assert (asked, data.about.source) == ([("a/b", "test")], "hf:a/b")
    with pytest.raises(UsageError, match=r"hf:a/missing cannot be loaded \(offline\)"):
        read(tmp_path, "hf:a/missing")
