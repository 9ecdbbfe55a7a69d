import io
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.core import UsageError
from fewstep.data import Dataset, ImageFolder, decoding, images
from image_files import as_bytes, encoded, pixels, png_that_claims, stored

both = pytest.mark.parametrize("form", ["folder", "zip"])


@both
@pytest.mark.parametrize("limit", [2**30, 0])
def test_pixels_and_folder_labels(tmp_path, form, limit, monkeypatch):
    monkeypatch.setattr(images, "IN_MEMORY", limit)
    x = pixels(4, 6, 6, 3)
    names = ["dog/b.png", "dog/a/c.PNG", "cat/z.bmp", "cat/.hidden.png"]
    files = {n: encoded(x[i], "BMP" if "bmp" in n else "PNG") for i, n in enumerate(names)}
    path = stored(tmp_path, form, files | {"notes.txt": b"", "__MACOSX/dog/._b.png": b"no"})
    data = ImageFolder(path, 6)
    dataset: Dataset = data
    assert (len(dataset), dataset.shape, dataset.labels, dataset.image) == (3, (3, 6, 6), 2, True)
    assert data.names == ["cat/z.bmp", "dog/a/c.PNG", "dog/b.png"]
    assert data.class_names == ("cat", "dog")
    np.testing.assert_array_equal(as_bytes(data), x[[2, 1, 0]].transpose(0, 3, 1, 2))
    batch = data.batch([2, 0])
    assert batch.x0.dtype == torch.float32
    assert batch.x0.min() >= -1
    assert batch.x0.max() <= 1
    assert batch.cond["label"].tolist() == [1, 0]
    assert batch.cond["label"].dtype == torch.int64
    unlabelled = ImageFolder(path, 6, labels="none")
    assert (unlabelled.labels, unlabelled.class_names) == (0, ())
    assert unlabelled.batch([0]).cond == {}


@both
@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a.png", "b.png"], ()),
        (["x/a.png", "b.png"], ()),
        (["x/a.png", "x/b.png"], ()),
        (["x/a.png", "y/b.png"], ("x", "y")),
        (["top/y/a.png", "top/x/deep/b.png"], ("x", "y")),
        (["top/a.png", "top/x/b.png"], ()),
    ],
)
def test_classes_are_the_folders_below_the_common_one(tmp_path, form, names, classes):
    path = stored(tmp_path, form, {name: encoded(pixels(2, 2)) for name in names})
    assert ImageFolder(path, 2).class_names == classes


@both
def test_edm_labels(tmp_path, form):
    names = ["00000/img0.png", "00000/img1.png", "00001/img2.png"]
    files = {name: encoded(pixels(4, 4)) for name in names}
    labels = [[names[2], 1], [names[0], 6], [names[1], 0], ["elsewhere.png", 99]]
    path = stored(tmp_path, form, files | {"dataset.json": json.dumps({"labels": labels}).encode()})
    data = ImageFolder(path, 4)
    assert data.class_names == data.spec.class_names == ("0", "1", "6")
    assert data.batch([0, 1, 2]).cond["label"].tolist() == [2, 0, 1]
    assert "the labels 0, 1, 6 do not count from 0 without gaps" in data.notes[0]


def test_null_labels_win_over_folders(tmp_path):
    files = {name: encoded(pixels(4, 4)) for name in ("00000/a.png", "00001/b.png")}
    path = stored(tmp_path, "zip", files | {"dataset.json": b'{"labels": null}'})
    assert ImageFolder(path, 4).labels == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "it is cut short"),
        (b"\xff\xfe\xfa", "expected"),
        (b"[" * 100_000, "expected"),
        (b"[1, 2]", "a part of it is of another kind than expected"),
        (b"{}", "it has no entry 'labels'"),
        (b'{"labels": 3}', "a part of it is of another kind than expected"),
        (b'{"labels": [["a.png"]]}', "cannot be used"),
        (b'{"labels": [[["a.png"], 1]]}', "a part of it is of another kind than expected"),
        (b'{"labels": [["b.png", 1]]}', "no label for a.png"),
        (b'{"labels": [["a.png", -1]]}', "a.png the label -1"),
        (b'{"labels": [["a.png", 1.0]]}', r"a.png the label 1\.0"),
        (b'{"labels": [["a.png", true]]}', "a.png the label True"),
        (b'{"labels": [["a.png", "1"]]}', "a.png the label '1'"),
        (b'{"labels": [["a.png", [0, 1]]]}', r"a.png the label \[0, 1\]"),
        (b'{"labels": [["a.png", 99999999999999999999]]}', "a.png the label 9999"),
    ],
)
def test_bad_json_is_refused(tmp_path, text, message):
    path = stored(tmp_path, "folder", {"a.png": encoded(pixels(2, 2)), "dataset.json": text})
    with pytest.raises(UsageError, match=message) as caught:
        ImageFolder(path, 2)
    assert f"dataset.json in {path}" in str(caught.value)
    assert ImageFolder(path, 2, labels="none").labels == 0


def test_integer_reduction_is_the_mean_of_blocks_of_the_centre(tmp_path):
    x = pixels(8, 13)
    path = stored(tmp_path, "folder", {"a.png": encoded(x)})
    expected = x[:, 2:10].reshape(4, 2, 4, 2).astype(float).mean((1, 3))
    # Rounded once or twice (rows, then columns): at most one level apart.
    assert np.abs(as_bytes(ImageFolder(path, 4))[0, 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("side", "kind"), [(10, Image.Resampling.LANCZOS), (3, Image.Resampling.BICUBIC)]
)
def test_other_sizes_use_pillows_filters_on_the_crop_alone(tmp_path, side, kind):
    x = pixels(side + 7, side, 3)
    path = stored(tmp_path, "folder", {"a.png": encoded(x)})
    expected = np.asarray(Image.fromarray(x[3 : 3 + side]).resize((4, 4), kind))
    np.testing.assert_array_equal(as_bytes(ImageFolder(path, 4))[0], expected.transpose(2, 0, 1))


def test_large_jpeg_is_close_to_the_mean_of_blocks(tmp_path):
    wave = 128 + 100 * np.sin(np.arange(256) * 2 * np.pi / 40)
    rows, columns = np.meshgrid(wave, wave, indexing="ij")
    x = np.stack([rows, columns, (rows + columns) / 2], 2).astype(np.uint8)
    content = encoded(x, "JPEG", quality=95, subsampling=0)
    path = stored(tmp_path, "folder", {"a.jpg": content})
    expected = x.reshape(64, 4, 64, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    error = np.abs(as_bytes(ImageFolder(path, 64))[0] - expected)
    assert error.max() < 6  # JPEG's own loss


def test_formats_and_modes(tmp_path):
    grey = pixels(4, 4)
    deep = grey.astype(np.uint16) * 256 + 100
    colour = pixels(4, 4, 3)
    palette = Image.fromarray(colour).quantize(8)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes([0, 128] * 4))
    share = pixels(4, 4, 1)
    rgba = np.concatenate([colour, share], 2)
    share = share / 255
    files = {
        "1-grey.png": encoded(grey),
        "2-deep.png": encoded(deep),
        "3-bit.png": encoded(grey > 127),
        "4-grey-alpha.png": encoded(np.stack([grey, grey], 2)),
        "5-alpha.png": encoded(rgba),
        "6-palette.png": buffer.getvalue(),
        "7-lossless.webp": encoded(colour, "WEBP", lossless=True),
    }
    data = ImageFolder(stored(tmp_path, "folder", files), 4)
    assert data.shape == (3, 4, 4)
    levels = as_bytes(data)
    for row, expected in enumerate([grey, grey, (grey > 127) * 255]):
        np.testing.assert_array_equal(levels[row], np.broadcast_to(expected, (3, 4, 4)))
    own = grey / 255
    half = np.asarray(palette)[..., None] % 2 * (128 / 255)
    for row, expected in [
        (3, np.broadcast_to((own * own + 1 - own)[..., None] * 255, (4, 4, 3))),
        (4, colour * share + 255 * (1 - share)),
        (5, np.asarray(palette.convert("RGB")) * half + 255 * (1 - half)),
        (6, colour),
    ]:
        # Compositing rounds once.
        assert np.abs(levels[row] - expected.transpose(2, 0, 1)).max() <= 0.51


def test_channels_follow_the_images_unless_given(tmp_path):
    grey = pixels(4, 4)
    files = {"a.png": encoded(grey), "b.png": encoded(grey.astype(np.uint16) * 256 + 100)}
    path = stored(tmp_path, "folder", files)
    assert ImageFolder(path, 4).shape == (1, 4, 4)
    np.testing.assert_array_equal(as_bytes(ImageFolder(path, 4)), np.stack([grey, grey])[:, None])
    assert ImageFolder(path, 4, channels=3).shape == (3, 4, 4)
    (path / "c.png").write_bytes(encoded(pixels(4, 4, 3)))
    assert ImageFolder(path, 4).shape == (3, 4, 4)
    assert ImageFolder(path, 4, channels=1).shape == (1, 4, 4)


def test_odd_exif_does_not_warn(tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x1a\0\x05\0\0\0\x01\0\0\xff\xff"
    content = encoded(pixels(8, 8, 3), "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="Truncated"):
        Image.open(io.BytesIO(content))
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        ImageFolder(stored(tmp_path, "folder", {"a.jpg": content}), 4)
    assert not raised


GOOD = encoded(pixels(16, 16, 3))
BAD_FILES = {
    "empty": (b"", "of a kind that is not read"),
    "text": (b"not an image", "of a kind that is not read"),
    "truncated png": (GOOD[: len(GOOD) // 2], "truncated"),
    "damaged png": (GOOD[:300] + bytes(100) + GOOD[400:], "broken"),
    "truncated jpeg": (encoded(pixels(64, 64, 3), "JPEG")[:2000], "truncated"),
    "another format": (encoded(pixels(4, 4), "GIF"), "of a kind that is not read"),
    # Pillow is silent, warns and raises at these sizes.
    "70 megapixels": (png_that_claims(7000, 10_000), "64 megapixels"),
    "100 megapixels": (png_that_claims(10_000, 10_000), "64 megapixels"),
    "900 megapixels": (png_that_claims(30_000, 30_000), "64 megapixels"),
}


@both
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named(tmp_path, form, channels, content, message):
    path = stored(tmp_path, form, {"a.png": GOOD, "sub/bad.png": content, "z.png": GOOD})
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UsageError, match=f"^sub/bad.png in {path} ") as caught:
        ImageFolder(path, 4, channels=channels)
    assert message in str(caught.value)
    assert limit == Image.MAX_IMAGE_PIXELS


@both
def test_a_bad_file_is_named_on_access(tmp_path, form, monkeypatch):
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    path = stored(tmp_path, form, {"a.png": GOOD, "bad.png": GOOD[:300]})
    data = ImageFolder(path, 4)
    assert len(data.batch([0, 0])) == 2
    with pytest.raises(UsageError, match=r"bad\.png"):
        data.batch([0, 1])


@both
def test_oversized_files_are_not_read(tmp_path, form, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 1000)
    path = stored(tmp_path, form, {"a.png": GOOD[:900], "b.png": bytes(5000)})
    with pytest.raises(UsageError, match=r"b\.png in .* has 5000 bytes; at most 1000"):
        ImageFolder(path, 4)


def test_a_damaged_zip_member_is_named(tmp_path):
    path = stored(tmp_path, "zip", {"a.png": GOOD})
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.png in .*data\.zip"):
        ImageFolder(path, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resolution": 0}, "resolution=0"),
        ({"channels": 2}, "channels=2"),
        ({"labels": "json"}, "labels='json'"),
        ({"on_error": "ignore"}, "on_error=.ignore."),
        ({"resolution": 10_000}, "resolution=10000"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, given, message):
    with pytest.raises(UsageError, match=message):
        ImageFolder(tmp_path, **({"resolution": 4} | given))


def test_bad_paths_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        ImageFolder(tmp_path / "nowhere", 4)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"notes\.txt is neither a folder nor a zip"):
        ImageFolder(tmp_path / "notes.txt", 4)
    with pytest.raises(UsageError, match=r"holds no images.*\.png \.jpg"):
        ImageFolder(tmp_path, 4)
    with pytest.raises(UsageError, match=r"data\.zip holds no images"):
        ImageFolder(stored(tmp_path, "zip", {"notes.txt": b""}), 4)


@both
def test_bad_files_are_skipped_and_listed(tmp_path, form):
    x = pixels(3, 4, 4, 3)
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(x[i]) for i in range(3)}
    bad = {"a/bad.png": GOOD[:300], "b/0.png": b"", "c/only.png": png_that_claims(9000, 9000)}
    path = stored(tmp_path, form, files | bad)
    data = ImageFolder(path, 4, on_error="skip")
    assert data.names == ["a/0.png", "a/2.png", "b/1.png"]
    assert data.batch([0, 1, 2]).cond["label"].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(as_bytes(data), x[[0, 2, 1]].transpose(0, 3, 1, 2))
    assert data.class_names == ("a", "b", "c")
    assert [name for name, _ in data.skipped] == sorted(bad)
    reasons = " ".join(reason for _, reason in data.skipped)
    assert "truncated" in reasons
    assert "64 megapixels" in reasons
    assert str(tmp_path) not in reasons
    with pytest.raises(UsageError, match=r"b/0\.png"):
        ImageFolder(path, 4)


def test_bad_files_are_skipped_only_if_all_can_be_decoded_at_once(tmp_path, monkeypatch):
    path = stored(tmp_path, "folder", {"a.png": GOOD, "b.png": b""})
    monkeypatch.setattr(images, "IN_MEMORY", 2 * 3 * 16 - 1)
    with pytest.raises(UsageError, match=r"run fewstep data prepare .*data .* --on-error skip"):
        ImageFolder(path, 4, on_error="skip")
    monkeypatch.setattr(images, "IN_MEMORY", 2 * 3 * 16)
    assert len(ImageFolder(path, 4, on_error="skip")) == 1


def test_nothing_usable_is_refused_even_if_skipping(tmp_path):
    path = stored(tmp_path, "folder", {"a.png": b"", "b.png": b""})
    with pytest.raises(UsageError, match=r"no usable image; a\.png is broken"):
        ImageFolder(path, 4, on_error="skip")
