"""Files of checkpoints, recognised by what is in them and never by their names."""

from __future__ import annotations

import json
import mmap
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UsageError, in_words
from fewstep.importing.inert import Broken, Name
from fewstep.importing.legacy import MAGIC, read_legacy
from fewstep.importing.pickles import Reader
from fewstep.importing.storages import Lazy, Storage, sized

LARGEST_JSON = 2**24
"""Bytes of a description in JSON; the largest indices have some hundred thousands."""

DAMAGED = (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, RuntimeError, struct.error)
"""What Python's reader of zip files raises where one is damaged."""

EXPECTED = (
    "expected a file of torch.save (.pt, .pth, .ckpt), a network pickle of NVIDIA's repositories "
    "(.pkl), a .safetensors file, or a folder that diffusers wrote"
)


@dataclass(frozen=True)
class Archive:
    """What a file or a folder holds, before any format is recognised.

    Args:
        source: the file or the folder.
        kind: ``torch``, ``pickle``, ``safetensors`` or ``folder``.
        content: mappings, lists, numbers, text, inert objects and unread tensors; of a folder the
            names of its entries.
        size: bytes of the file; 0 of a folder.
    """

    source: Path
    kind: str
    content: Any
    size: int


def open_archive(source: Path) -> Archive:
    """What is there.

    Raises:
        UsageError: nothing is there, it is of no known kind, or it is damaged.
    """
    if source.is_dir():
        return Archive(source, "folder", sorted(entry.name for entry in source.iterdir()), 0)
    if not source.is_file():
        raise UsageError(f"{source}: there is no such file or folder; {EXPECTED}")
    size = source.stat().st_size
    if not size:
        raise UsageError(f"{source}: the file is empty; {EXPECTED}")
    with source.open("rb") as handle:
        data = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        kind, content = _content(source, data)
    except (Broken, *DAMAGED) as error:
        raise UsageError(f"{source} cannot be read: {in_words(error)}; {EXPECTED}") from error
    return Archive(source, kind, content, size)


def _content(source: Path, data: memoryview) -> tuple[str, Any]:
    head = bytes(data[:16])
    if head[:2] == b"PK":
        return "torch", _zipped(source, len(data))
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        if _starts_with_magic(data):
            return "torch", read_legacy(data)
        return "pickle", Reader(data).read()
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= len(data) - 8:
        return "safetensors", read_safetensors(source)
    if head[:2] == b"\x1f\x8b":
        raise Broken("it is packed by gzip; unpack it with gunzip first")
    raise Broken("it begins like no checkpoint that is known")


def _starts_with_magic(data: memoryview) -> bool:
    try:
        return Reader(data[:64]).read() == MAGIC
    except Broken:
        return False


def _zipped(source: Path, size: int) -> Any:
    """The value in a file of torch.save, whose tensors are members of the zip."""
    # It stays open as long as there are tensors to read from it.
    archive = zipfile.ZipFile(source)
    members = {member.filename: member for member in archive.infolist()}
    total = 0
    for member in members.values():
        total += member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            name = member.filename[:100]
            raise Broken(f"its member {name!r} is packed, which torch never does")
        if member.file_size != member.compress_size or total > size:
            raise Broken("its members declare more bytes than the file has")
    roots = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise Broken("it is a zip file, but none of torch.save")
    folder = roots[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise Broken("it is a TorchScript program, which would have to be executed")
    order = f"{folder}byteorder"
    if order in members and archive.read(order) != b"little":
        raise Broken("it was written by a machine with another order of bytes")

    def storage(identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) != 5 or identifier[0] != "storage":
            raise Broken("a reference is no storage")
        _, kind, key, _, count = identifier
        name = f"{folder}data/{key}"
        if not isinstance(kind, Name) or name not in members:
            raise Broken(f"the storage {str(key)[:100]!r} is missing")
        dtype, count = sized(kind.full, count, members[name].file_size)

        def read() -> bytes:
            try:
                return archive.read(name)[: count * dtype.itemsize]
            except DAMAGED as error:
                raise UsageError(
                    f"{source} cannot be read: {in_words(error)}; the file is damaged"
                ) from error

        return Storage(dtype, count, read)

    return Reader(memoryview(archive.read(roots[0])), 0, storage).read()


def read_safetensors(source: Path) -> dict[str, Lazy]:
    """The tensors of a safetensors file, by name.

    Raises:
        Broken: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as opened:
            tensors = {}
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                dtype = _SAFE.get(part.get_dtype())
                if dtype is None:
                    raise Broken(f"{name[:100]!r} holds numbers of the kind {part.get_dtype()}")
                tensors[name] = Lazy(tuple(part.get_shape()), dtype, _safe(source, name))
    except SafetensorError as error:
        raise Broken(str(error)) from error
    return tensors


def _safe(source: Path, name: str) -> Any:
    from safetensors import safe_open

    def load() -> Tensor:
        with safe_open(source, framework="pt") as opened:
            return opened.get_tensor(name).clone()

    return load


_SAFE: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_json(path: Path) -> dict[str, Any]:
    """A description in JSON.

    Raises:
        UsageError: it is missing, too large or none.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UsageError(f"{path} is too large to be a description; it has over 16 MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {in_words(error)}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a mapping in JSON, got {type(value).__name__}")
    return value
