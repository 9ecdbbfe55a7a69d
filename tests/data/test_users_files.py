"""Folders, zips and pictures as users have them: what is read, and what users are told."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fewstep.contract import data_spec
from fewstep.core import UsageError
from fewstep.data import ImageFolder, formats, members, prepare
from fewstep.evaluation import named_protocol
from image_files import as_bytes, chunk, encoded, label_of, pixels, stored

both = pytest.mark.parametrize("form", ["folder", "zip"])
PNG = encoded(pixels(4, 4))


def read(path: Path, **options) -> ImageFolder:
    """A folder or zip, which a prepared file must equal in every way."""
    data = ImageFolder(path, 4, **options)
    file = prepare(path, path.parent / "x.safetensors", resolution=4, **options)
    np.testing.assert_array_equal(as_bytes(file), as_bytes(data))
    assert (file.shape, file.spec, file.notes) == (data.shape, data.spec, data.notes)
    if data.labels:
        assert label_of(file) == label_of(data)
    return data


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def told(data: ImageFolder) -> str:
    return " | ".join(data.notes)


# Labels.


@both
@pytest.mark.parametrize("top", ["set/", "a/b/", ""])
def test_labels_beside_all_images(tmp_path, form, top):
    files = {f"{top}0000{i % 2}/{i}.png": PNG for i in range(4)}
    labels = [[f"0000{i % 2}/{i}.png", 3 - i] for i in range(4)]
    files[f"{top}dataset.json"] = json.dumps({"labels": labels}).encode()
    data = read(stored(tmp_path, form, files))
    assert data.class_names == ("0", "1", "2", "3")
    assert dict(zip(data.names, label_of(data), strict=True)) == {
        f"{top}0000{i % 2}/{i}.png": 3 - i for i in range(4)
    }
    assert data.notes == ()


def test_labels_that_lie_elsewhere_are_told(tmp_path):
    files = {"cat/0.png": PNG, "dog/0.png": PNG, "cat/dataset.json": b"{}"}
    data = read(stored(tmp_path, "folder", files))
    assert data.class_names == ("cat", "dog")
    assert "cat/dataset.json is not read" in told(data)


@pytest.mark.parametrize(
    ("given", "names", "label"),
    [([1, 2, 3], ("1", "2", "3"), [0, 1, 2]), ([0, 7, 7], ("0", "7"), [0, 1, 1])],
)
def test_labels_from_one_or_with_gaps(tmp_path, given, names, label):
    labels = [[f"{i}.png", one] for i, one in enumerate(given)]
    files = {f"{i}.png": PNG for i in range(3)}
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    path = stored(tmp_path, "folder", files)
    data = read(path)
    assert (data.class_names, label_of(data)) == (names, label)
    assert "do not count from 0 without gaps" in told(data)
    nine = prepare(path, tmp_path / "x.safetensors", resolution=4, classes=9)
    assert (label_of(nine), nine.labels) == (given, 9)
    assert "class(es) have no image" in " ".join(nine.notes)
    with pytest.raises(UsageError, match=r"gives \d\.png the label"):
        prepare(path, tmp_path / "x.safetensors", resolution=4, classes=1)


@both
def test_folders_that_are_no_classes_are_named(tmp_path, form):
    files = {"a/0.png": PNG, "c/x/0.png": PNG, "c/y/1.png": PNG, "b/0.svg": b"<svg/>", "n.txt": b""}
    data = read(stored(made(tmp_path / "1"), form, files))
    assert data.class_names == ("a", "c")
    assert "the folder(s) b hold no image that is read: no classes" in told(data)
    assert "such as c/x, are no classes" in told(data)
    files = {f"{name}/0.png": PNG for name in ("train", "val", "more")}
    data = read(stored(made(tmp_path / "2"), form, files))
    assert data.class_names == ("more", "train", "val")
    assert "the folder(s) train, val are classes here, beside others" in told(data)


def test_folders_of_a_shard_are_no_classes(tmp_path):
    path = tmp_path / "planes.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("planes/0.png", "ships/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
    data = prepare(path, tmp_path / "x.safetensors", resolution=4)
    assert data.labels == 0
    (note,) = data.notes
    assert "the folders inside of a shard, such as planes and ships, are no classes" in note


def test_classes_that_have_names_have_a_number(tmp_path):
    path = stored(tmp_path, "folder", {"cat/0.png": PNG, "dog/0.png": PNG})
    with pytest.raises(UsageError, match="classes=3, but the source has 2 classes with names"):
        prepare(path, tmp_path / "x.safetensors", resolution=4, classes=3)


def test_a_class_folder_that_is_a_link(tmp_path):
    for name in ("two/cat/0.png", "two/dog/0.png", "far/fox/0.png", "far/fox/deep/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "two/elk").symlink_to(tmp_path / "far/fox")
    data = read(tmp_path / "two")
    assert data.class_names == ("cat", "dog", "elk")
    assert label_of(data) == [0, 1, 2, 2]
    assert data.notes == ()


def test_links_that_lead_nowhere_or_in_circles(tmp_path):
    path = stored(tmp_path, "folder", {"cat/0.png": PNG, "dog/0.png": PNG})
    (path / "cat/up").symlink_to(path)
    (path / "dog/self").symlink_to(path / "dog/self")
    (path / "fox").symlink_to(tmp_path / "nowhere")
    data = read(path)
    assert (len(data), data.class_names) == (2, ("cat", "dog"))
    assert "lead(s) back to a folder that it lies in and are passed over: cat/up" in told(data)
    assert "lead(s) nowhere and are passed over: dog/self, fox" in told(data)


def test_two_folders_that_hold_each_other_end(tmp_path):
    path = stored(tmp_path, "folder", {"cat/0.png": PNG, "dog/0.png": PNG})
    (path / "cat/dog").symlink_to(path / "dog")
    (path / "dog/cat").symlink_to(path / "cat")
    assert len(ImageFolder(path, 4)) == 4


def test_folders_that_multiply_through_links_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "MAX_LINKED", 100)
    for i in range(12):
        (tmp_path / "all" / str(i)).mkdir(parents=True)
        if i:
            for side in "ab":
                link = tmp_path / "all" / str(i) / side
                link.symlink_to(tmp_path / "all" / str(i - 1))
    with pytest.raises(UsageError, match="more than 100 folders behind symbolic links"):
        ImageFolder(tmp_path / "all", 4)


@both
def test_one_loose_picture_removes_no_labels(tmp_path, form):
    files = {"cat/0.png": PNG, "dog/0.png": PNG, "preview.png": PNG}
    path = stored(tmp_path, form, files)
    data = read(path)
    assert (data.names, data.class_names) == (["cat/0.png", "dog/0.png"], ("cat", "dog"))
    assert "1 image(s), such as preview.png, lie beside the class folders" in told(data)
    everything = read(path, labels="none")
    assert (len(everything), everything.labels) == (3, 0)
    assert "the folders cat, dog are not read as classes" in told(everything)


def test_many_loose_pictures_are_no_mistake_to_guess_at(tmp_path):
    files = {"cat/0.png": PNG, "dog/0.png": PNG, **{f"{i}.png": PNG for i in range(3)}}
    path = stored(tmp_path, "folder", files)
    with pytest.raises(UsageError, match=r"3 image.*beside the folders cat, dog .* which hold 2"):
        ImageFolder(path, 4)
    assert len(ImageFolder(path, 4, labels="none")) == 5


def test_one_folder_beside_pictures_is_no_class(tmp_path):
    data = read(stored(tmp_path, "folder", {"a.png": PNG, "more/b.png": PNG}))
    assert (len(data), data.labels) == (2, 0)
    assert "no labels are read" in told(data)


@both
def test_folders_that_are_numbers(tmp_path, form):
    path = stored(tmp_path, form, {f"{i}/0.png": PNG for i in (1, 2, 10)})
    data = read(path)
    assert data.class_names == ("1", "2", "10")
    assert "sorted as numbers: label 0 is 1, label 2 is 10" in told(data)


def test_folders_that_count_from_zero_need_no_word(tmp_path):
    data = read(stored(tmp_path, "folder", {f"{i}/0.png": PNG for i in range(12)}))
    assert data.class_names == tuple(map(str, range(12)))
    assert data.notes == ()


@both
@pytest.mark.parametrize("names", [("train", "val"), ("Train", "valid", "TEST"), ("x", "test")])
@pytest.mark.parametrize("top", ["", "photos/"])
def test_parts_of_a_data_set_are_no_classes(tmp_path, form, names, top):
    path = stored(tmp_path, form, {f"{top}{name}/{c}/0.png": PNG for name in names for c in "ab"})
    if "x" in names:
        assert ImageFolder(path, 4).class_names == ("test", "x")
        return
    for labels in ("auto", "none"):
        with pytest.raises(UsageError, match="parts of a data set and no classes") as caught:
            ImageFolder(path, 4, labels=labels)
        assert f"{path / top / names[0]} to learn from" in str(caught.value)
    if form == "folder":
        assert ImageFolder(path / top / names[0], 4).class_names == ("a", "b")


def test_held_out_classes_must_have_the_same_names(tmp_path):
    for part, names in {"a": "cat dog", "b": "ant cat", "c": "cat dog"}.items():
        for name in names.split():
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "0.png").write_bytes(PNG)
    a, b, c = (str(tmp_path / part) for part in "abc")
    plain = data_spec((1, 4, 4), 2, image=True)
    named = ImageFolder(b, 4).spec
    assert len(named_protocol(a, c, plain, 9).held_out) == 2
    with pytest.raises(UsageError, match=r"a has cat, dog, .*b has ant, cat; they must"):
        named_protocol(a, b, plain, 9)
    with pytest.raises(UsageError, match=r"the model has ant, cat, .*a has cat, dog"):
        named_protocol(a, c, named, 9)


@pytest.mark.parametrize("n", [8, 3])
def test_fewer_held_out_samples_than_classes(tmp_path, n):
    path = stored(tmp_path, "folder", {f"{i}/0.png": PNG for i in range(8)})
    protocol = named_protocol(str(path), str(path), data_spec((1, 4, 4), 8, image=True), n)
    assert len(protocol.held_out) == n


# Images.


def photo(orientation: int, kind: str = "JPEG", size: tuple[int, int] = (13, 8)) -> bytes:
    """A picture whose corners differ, stored as a camera held that way stores it."""
    width, height = size
    upright = np.zeros((height, width, 3), np.uint8)
    upright[: height // 2, : width // 2] = (250, 10, 10)
    upright[height // 2 :, width // 2 :] = (10, 250, 10)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = inverse
    turned = Image.fromarray(upright)
    turned.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    stored_pixels = ImageOps.exif_transpose(Image.open(buffer))
    exif[0x0112] = orientation
    out = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.asarray(stored_pixels)).save(out, kind, exif=exif, **options)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "end"), [("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif")])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["center", "adm"])
def test_orientation_is_applied(tmp_path, kind, end, orientation, crop):
    path = stored(
        tmp_path,
        "folder",
        {f"a.{end}": photo(1, kind), f"b.{end}": photo(orientation, kind)},
    )
    data = prepare(path, tmp_path / "x.safetensors", resolution=4, crop=crop)
    first, second = as_bytes(data).astype(int)
    assert np.abs(first - second).max() <= (6 if kind == "JPEG" else 1)
    assert first.std() > 50
    turned = "1 image(s) are turned upright" in " ".join(data.notes)
    assert turned == (orientation != 1)
    if crop == "center":
        np.testing.assert_array_equal(as_bytes(ImageFolder(path, 4)), as_bytes(data))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L with a colour", "RGB with a colour"])
@pytest.mark.parametrize(("name", "colour"), [("white", (255,) * 3), ("#0000ff", (0, 0, 255))])
def test_transparency_is_composited(tmp_path, mode, name, colour):
    buffer = io.BytesIO()
    if mode in {"RGBA", "LA"}:
        Image.new(mode, (4, 4)).save(buffer, "PNG")
    elif mode == "P":
        Image.new("P", (4, 4)).save(buffer, "PNG", transparency=0)
    elif mode.startswith("L"):
        Image.new("L", (4, 4)).save(buffer, "PNG", transparency=0)
    else:
        Image.new("RGB", (4, 4)).save(buffer, "PNG", transparency=(0, 0, 0))
    path = stored(tmp_path, "folder", {"a.png": buffer.getvalue()})
    data = read(path, background=name)
    grey = name == "white" and mode != "RGBA" and not mode.startswith("RGB")
    assert data.shape[0] == (1 if grey else 3)
    assert as_bytes(data)[0, :, 0, 0].tolist() == list(colour)[: data.shape[0]]
    assert f"composited on {name}" in told(data)
    three = ImageFolder(path, 4, background=name, channels=3)
    assert as_bytes(three)[0, :, 1, 1].tolist() == list(colour)


def test_a_colour_that_is_none(tmp_path):
    path = stored(tmp_path, "folder", {"a.png": PNG})
    for read_it in (
        lambda: ImageFolder(path, 4, background="whitish"),
        lambda: prepare(path, tmp_path / "x.safetensors", resolution=4, background="whitish"),
    ):
        with pytest.raises(UsageError, match="background='whitish'; expected a colour"):
            read_it()


@pytest.mark.parametrize("end", ["tif", "tiff", "gif", "jfif", "ppm", "pgm", "bmp", "webp", "TIF"])
def test_other_suffixes(tmp_path, end):
    kind = {"tif": "TIFF", "jfif": "JPEG", "pgm": "PPM", "ppm": "PPM"}
    buffer = io.BytesIO()
    grey = Image.new("L", (4, 4), 200)
    grey.save(buffer, kind.get(end, "TIFF" if end.lower().startswith("tif") else end.upper()))
    files = {"cat/0.png": PNG, f"dog/0.{end}": buffer.getvalue()}
    data = read(stored(tmp_path, "folder", files))
    assert (len(data), data.class_names) == (2, ("cat", "dog"))
    assert np.abs(as_bytes(data)[1].astype(int) - 200).max() <= 1
    assert data.shape == (3 if end == "webp" else 1, 4, 4)


def test_the_first_of_several_frames(tmp_path):
    buffer = io.BytesIO()
    frames = [Image.new("L", (4, 4), level) for level in (10, 250)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    data = read(stored(tmp_path, "folder", {"a.gif": buffer.getvalue()}))
    assert np.unique(as_bytes(data)).tolist() == [10]
    assert "1 image(s) have several frames, of which the first is read" in told(data)


def test_kinds_that_need_a_package(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_installed", lambda kind: False)
    files = {"cat/0.png": PNG, "dog/0.png": PNG, "dog/1.heic": b"?", "fox/0.HEIC": b"?"}
    path = stored(tmp_path, "folder", files | {"cat/1.avif": b"?", "cat/notes.txt": b"?"})
    data = read(path)
    assert len(data) == 2
    assert "3 picture(s) are of a kind that is not read: 2 .heic, 1 .avif" in told(data)
    assert "fewstep[heic]" in told(data)
    for name in ("cat/0.png", "dog/0.png"):
        (path / name).unlink()
    with pytest.raises(UsageError, match=r"holds no images.*2 \.heic, .*fewstep\[heic\]"):
        ImageFolder(path, 4)


def test_avif(tmp_path):
    if formats.kind_of(".avif") is None:
        pytest.skip("Pillow was built without AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(buffer, "AVIF", quality=100)
    data = read(stored(tmp_path, "folder", {"a.avif": buffer.getvalue()}))
    assert np.abs(as_bytes(data)[0, :, 2, 2].astype(int) - (200, 30, 30)).max() <= 4


def test_grey_and_colour_by_turns_have_three_channels(tmp_path):
    red = np.broadcast_to(np.array([200, 0, 0], np.uint8), (4, 4, 3))
    files = {f"{i:02d}a.png": PNG for i in range(33)} | {
        f"{i:02d}b.png": encoded(red) for i in range(33)
    }
    data = read(stored(tmp_path, "folder", files))
    assert data.shape == (3, 4, 4)
    assert "33 of 66 image(s) are grey, the others have colour" in told(data)


def test_a_palette_of_greys_is_grey(tmp_path):
    grey = Image.fromarray(pixels(4, 4)).convert("P")
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    assert read(stored(tmp_path, "folder", {"a.png": buffer.getvalue()})).shape == (1, 4, 4)


def deep_colour(values: np.ndarray) -> bytes:
    """A PNG of 16 bits and three or four channels, which Pillow cannot write."""
    height, width, channels = values.shape
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header += bytes([16, {3: 2, 4: 6}[channels], 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_images_are_scaled(tmp_path, bits, channels):
    x = pixels(4, 4, channels)
    x[0, 0, :3] = 255
    wide = x.astype(np.uint16) << (bits - 8) | 5
    if channels == 4:
        wide[..., 3] = 2**bits - 1
    content = encoded(wide[..., 0]) if channels == 1 else deep_colour(wide)
    data = read(stored(tmp_path, "folder", {"a.png": content}))
    np.testing.assert_array_equal(as_bytes(data)[0], x[..., :3].transpose(2, 0, 1))
    assert "more than 8 bits" in told(data)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bright", ["a.png", "z.png"])
def test_one_image_of_16_bits_says_that_all_have_them(tmp_path, channels, bright):
    dark = np.full((4, 4, channels), 3000, np.uint16)
    full = np.full((4, 4, channels), 60_000, np.uint16)

    def content(values):
        return encoded(values[..., 0]) if channels == 1 else deep_colour(values)

    files = {"m.png": content(dark), bright: content(full), "0.png": encoded(pixels(4, 4))}
    data = read(stored(tmp_path, "folder", files))
    levels = dict(zip(data.names, as_bytes(data)[:, 0, 0, 0].tolist(), strict=True))
    assert (levels["m.png"], levels[bright]) == (3000 >> 8, 60_000 >> 8)
    assert "2 image(s) have more than 8 bits and are read as 16 bits" in told(data)


def test_images_of_12_bits_are_named_so(tmp_path):
    dark = np.full((4, 4), 3000, np.uint16)
    data = read(stored(tmp_path, "folder", {"a.png": encoded(dark), "b.png": encoded(dark)}))
    assert as_bytes(data).max() == 3000 >> 4
    assert "2 image(s) have more than 8 bits and are read as 12 bits" in told(data)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 4), np.float32), "holds floats"),
        (np.full((4, 4), 70_000, np.int32), r"outside \[0, 65535\]"),
    ],
)
def test_tiffs_of_unknown_range(tmp_path, array, message):
    path = stored(tmp_path, "folder", {"a.tif": encoded(array, "TIFF")})
    with pytest.raises(UsageError, match=rf"a\.tif in .* {message}"):
        ImageFolder(path, 4)


def test_damaged_tiffs_and_gifs_are_named(tmp_path):
    for end, kind in (("gif", "GIF"), ("tif", "TIFF"), ("ppm", "PPM")):
        content = encoded(pixels(40, 40), kind)
        for cut in (0, 5, 30, len(content) // 2):
            folder = tmp_path / f"{end}{cut}"
            folder.mkdir()
            (folder / f"a.{end}").write_bytes(content[:cut])
            with pytest.raises(UsageError, match=rf"^a\.{end} in "):
                ImageFolder(folder, 4)
