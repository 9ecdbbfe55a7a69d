"""The files of a folder or a zip, read whole by their path inside it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import IO, Any

from PIL import Image

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile, check_size, naming, opened

MAX_RATIO = 200
"""How many times smaller than its content a part of a zip may be, if that exceeds 1 MiB."""


class Members:
    """The files of a folder or a zip, by their POSIX path inside it.

    It can be pickled, and used after a fork: each process opens the zip for itself.

    Args:
        path: the folder or zip.

    Attributes:
        names: of all files.

    Raises:
        UsageError: the path does not exist, or is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        self._zipped = not path.is_dir()
        if not self._zipped:
            files = (file for file in path.rglob("*") if file.is_file())
            self.names = {file.relative_to(path).as_posix() for file in files}
            return
        if not path.exists():
            raise UsageError(f"{path} does not exist; give a folder or a zip of images")
        try:
            archive = self._archive()
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UsageError(f"{path} is neither a folder nor a zip of images ({error})") from error
        self.names = {info.filename for info in archive.infolist() if not info.is_dir()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def where(self, name: str) -> str:
        """What messages call a file."""
        return f"{name} in {self.path}"

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
            file = self.path / name
            check_size(file.stat().st_size, where)
            return file.read_bytes()

    def opened(self, name: str) -> Image.Image:
        """An image with its header read and its size checked, not yet decoded.

        Raises:
            BadFile: it cannot be used.
        """
        return opened(self.read(name), self.where(name))

    def _archive(self) -> zipfile.ZipFile:
        # Processes that share an open file also share its position.
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return self._zip[1]


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
