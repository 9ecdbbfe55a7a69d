"""Captions of images: a text file beside each, or one table with a row an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.core import UsageError
from fewstep.data.decoding import BadFile
from fewstep.data.members import Members
from fewstep.data.naming import shortened

TABLES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv")
"""Names under which a table is found beside the images; Hugging Face's image folders have one."""

NAMES = ("file_name", "file", "image", "path")
TEXTS = ("text", "caption", "captions", "prompt")
"""Columns of a table: the image's path, and its caption."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def captions_of(members: Members, names: Sequence[str], table: str | Path | None) -> list[str]:
    """The caption of each image of a folder or zip.

    Args:
        members: the folder or zip.
        names: of the images, as POSIX paths inside it.
        table: of captions: a path, or None for a table of ``TABLES`` at the top, else a text file
            beside each image.

    Raises:
        UsageError: an image has no caption, a caption has no image, or the table cannot be read.
    """
    if table is not None:
        return _matched(names, _rows(Path(table)), str(table), members)
    inside = next((name for name in TABLES if name in members.names), None)
    if inside is not None:
        suffix = PurePosixPath(inside).suffix
        rows = _text_rows(members.read(inside), suffix, members.where(inside))
        return _matched(names, rows, members.where(inside), members)
    return [*_beside(members, names)]


def has_captions(members: Members, names: Sequence[str]) -> bool:
    """Whether a folder or zip seems to bring captions."""
    return any(name in members.names for name in TABLES) or (
        str(PurePosixPath(names[0]).with_suffix(".txt")) in members.names
    )


def caption_column(columns: Sequence[str], wanted: str, where: str) -> str:
    """The column of a table that holds captions.

    Args:
        columns: of the table.
        wanted: a name, or ``auto`` for one of ``TEXTS``.
        where: the table, for messages.

    Raises:
        UsageError: there is none.
    """
    names = TEXTS if wanted == "auto" else (wanted,)
    column = next((name for name in names if name in columns), None)
    if column is None:
        raise UsageError(
            f"{where} has no column {' or '.join(names)} of captions; its columns are "
            f"{shortened([*columns])}"
        )
    return column


def clean(text: Any, where: str) -> str:
    """A caption as it is kept: one line, not empty.

    Raises:
        BadFile: it is no text, or an empty one.
    """
    if isinstance(text, list) and text:  # several captions of one image, of which the first counts
        text = text[0]
    if not isinstance(text, str) or not (line := " ".join(text.split())):
        raise BadFile(where, "has an empty caption, or one that is no text")
    return line


def _beside(members: Members, names: Sequence[str]) -> Iterator[str]:
    missing = [name for name in names if _text_name(name) not in members.names]
    if missing:
        raise UsageError(
            f"{len(missing):,} of {len(names):,} images in {members.path} have no caption, such as "
            f"{missing[0]}: a text file {_text_name(missing[0])}, or a table of all captions, "
            "--captions FILE.jsonl with file_name and text in each row"
        )
    for name in names:
        text = _text_name(name)
        try:
            yield clean(members.read(text).decode("utf-8"), members.where(text))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{members.where(text)} is no text in UTF-8 ({error.reason})"
            ) from error


def _text_name(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _matched(
    names: Sequence[str], rows: Iterator[tuple[str, str]], where: str, members: Members
) -> list[str]:
    captions: dict[str, str] = {}
    for name, text in rows:
        plain = str(PurePosixPath(name))
        if plain in captions:
            raise UsageError(f"{where} has two captions of {name}; keep one")
        captions[plain] = text
    known = {*names}
    absent = [name for name in captions if name not in known]
    if absent:
        raise UsageError(
            f"{where} has captions of {len(absent):,} image(s) that {members.path} does not hold, "
            f"such as {absent[0]}; names are paths inside that folder"
        )
    missing = [name for name in names if name not in captions]
    if missing:
        raise UsageError(
            f"{where} has no caption of {len(missing):,} of {len(names):,} images, such as "
            f"{missing[0]}"
        )
    return [captions[name] for name in names]


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """Name and caption of each row of a file."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"captions are read from {', '.join(SUFFIXES)}, got {path}")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    try:
        return _text_rows(path.read_bytes(), path.suffix, str(path))
    except OSError as error:
        raise UsageError(f"the captions {path} cannot be read: {error.strerror}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        module = import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            f"{path} is a Parquet file; reading it needs pip install 'fewstep[parquet]'"
        ) from error
    try:
        rows = module.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise UsageError(f"the captions {path} cannot be read: {error}") from error
    return _pairs(rows, str(path))


def _text_rows(content: bytes, suffix: str, where: str) -> Iterator[tuple[str, str]]:
    try:
        text = content.decode("utf-8-sig")
        if suffix == ".csv":
            return _pairs([*csv.DictReader(io.StringIO(text))], where)
        if suffix == ".json":
            value = json.loads(text)
            rows = (
                [dict(zip(("file_name", "text"), pair, strict=True)) for pair in value.items()]
                if (isinstance(value, dict))
                else value
            )
            return _pairs(rows, where)
        return _pairs([json.loads(line) for line in text.split("\n") if line.strip()], where)
    except (ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"the captions {where} cannot be read: {error}") from error


def _pairs(rows: Any, where: str) -> Iterator[tuple[str, str]]:
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) for r in rows):
        raise UsageError(f"{where} must hold rows with file_name and text")
    columns = [str(name) for name in rows[0]]
    name = next((one for one in NAMES if one in columns), None)
    if name is None:
        raise UsageError(f"{where} has no column file_name; its columns are {shortened(columns)}")
    text = caption_column(columns, "auto", where)
    return (
        (str(row.get(name)), clean(row.get(text), f"{row.get(name)} in {where}")) for row in rows
    )
