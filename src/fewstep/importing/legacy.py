"""What ``torch.save`` wrote before zip files, and still writes for a storage inside of a pickle."""

from __future__ import annotations

import struct
from typing import Any

from fewstep.importing.inert import Broken, Name
from fewstep.importing.pickles import Reader
from fewstep.importing.storages import Storage, sized

MAGIC = 0x1950A86A20F9469CFC6C
"""The first value of such a file."""


def read_legacy(data: memoryview) -> Any:
    """The value of such a file.

    Raises:
        Broken: it is damaged, or it names something that is not read.
    """
    places: dict[str, int] = {}
    declared: dict[str, tuple[Any, Any]] = {}

    def storage(identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            raise Broken("a reference is no storage")
        _, kind, key, _, count = identifier[:5]
        if not isinstance(kind, Name) or not isinstance(key, str) or any(identifier[5:]):
            raise Broken("a storage is written in an unknown way")
        dtype, count = sized(kind.full, count, len(data))
        declared[key] = (dtype, count)

        def read() -> memoryview:
            return data[places[key] : places[key] + count * dtype.itemsize]

        return Storage(dtype, count, read)

    at = 0
    values: list[Any] = []
    for persist in (None, None, None, storage, None):
        reader = Reader(data, at, persist)
        values.append(reader.read())
        at = reader.at
    magic, _, system, value, keys = values
    if magic != MAGIC or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Broken("it is none of torch's files for this kind of machine")
    if not isinstance(keys, list) or {*map(str, keys)} != {*declared}:
        raise Broken("the list of its storages does not match")
    for key in map(str, keys):
        dtype, count = declared[key]
        if len(data) - at < 8 or struct.unpack("<q", data[at : at + 8])[0] != count:
            raise Broken("a storage has another size than declared")
        places[key] = at + 8
        at += 8 + count * dtype.itemsize
        if at > len(data):
            raise Broken("the file ends within a storage")
    return value


def nested_storage(data: memoryview) -> Storage:
    """The storage that such bytes hold."""
    value = read_legacy(data)
    if not isinstance(value, Storage):
        raise Broken("nested bytes are no storage")
    return value
