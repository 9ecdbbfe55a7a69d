"""The files of a folder or a zip, read whole by their path inside it."""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile, check_size, naming, opened
from fewstep.data.formats import Header, header_of, is_hidden

MAX_RATIO = 200
"""How many times smaller than its content a part of a zip may be, if that exceeds 1 MiB."""
MAX_LINKED = 10_000
"""Folders that are reached through symbolic links."""


class Members:
    """The files of a folder or a zip, by their POSIX path inside it.

    It can be pickled, and used after a fork: each process opens the zip for itself.

    Args:
        path: the folder or zip.

    Symbolic links to folders are followed; those that lead nowhere, or back to where they lie, are
    passed over.

    Attributes:
        names: of all files.
        notes: what was passed over.

    Raises:
        UsageError: the path does not exist, or is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._place = path, str(path)  # paths of millions of files are not made anew
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        self._zipped = not path.is_dir()
        self.notes: tuple[str, ...] = ()
        if not self._zipped:
            _refuse_own(path)
            walk = _Walk(path)
            self.names = set(walk.files())
            self.notes = walk.notes()
            return
        if not path.exists():
            raise UsageError(f"{path} does not exist; give a folder or a zip of images")
        try:
            archive = self._archive()
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UsageError(
                f"{path} is neither a folder nor a zip of images; data prepare also reads .tar, "
                ".tar.gz, .tgz, .parquet, .npz and IDX files, and other archives must be unpacked"
            ) from error
        self.names = {info.filename for info in archive.infolist() if not info.is_dir()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def bare(self) -> Members:
        """The same without the list of names, for a process that is told what to read."""
        other = copy.copy(self)
        other.names, other.notes = set(), ()
        return other

    def where(self, name: str) -> str:
        """What messages call a file."""
        return f"{name} in {self._place}"

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            BadFile: it cannot be read, or has more than 256 MiB.
        """
        where = self.where(name)
        with naming(where):
            if self._zipped:
                archive = self._archive()
                info = archive.getinfo(name)
                check_size(info.file_size, where)
                with unpacked(archive, info, where) as file:
                    # Bounded reads do not unpack more than the archive announces.
                    return file.read(info.file_size + 1)
            with open(f"{self._place}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
                check_size(os.fstat(file.fileno()).st_size, where)
                return file.read()

    def opened(self, name: str) -> Image.Image:
        """An image with its header read and its size checked, not yet decoded.

        Raises:
            BadFile: it cannot be used.
        """
        return opened(self.read(name), self.where(name), name)

    def header(self, name: str) -> Header:
        """What the header of an image shows, of which no more is read.

        Raises:
            BadFile: it cannot be used.
        """
        where = self.where(name)
        with naming(where), self._stream(name, where) as file:
            return header_of(opened(file, where, name))

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked."""
        if self._zipped:
            return self._archive().getinfo(name).file_size
        return (self.path / name).stat().st_size

    @contextmanager
    def _stream(self, name: str, where: str) -> Iterator[IO[bytes]]:
        check_size(self.size(name), where)
        if self._zipped:
            archive = self._archive()
            with unpacked(archive, archive.getinfo(name), where) as file:
                yield file
        else:
            with (self.path / name).open("rb") as file:
                yield file

    def _archive(self) -> zipfile.ZipFile:
        # Processes that share an open file also share its position.
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return self._zip[1]


def _refuse_own(folder: Path) -> None:
    """Refuse the folder of a run or a model, whose pictures are no data.

    Raises:
        UsageError: it is one.
    """
    files = {file.name for file in folder.iterdir()}
    if {"run.json", "log.jsonl"} <= files or {"run.json", "checkpoints"} <= files:
        raise UsageError(
            f"{folder} is a run and not data; its run.json says what it learned from, and fewstep "
            "status says how far it is"
        )
    if {"config.json", "model.safetensors"} <= files:
        raise UsageError(f"{folder} is a model and not data; give the folder of its data")


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> IO[bytes]:
    """A member of a zip, open for bounded reads.

    Raises:
        BadFile: its packing is another than deflate, whose reads cannot be bounded, or too tight
            for data.
    """
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BadFile(where, "is packed in another way than deflate; pack the zip again")
    if info.file_size > max(2**20, MAX_RATIO * info.compress_size):
        raise BadFile(
            where, f"unpacks to more than {MAX_RATIO} times its size; remove or unpack it"
        )
    return archive.open(info)


class _Walk:
    """The files below a folder, by their POSIX path inside it; hidden folders are left out."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._linked = 0
        self._passed: dict[str, list[str]] = {}

    def files(self) -> Iterator[str]:
        """The paths of all files.

        Raises:
            UsageError: the folder cannot be opened, or links lead to too many folders.
        """
        waiting: list[tuple[str, tuple[tuple[int, int], ...], bool]] = [("", (), False)]
        while waiting:
            inner, above, linked = waiting.pop()
            try:
                with os.scandir(self.top / inner) as listing:
                    entries = [*listing]
                place = _identity(self.top / inner)
            except OSError as error:
                if not inner:
                    raise UsageError(f"{self.top} cannot be opened ({error.strerror})") from error
                self._pass("cannot be opened", inner)
                continue
            if place in above:
                self._pass("lead(s) back to a folder that it lies in", inner)
                continue
            for entry in entries:
                name = f"{inner}/{entry.name}" if inner else entry.name
                kind = self._kind(entry, name)
                if kind == "file":
                    yield name
                elif kind == "folder" and not is_hidden(entry.name):
                    behind = linked or entry.is_symlink()
                    self._count(behind)
                    waiting.append((name, (*above, place), behind))

    def notes(self) -> tuple[str, ...]:
        """What was passed over, and why."""
        return tuple(
            f"{len(names)} file(s) or folder(s) {why} and are passed over: "
            + ", ".join(sorted(names)[:3])
            + (", ..." if len(names) > 3 else "")
            for why, names in sorted(self._passed.items())
        )

    def _kind(self, entry: os.DirEntry[str], name: str) -> str:
        try:
            if entry.is_dir():
                return "folder"
            if entry.is_file():
                return "file"
            gone = entry.is_symlink() and not (self.top / name).exists()
        except OSError:  # links in circles
            gone = True
        if gone and not is_hidden(name):
            self._pass("lead(s) nowhere", name)
        return "neither"

    def _pass(self, why: str, name: str) -> None:
        self._passed.setdefault(why, []).append(name)

    def _count(self, behind: bool) -> None:
        self._linked += behind
        if self._linked > MAX_LINKED:
            raise UsageError(
                f"{self.top} has more than {MAX_LINKED} folders behind symbolic links; they "
                "probably lead in circles: remove them"
            )


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
