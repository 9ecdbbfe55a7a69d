"""Folders of shards that any number of processes write, and that killed commands go on with.

A shard is a safetensors file whose bytes depend on the command alone. Its header says to which
settings it belongs and what its tensors' sha256 is, so a half-written or foreign file is never
taken for a shard. Processes share the folder, a record and the locks in a file beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.core import UsageError
from fewstep.system.files import lock, unlock

M = TypeVar("M", bound=BaseModel)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        # As bytes, because numpy has no bfloat16.
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def packed(tensors: Mapping[str, Tensor], key: str, stamp: str) -> bytes:
    """A shard as it lies on the disk; the same tensors give the same bytes.

    Args:
        tensors: by name.
        key: of the entry in the header, e.g. pairs: what the shards hold.
        stamp: what the settings and the shard's number are known by.
    """
    # One key only: safetensors does not keep the order of several.
    whole = {name: value.contiguous() for name, value in tensors.items()}
    return save(whole, {key: json.dumps([stamp, digest_of(tensors)])})


def unpacked(
    path: Path,
    key: str,
    stamp: str,
    shapes: Mapping[str, Sequence[int]],
    again: str,
    *,
    verify: bool = False,
) -> dict[str, Tensor]:
    """A shard's tensors, mapped.

    Args:
        path: of the shard.
        key: of the entry in the header.
        stamp: that it must have.
        shapes: of its tensors by name.
        again: what to do where it is damaged, for messages.
        verify: compare the sha256 too.

    Raises:
        UsageError: it is missing, cut short or another one; with ``verify``, changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            own, digest = json.loads(file.metadata()[key])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); {again}") from error
    held = {name: [*value.shape] for name, value in tensors.items()}
    if own != stamp or held != {name: [*shape] for name, shape in shapes.items()}:
        raise UsageError(f"{path} is no shard of these {key}; {again}")
    if verify and digest != digest_of(tensors):
        raise UsageError(f"{path} does not match its sha256; {again}")
    return tensors


def read_record(path: Path, kind: type[M], missing: str, again: str) -> M:
    """What the record of a folder says.

    Args:
        path: of the record.
        kind: of it.
        missing: what to say where there is none.
        again: what to do where it is damaged.

    Raises:
        UsageError: it is missing or of another kind.
    """
    if not path.is_file():
        raise UsageError(missing)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path} is damaged, or of another version ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}); {again}"
        ) from error


@contextmanager
def held(handle: Any, byte: int, what: str, wait: bool = True) -> Iterator[None]:
    """Hold one byte of the folder's lock, which goes with the process.

    Args:
        handle: the open file of locks.
        byte: 0 for the record, 1 + i for shard i.
        what: is being made, for the message.
        wait: until another process lets go of it.

    Raises:
        UsageError: another process holds it.
    """
    if not lock(handle, byte, 1, wait=wait):
        raise UsageError(f"another process is making {what}; wait for it, or stop it")
    try:
        yield
    finally:
        unlock(handle, byte, 1)


def file_digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], out: Path, what: str
) -> None:
    """Refuse to go on in a folder that was begun with other settings.

    Raises:
        UsageError: they differ; the message lists what does.
    """
    changed = [
        f"{name}: was {before.get(name)!r}, now {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"{out} holds {what} with other settings:\n  "
            + "\n  ".join(changed)
            + "\nrepeat them to go on, or choose another --out"
        )
