"""Tables with a column of encoded images: Parquet files and Hugging Face data sets.

An image is binary, or a struct with ``bytes``, as Hugging Face stores it. A struct's ``path`` is
never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.core import UsageError
from fewstep.data.captions import caption_column, clean
from fewstep.data.decoding import BadFile, check_size, naming, opened
from fewstep.data.sources.base import Item, Source, bad

ROWS = 16
"""Read at once."""
MAX_GROUP = 4 * 2**30
"""Bytes of one column of a row group, unpacked."""


def parquet(paths: Sequence[Path], labels: str, captions: str = "none") -> Source:
    """The rows of Parquet files.

    A file that turns out to be damaged counts as one bad image after those before the damage.

    Args:
        paths: of the files.
        labels: ``auto`` takes the column ``label`` or ``labels``, if there is one; ``none`` takes
            none; another name takes that column.
        captions: ``auto`` takes the column ``text`` or ``caption``; ``none`` takes none; another
            name takes that column.

    Raises:
        UsageError: pyarrow is not installed, no file can be read, or a column is missing.
    """
    module = _require("pyarrow.parquet", f"{paths[0]} is a Parquet file", "parquet")
    files = [(path, _opened(module, path)) for path in paths]
    good = [(path, file) for path, file in files if not isinstance(file, BadFile)]
    if not good:
        raise next(file for _, file in files if isinstance(file, BadFile))
    path, file = good[0]
    schema = file.schema_arrow
    image = _image_column([field.name for field in schema if _holds_bytes(field.type)], path)
    label = _label_column(schema.names, labels, path)
    text = _caption_column(schema.names, captions, path)
    names = None if label is None else _class_names(schema.metadata or {}, label)
    items = chain.from_iterable(_rows(path, file, image, label, text) for path, file in files)
    total = sum(file.metadata.num_rows for _, file in good)
    return Source(items, total, names, lambda: _unlabelled(schema.names, label, labels))


def disk(path: Path, labels: str, split: str, captions: str = "none") -> Source:
    """What ``save_to_disk`` of a Hugging Face data set left; columns as in Parquet files.

    Raises:
        UsageError: the extra is not installed, or there is no such split or column.
    """
    datasets = _require("datasets", f"{path} is a Hugging Face data set", "datasets")
    with naming(str(path)):
        rows = datasets.load_from_disk(str(path))
        if isinstance(rows, datasets.DatasetDict):
            if split not in rows:
                raise UsageError(f"{path} has no split {split!r}; it has {', '.join(rows)}")
            rows = rows[split]
    return _of_datasets(datasets, rows, path.resolve().name, str(path), labels, captions)


def hub(name: str, labels: str, split: str, captions: str = "none") -> Source:
    """A data set of the Hugging Face Hub, downloaded if it is not at hand.

    Raises:
        UsageError: the extra is not installed, or the data set cannot be loaded.
    """
    datasets, rows = _loaded(name, split)
    return _of_datasets(datasets, rows, name, f"hf:{name}", labels, captions)


def hub_digest(name: str, split: str) -> str:
    """What the library knows a split of a data set of the Hub by: its files, and how it reads them.

    Raises:
        UsageError: the extra is not installed, or the data set cannot be loaded.
    """
    return str(_loaded(name, split)[1]._fingerprint)


def _loaded(name: str, split: str) -> tuple[Any, Any]:
    datasets = _require("datasets", f"hf:{name} is a Hugging Face data set", "datasets")
    try:
        return datasets, datasets.load_dataset(name, split=split)
    except Exception as error:  # no network, no such set or split, a broken cache
        raise UsageError(f"hf:{name} cannot be loaded ({str(error)[:300]})") from error


def _of_datasets(
    datasets: Any, stored: Any, name: str, where: str, labels: str, captions: str
) -> Source:
    kinds = stored.features
    image = _image_column([k for k, v in kinds.items() if isinstance(v, datasets.Image)], where)
    label = _label_column(list(kinds), labels, where)
    text = _caption_column(list(kinds), captions, where)
    named = label is not None and isinstance(kinds[label], datasets.ClassLabel)
    rows = stored.cast_column(image, datasets.Image(decode=False))
    rows = rows.select_columns([column for column in (image, label, text) if column is not None])

    def items() -> Iterator[Item]:
        with naming(where):
            for i, row in enumerate(rows):
                yield _item(i, name, where, row, image, label, text)

    names = tuple(kinds[label].names) if named else None
    return Source(items(), len(rows), names, lambda: _unlabelled([*kinds], label, labels))


def _unlabelled(columns: Sequence[str], label: str | None, labels: str) -> tuple[str, ...]:
    """A note on the columns, where none of them is taken for labels."""
    if label is not None:
        return ()
    if labels == "none":
        held = [name for name in ("label", "labels") if name in columns]
        return tuple(f"the column {name} is not read as labels" for name in held)
    return (
        f"there are no labels: no column is called label; the columns are {', '.join(columns)}",
    )


def _opened(module: Any, path: Path) -> Any:
    """An open Parquet file, or what is wrong with it."""
    try:
        with naming(str(path)):
            file = module.ParquetFile(path, buffer_size=2**20)
            about = file.metadata
            for i in range(about.num_row_groups):
                for j in range(about.num_columns):
                    size = about.row_group(i).column(j).total_uncompressed_size
                    if size > MAX_GROUP:
                        reason = f"has a row group of {size} bytes; at most {MAX_GROUP} are read"
                        raise BadFile(str(path), reason)
            return file
    except BadFile as error:
        return error


def _rows(path: Path, file: Any, image: str, label: str | None, text: str | None) -> Iterator[Item]:
    if isinstance(file, BadFile):
        yield bad(path.name, file)
        return
    columns = [column for column in (image, label, text) if column is not None]
    n = 0
    try:
        with naming(str(path)):
            for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    yield _item(n, path.name, str(path), row, image, label, text)
                    n += 1
    except BadFile as error:
        yield bad(path.name, error)


def _item(
    i: int,
    name: str,
    where: str,
    row: Mapping[str, Any],
    image: str,
    label: str | None,
    text: str | None,
) -> Item:
    """The image of a row; ``image``, ``label`` and ``text`` are its columns."""
    where = f"row {i} in {where}"
    try:
        caption = None if text is None else clean(row[text], where)
    except BadFile as error:
        return bad(f"{name} row {i}", error)
    kind = None if label is None else row[label]
    return Item(f"{name} row {i}", where, partial(_image, row[image], where), kind, caption)


def _image(value: Any, where: str) -> Image.Image:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise BadFile(where, "holds no bytes of an image; remove it")
    check_size(len(content), where)
    return opened(content, where)


def _holds_bytes(kind: Any) -> bool:
    types = import_module("pyarrow").types
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _image_column(present: Sequence[str], where: object) -> str:
    usual = [name for name in present if name in {"image", "img", "jpg", "png"}]
    chosen = usual if len(present) > 1 else present
    if len(chosen) != 1:
        held = ", ".join(present) or "none"
        raise UsageError(
            f"{where} needs one column of encoded images (bytes, or a struct with bytes), best "
            f"named image; columns that could be it: {held}"
        )
    return chosen[0]


def _label_column(columns: Sequence[str], labels: str, where: object) -> str | None:
    if labels == "none":
        return None
    wanted = ("label", "labels") if labels == "auto" else (labels,)
    column = next((name for name in wanted if name in columns), None)
    if column is None and labels != "auto":
        raise UsageError(f"{where} has no column {labels!r}; it has {', '.join(columns)}")
    return column


def _caption_column(columns: Sequence[str], captions: str, where: object) -> str | None:
    return None if captions == "none" else caption_column(columns, captions, str(where))


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Names that Hugging Face wrote into a Parquet file."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _require(module: str, what: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"{what}; reading it needs pip install 'fewstep[{extra}]'") from error
