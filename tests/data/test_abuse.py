"""Files made to break readers: each is named or listed, and none runs code or eats memory."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import re
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.core import UsageError
from fewstep.data import ImageFolder, Prepared, formats, prepare
from image_files import as_bytes, chunk, encoded, idx, pixels, png_that_claims, shard, stored

GOOD_PIXELS = pixels(4, 4, 3)
GOOD = encoded(GOOD_PIXELS)
NOISE = encoded(pixels(40, 40, 3))
JPEG = encoded(pixels(64, 64, 3), "JPEG")
WEBP = encoded(pixels(64, 64, 3), "WEBP", lossless=True)
BMP = encoded(pixels(40, 40, 3), "BMP")
MUCH = 400
"""MiB that a bomb unpacks to."""
LIMIT = 288 * 2**20
"""Bytes of address space that one reading may add."""
OUT_OF_MEMORY = "needs more memory|MemoryError|malloc|realloc|bad_alloc"


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Whoever asks for much more than an image needs gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Bomb:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    with pytest.raises(UsageError, match=re.escape(name)) as caught:
        yield
    assert not re.search(OUT_OF_MEMORY, str(caught.value))


# One image among good ones.


def png(*chunks: bytes, size: tuple[int, int] = (4, 4), kind: bytes = b"\x08\x02\0\0\0") -> bytes:
    header = chunk(b"IHDR", struct.pack(">II", *size) + kind)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


def jpeg_that_claims(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def bmp_that_claims(width: int, height: int, bits: int = 24, packing: int = 0) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + sizes + bytes(100)


def bomb(
    size: int = MUCH, name: str = "a.png", packing: int = zipfile.ZIP_DEFLATED, start: bytes = b""
) -> bytes:
    """A zip of one member of that many MiB."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", packing, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(size):
            member.write(bytes(2**20))
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PACKED_ZEROS = zlib.compress(bytes(100 * 2**20), 1)
IMAGES = {
    "empty": b"",
    "one byte": b"\x89",
    "text": b"not an image",
    "page": b"<!DOCTYPE html><img src='x'>",
    "drawing": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "script of ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(executed) print",
    "pickle": pickle.dumps(Bomb()),
    "gif": encoded(pixels(4, 4), "GIF"),
    "tiff": encoded(pixels(4, 4), "TIFF"),
    "icon": encoded(pixels(16, 16, 3), "ICO"),
    "nested zip": zipped(a=GOOD),
    "only a signature": GOOD[:8],
    "png without pixels": GOOD[:33],
    "png cut short": NOISE[: len(NOISE) // 2],
    "png with damaged pixels": NOISE[:300] + bytes(100) + NOISE[400:],
    "png with a damaged header": NOISE[:20] + b"\xff" + NOISE[21:],
    "png of no width": png(chunk(b"IDAT", zlib.compress(b"")), size=(0, 4)),
    "png of an unknown kind": png(
        chunk(b"IDAT", zlib.compress(b"\0" * 52)), kind=b"\x07\x09\0\0\0"
    ),
    "png of too few pixels": png(chunk(b"IDAT", zlib.compress(b"\0")), size=(4, 4)),
    "png with an endless chunk": png((2**31 - 1).to_bytes(4, "big") + b"IDAT" + bytes(50)),
    "png with text that unpacks to much": png(chunk(b"zTXt", b"a\0\0" + PACKED_ZEROS)),
    "png with a profile that unpacks to much": png(chunk(b"iCCP", b"a\0\0" + PACKED_ZEROS)),
    "png of 70 megapixels": png_that_claims(7000, 10_000),
    "png of 900 megapixels": png_that_claims(30_000, 30_000),
    "png of 2^62 pixels": png_that_claims(2**31 - 1, 2**31 - 1),
    "png that is a line of 2^31": png_that_claims(2**31 - 1, 1),
    "jpeg that is a start": b"\xff\xd8\xff",
    "jpeg cut short": JPEG[:2000],
    "jpeg of 4 gigapixels": jpeg_that_claims(65_535, 65_535),
    "jpeg with a damaged table": JPEG[:22] + bytes(60) + JPEG[82:],
    "webp cut short": WEBP[: len(WEBP) // 2],
    "webp with a damaged header": WEBP[:16] + bytes(30) + WEBP[46:],
    "bmp cut short": BMP[: len(BMP) // 2],
    "bmp of 4 gigapixels": bmp_that_claims(2**16, 2**16),
    "bmp of negative width": bmp_that_claims(-4, 4),
    "bmp of the lowest height": bmp_that_claims(4, -(2**31)),
    "bmp of no bits": bmp_that_claims(4, 4, bits=0),
    "bmp packed by run lengths that end": bmp_that_claims(4000, 4000, bits=8, packing=1),
}


def in_folder(root: Path, content: bytes) -> tuple[Path, str, str]:
    files = {"a.png": GOOD, "b.png": content, "c.png": GOOD}
    return stored(root, "folder", files), "b.png", "b.png in"


def in_zip(root: Path, content: bytes) -> tuple[Path, str, str]:
    files = {"a.png": GOOD, "b.png": content, "c.png": GOOD}
    return stored(root, "zip", files), "b.png", "b.png in"


def in_tar(root: Path, content: bytes) -> tuple[Path, str, str]:
    files = {"a.png": GOOD, "b.jpg": content, "c.png": GOOD}
    return shard(root / "0.tar", files), "0.tar/b.jpg", "b.jpg in"


def in_parquet(root: Path, content: bytes) -> tuple[Path, str, str]:
    table = pytest.importorskip("pyarrow").table({"image": [GOOD, content, GOOD]})
    pytest.importorskip("pyarrow.parquet").write_table(table, root / "0.parquet")
    return root / "0.parquet", "0.parquet row 1", "row 1 in"


@pytest.mark.parametrize("put", [in_folder, in_zip, in_tar, in_parquet])
@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_a_hostile_image_is_named_or_listed(tmp_path, monkeypatch, put, content):
    monkeypatch.chdir(tmp_path)
    path, name, where = put(tmp_path, content)
    out = tmp_path / "x.safetensors"
    with refused(where):
        prepare(path, out, resolution=4)
    data = prepare(path, out, resolution=4, on_error="skip")
    np.testing.assert_array_equal(as_bytes(data), [GOOD_PIXELS.transpose(2, 0, 1)] * 2)
    assert [one for one, _ in data.about.skipped] == [name]
    assert not re.search(OUT_OF_MEMORY, data.about.skipped[0][1])
    if put in {in_folder, in_zip}:
        with refused(where):
            ImageFolder(path, 4)
        assert len(ImageFolder(path, 4, on_error="skip")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, out.name])


def tiff_of(*entries: tuple[int, int, int, int], after: int = 0, body: bytes = b"") -> bytes:
    """A TIFF of one directory of (tag, kind, count, value) at byte 8."""
    rows = b"".join(struct.pack("<HHII", *one) for one in entries)
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + rows
        + (struct.pack("<I", after) + body)
    )


def tiff_that_claims(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    sizes = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1))
    return tiff_of(*sizes, (262, 3, 1, 1), (273, 4, 1, 8), *more, body=bytes(100))


def gif_that_claims(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    return screen + b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x01\0\0;"


TIFF = encoded(pixels(40, 40, 3), "TIFF")
GIF = encoded(pixels(40, 40), "GIF")
OTHERS = {
    "tiff that is a start": ("tif", b"II*\0"),
    "tiff cut short": ("tif", TIFF[: len(TIFF) // 2]),
    "tiff with damaged pixels": ("tif", tiff_that_claims(40, 40, (279, 4, 1, 1600))),
    "tiff of 4 gigapixels": ("tif", tiff_that_claims(2**16, 2**16)),
    "tiff of 2^62 pixels": ("tif", tiff_that_claims(2**31 - 1, 2**31 - 1)),
    "tiff with a tag of 4 gigabytes": ("tif", tiff_that_claims(40, 40, (700, 1, 2**32 - 1, 8))),
    "tiff with strips of 4 gigabytes": ("tif", tiff_that_claims(40, 40, (279, 4, 2**30, 8))),
    "tiff that leads to itself": ("tif", tiff_of(*[(1, 1, 1, 0)] * 3, after=8)),
    "gif that is a start": ("gif", b"GIF89a"),
    "gif cut short": ("gif", GIF[: len(GIF) // 2]),
    "gif of 4 gigapixels": ("gif", gif_that_claims(65_535, 65_535)),
    "gif without pixels": ("gif", gif_that_claims(40, 40)),
    "ppm that is a start": ("ppm", b"P6"),
    "ppm of 4 gigapixels": ("ppm", b"P6 65535 65535 255 " + bytes(100)),
    "ppm cut short": ("ppm", b"P6 40 40 255 " + bytes(100)),
    "ppm of a long number": ("pgm", b"P5 " + b"9" * 5000 + b" 4 255 "),
    "ppm of floats": ("ppm", b"Pf 4 4 -1.0\n" + bytes(64)),
    "jpeg whose orientation is odd": (
        "jfif",
        JPEG[:2] + b"\xff\xe1\0\x20Exif\0\0II*\0\xff\xff\xff\xff" + bytes(16) + JPEG[2:2000],
    ),
    "heif of garbage": ("avif", b"\0\0\0\x1cftypavif" + bytes(100)),
}


@pytest.mark.parametrize("put", [in_folder, in_zip, in_tar])
@pytest.mark.parametrize(("end", "content"), OTHERS.values(), ids=OTHERS)
def test_a_hostile_image_of_another_kind(tmp_path, monkeypatch, put, end, content):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, "_installed", lambda kind: True)
    if end == "avif" and not Image.EXTENSION.get(".avif"):
        pytest.skip("Pillow was built without AVIF")
    files = {"a.png": GOOD, f"b.{end}": content, "c.png": GOOD}
    path = shard(tmp_path / "0.tar", files) if put is in_tar else None
    path = path or stored(tmp_path, "zip" if put is in_zip else "folder", files)
    out = tmp_path / "x.safetensors"
    with refused(f"b.{end} in"):
        prepare(path, out, resolution=4)
    assert len(prepare(path, out, resolution=4, on_error="skip")) == 2
    if put is not in_tar:
        with refused(f"b.{end} in"):
            ImageFolder(path, 4)
        assert len(ImageFolder(path, 4, on_error="skip")) == 2


# Whole containers.


def with_central(content: bytes, at: int, value: bytes) -> bytes:
    """A zip of one member whose directory lies in one field, by its place there."""
    data = bytearray(content)
    place = data.index(b"PK\1\2") + at
    data[place : place + len(value)] = value
    return bytes(data)


ONE = zipped(**{"a.png": NOISE})


def tarred(*members: tuple[tarfile.TarInfo, bytes], end: bool = True) -> bytes:
    content = b"".join(
        info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512) for info, body in members
    )
    return content + bytes(1024) * end


def entry(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def sparse(real: int) -> bytes:
    """A member in GNU's old sparse format that stands for ``real`` bytes and holds none."""
    header = bytearray(entry("a.png", 0, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"%011o\0" % 0
    header[398:410] = b"%011o\0" % 0
    header[483:495] = b"\x80" + real.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header) + bytes(1024)


def pax(records: bytes) -> bytes:
    return tarred(
        (entry("x", len(records), tarfile.XHDTYPE), records), (entry("a.png", 4), b"abcd")
    )


def npz(**arrays: np.ndarray | bytes) -> bytes:
    """Arrays, or raw bytes in place of an array's file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            if isinstance(array, bytes):
                member.write(array)
            else:
                np.save(member, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", member.getvalue())
    return buffer.getvalue()


def npy(header: str, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + body


def npy_of(shape: object, kind: str = "|u1", body: bytes = b"") -> bytes:
    return npy(repr({"descr": kind, "fortran_order": False, "shape": shape}) + "\n", body)


X = pixels(3, 3, 4, 4)


def parquet_of(change: Callable[[bytearray], object]) -> Callable[[], bytes]:
    def build() -> bytes:
        table = pytest.importorskip("pyarrow").table({"image": [GOOD] * 50})
        buffer = io.BytesIO()
        pytest.importorskip("pyarrow.parquet").write_table(table, buffer)
        data = bytearray(buffer.getvalue())
        change(data)
        return bytes(data)

    return build


def cut(n: int) -> Callable[[bytearray], None]:
    return lambda data: data.__delitem__(slice(n, None))


def flood(start: int, n: int) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(slice(start, start + n), b"\xff" * n)


def footer_of(size: int) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(slice(-8, -4), struct.pack("<I", size))


def labelled_bomb() -> bytes:
    buffer = io.BytesIO(bomb(name="dataset.json", start=b'{"labels": null}'))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("a.png", GOOD)
    return buffer.getvalue()


CONTAINERS: dict[str, tuple[str, bytes | Callable[[], bytes]]] = {
    # Zips.
    "garbage": ("x.zip", b"PK\3\4 this is no zip"),
    "zip of nothing": ("x.zip", zipped()),
    "zip of a zip": ("x.zip", zipped(**{"a.zip": ONE})),
    "zip cut short": ("x.zip", ONE[: len(ONE) // 2]),
    "zip without an end": ("x.zip", ONE[:-10]),
    "zip with a wrong checksum": ("x.zip", with_central(ONE, 16, b"abcd")),
    "zip with damaged content": ("x.zip", ONE[:60] + bytes(30) + ONE[90:]),
    "zip that announces too little": ("x.zip", with_central(ONE, 24, struct.pack("<I", 10))),
    "zip that announces too much": ("x.zip", with_central(ONE, 24, struct.pack("<I", 2**31))),
    "zip whose member lies beyond its end": ("x.zip", with_central(ONE, 42, b"\xff\xff\xff\x7f")),
    "zip that is locked": ("x.zip", with_central(ONE, 8, b"\1\0")),
    "zip of an unknown packing": ("x.zip", with_central(ONE, 10, struct.pack("<H", 97))),
    "zip that unpacks to much": ("x.zip", lambda: bomb(100)),
    "zip that unpacks to more": ("x.zip", bomb),
    "zip whose member seems to be small": (
        "x.zip",
        lambda: with_central(bomb(), 24, struct.pack("<I", 100)),
    ),
    "zip whose bz2 member seems to be small": (
        "x.zip",
        lambda: with_central(bomb(packing=zipfile.ZIP_BZIP2), 24, struct.pack("<I", 100)),
    ),
    "zip of labels that unpack to much": ("x.zip", labelled_bomb),
    # Tars.
    "tar of nothing": ("x.tar", b""),
    "packed tar of nothing": ("x.tar.gz", b""),
    "packed tar of garbage": ("x.tgz", b"this is no gz" * 100),
    "packed tar of a packed garbage": ("x.tgz", gzip.compress(b"this is no tar" * 100)),
    "packed tar that is not packed": ("x.tar.gz", tarred((entry("a.png", len(GOOD)), GOOD))),
    "packed tar that unpacks to much": (
        "x.tar.gz",
        lambda: gzip.compress(tarred((entry("a.png", 2**26), bytes(2**26)))),
    ),
    "packed tar that announces 2^60": (
        "x.tgz",
        gzip.compress(tarred((entry("a.png", 2**60), GOOD))),
    ),
    "packed tar with a wrong checksum": (
        "a.tgz",
        gzip.compress(tarred((entry("a.png", len(GOOD)), GOOD)))[:-8] + bytes(8),
    ),
    "tar of garbage": ("x.tar", b"this is no tar" * 100),
    "tar that is packed": ("x.tar", gzip.compress(tarred((entry("a.png", len(GOOD)), GOOD)))),
    "tar with garbage inside": (
        "x.tar",
        tarred((entry("a.png", 3), b"abc"), end=False) + b"?" * 512,
    ),
    "tar that announces too much": ("x.tar", tarred((entry("a.png", 10**6), GOOD))),
    "tar that announces 2^60": ("x.tar", tarred((entry("a.png", 2**60), GOOD))),
    "tar of negative size": ("x.tar", tarred((entry("a", 0), b""), (entry("a.png", -1024), GOOD))),
    "tar of a sparse 2^60": ("x.tar", sparse(2**60)),
    "tar of a sparse 2^20": ("x.tar", sparse(2**20)),
    "tar with a name of 2^60": (
        "x.tar",
        tarred((entry("x", 2**60, tarfile.GNUTYPE_LONGNAME), b"a")),
    ),
    "tar with a name of negative size": (
        "x.tar",
        tarred((entry("x", -512, tarfile.GNUTYPE_LONGNAME), b"a")),
    ),
    "tar with headers of 2^60": ("x.tar", tarred((entry("x", 2**60, tarfile.XHDTYPE), b"a"))),
    "tar with odd headers": ("x.tar", pax(b"9999999999 size=1\n")),
    "tar with headers of no length": ("x.tar", pax(b"0 a=b\n" * 50)),
    "tar with an odd sparse map": (
        "x.tar",
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.size=abcdef\n"),
    ),
    "tar of headers of headers": (
        "x.tar",
        tarred(*[(entry("x", 0, tarfile.XHDTYPE), b"")] * 3000),
    ),
    "tar of devices": ("x.tar", tarred((entry("a.png", 0, tarfile.CHRTYPE), b""))),
    "tar of links": ("x.tar", tarred((entry("a.png", 0, tarfile.SYMTYPE), b""))),
    "tar of one name": ("x.tar", tarred(*[(entry("a.txt", 0), b"")] * 100)),
    # Arrays.
    "npz of garbage": ("x.npz", b"PK\3\4 this is no npz"),
    "npz of nothing": ("x.npz", npz()),
    "npz of other names": ("x.npz", npz(pictures=X)),
    "npz of pickled objects": ("x.npz", npz(x=np.array([Bomb()] * 3, object))),
    "npz of pickled labels": ("x.npz", npz(x=X, label=np.array([Bomb()] * 3, object))),
    "npz of a pickle": ("x.npz", npz(x=pickle.dumps(Bomb()))),
    "npz with code in a header": ("x.npz", npz(x=npy("__import__('os').mkdir('executed')\n"))),
    "npz with a deep header": ("x.npz", npz(x=npy("(" * 9000))),
    "npz with a long header": ("x.npz", npz(x=npy("{" + " " * 60_000 + "}"))),
    "npz of an unknown version": ("x.npz", npz(x=b"\x93NUMPY\x09\x09" + bytes(100))),
    "npz of floats": ("x.npz", npz(x=X.astype(np.float32))),
    "npz of records": ("x.npz", npz(x=np.zeros(3, [("a", "u1"), ("b", "u1")]))),
    "npz of columns first": ("x.npz", npz(x=np.asfortranarray(X))),
    "npz of one number": ("x.npz", npz(x=np.array(3, np.uint8))),
    "npz of no images": ("x.npz", npz(x=X[:0])),
    "npz of five channels": ("x.npz", npz(x=pixels(3, 5, 4, 4))),
    "npz of five axes": ("x.npz", npz(x=pixels(3, 1, 1, 4, 4))),
    "npz of rows of no square": ("x.npz", npz(data=pixels(3, 100))),
    "npz that announces too much": ("x.npz", npz(x=npy_of((10**9, 3, 64, 64)))),
    "npz that announces 2^80": ("x.npz", npz(x=npy_of((2**80, 3, 4, 4)))),
    "npz of negative shape": ("x.npz", npz(x=npy_of((-1, 3, 4, 4), body=bytes(48)))),
    "npz of a shape of words": ("x.npz", npz(x=npy_of(("a", 3), body=bytes(48)))),
    "npz with too few labels": ("x.npz", npz(x=X, label=np.zeros(2, np.int64))),
    "npz with float labels": ("x.npz", npz(x=X, label=np.zeros(3))),
    "npz with labels below 0": ("x.npz", npz(x=X, label=np.array([0, -1, 0]))),
    "npz with labels above all": ("x.npz", npz(x=X, label=np.array([0, 2**62, 0]))),
    "imagenet with a label of 0": ("x.npz", npz(data=pixels(2, 48), labels=np.array([0, 1]))),
    "npz that unpacks to much": ("x.npz", lambda: npz(x=np.zeros((100, 3, 600, 600), np.uint8))),
    "npz with damaged pixels": ("x.npz", (lambda c: c[:200] + bytes(20) + c[220:])(npz(x=X))),
    "npz cut short": ("x.npz", npz(x=pixels(50, 3, 4, 4))[:900]),
    # IDX.
    "idx of nothing": ("train-images-idx3-ubyte", b""),
    "idx of labels": ("train-images-idx3-ubyte", idx(np.zeros(3, np.uint8))),
    "idx of floats": ("train-images-idx3-ubyte", b"\0\0\x0d\3" + bytes(100)),
    "idx of too few images": ("train-images-idx3-ubyte", idx(pixels(3, 4, 4))[:-1]),
    "idx of too many images": ("train-images-idx3-ubyte", idx(pixels(3, 4, 4)) + b"\0"),
    "idx of 2^96 pixels": ("train-images-idx3-ubyte", b"\0\0\x08\3" + b"\xff" * 12),
    "idx of no images": ("train-images-idx3-ubyte", b"\0\0\x08\3" + bytes(12)),
    "idx of no width": ("train-images-idx3-ubyte", b"\0\0\x08\3\0\0\0\2\0\0\0\4\0\0\0\0"),
    "idx of garbage": ("train-images-idx3-ubyte.gz", b"this is no gz"),
    "idx cut short": ("train-images-idx3-ubyte.gz", gzip.compress(idx(pixels(9, 9, 9)))[:500]),
    "idx with a wrong checksum": (
        "train-images-idx3-ubyte.gz",
        gzip.compress(idx(pixels(3, 4, 4)))[:-8] + bytes(8),
    ),
    # Parquet.
    "parquet of nothing": ("x.parquet", b""),
    "parquet of garbage": ("x.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    "parquet that is encrypted": ("x.parquet", b"PARE" + bytes(100) + b"PARE"),
    "parquet cut short": ("x.parquet", parquet_of(cut(1000))),
    "parquet with a damaged page": ("x.parquet", parquet_of(flood(4, 20))),
    "parquet with a damaged footer": ("x.parquet", parquet_of(flood(-120, 60))),
    "parquet with a footer of 4 GB": ("x.parquet", parquet_of(footer_of(2**32 - 1))),
    "parquet with a footer of 0": ("x.parquet", parquet_of(footer_of(0))),
}


@pytest.mark.parametrize(("name", "content"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_hostile_container_is_named(tmp_path, monkeypatch, name, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    out = tmp_path / "x.safetensors"
    with refused(name):
        prepare(path, out, resolution=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    # Skipped images are listed, and nothing else is lost.
    skipped: tuple[tuple[str, str], ...] = ()
    with contextlib.suppress(UsageError):
        skipped = prepare(path, out, resolution=4, on_error="skip").about.skipped
    assert bool(skipped) == out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, *[out.name] * out.exists()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npz of pickled objects", "holds pickled objects, which are never read"),
        ("npz of pickled labels", "holds pickled objects, which are never read"),
        ("npz that announces too much", r"is shorter or longer than its shape \(1000000000, "),
        ("zip whose bz2 member seems to be small", "packed in another way than deflate"),
        ("tar that is packed", "cannot be read"),
        ("tar of a sparse 2^20", "is a link, a device or sparse"),
        ("parquet with a footer of 4 GB", "cannot be read"),
    ],
)
def test_the_reason_is_told(tmp_path, name, message):
    file, content = CONTAINERS[name]
    (tmp_path / file).write_bytes(content() if callable(content) else content)
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path / file, tmp_path / "x.safetensors", resolution=4)


def test_there_are_many():
    assert len(IMAGES) + len(CONTAINERS) >= 100


@pytest.mark.parametrize(
    "members",
    [
        {"/etc/a.png": GOOD},
        {"../../a.png": GOOD, "b.png": GOOD},
        {"a.png": GOOD, "a.png/": b"", "b.png/c.png": GOOD},
        {"c:\\a.png": GOOD},
    ],
    ids=["absolute", "above", "folder of an image's name", "drive"],
)
def test_odd_names_in_a_zip_lead_nowhere(tmp_path, members):
    path = stored(tmp_path, "zip", members)
    data = prepare(path, tmp_path / "x.safetensors", resolution=4)
    assert 1 <= len(data) <= 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zip", "x.safetensors"]


def test_a_link_in_a_zip_is_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(GOOD)
    info = zipfile.ZipInfo("a.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, str(tmp_path / "secret.png"))
    with refused("a.png in"):
        prepare(tmp_path / "x.zip", tmp_path / "x.safetensors", resolution=4)


def test_odd_entries_of_a_folder_are_no_images(tmp_path):
    path = stored(tmp_path, "folder", {"a.png": GOOD})
    os.mkfifo(path / "pipe.png")
    (path / "loop.png").symlink_to(path / "loop.png")
    (path / "gone.png").symlink_to(path / "nowhere")
    (path / "up").symlink_to(path, target_is_directory=True)
    (path / "folder.png").mkdir()
    assert len(prepare(path, tmp_path / "x.safetensors", resolution=4)) == 1
    assert len(ImageFolder(path, 4)) == 1


def test_names_that_are_no_text(tmp_path):
    path = stored(tmp_path, "folder", {"a/a.png": GOOD})
    folder = os.fsencode(path) + b"/\xff\xfe"
    os.mkdir(folder)  # noqa: PTH102
    for name in (b"b.png", b"\x1b[31m\n.png"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(GOOD if name == b"b.png" else b"")
    data = prepare(path, tmp_path / "x.safetensors", resolution=4, on_error="skip")
    assert Prepared(data.path).about.class_names == ("a", "??")
    assert data.about.skipped[0][0] == "??/?[31m?.png"
