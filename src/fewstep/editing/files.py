"""Files of pictures: read upright and whole, written with what made them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.data.decoding import check_size, flat, opened, upright
from fewstep.data.formats import has_alpha
from fewstep.editing.canvas import binary
from fewstep.errors import UsageError
from fewstep.image_grid import grid, pixels
from fewstep.system.files import whole_file
from fewstep.version import __version__

FACTS = "fewstep"
"""The text chunk of a PNG that says, as JSON, what made it."""


@dataclass(frozen=True)
class Photo:
    """A picture of a file.

    Args:
        x: ``(1, c, h, w)`` float32 in [-1, 1].
        hidden: ``(h, w)``, True where a pixel is not fully opaque; None without an alpha channel.
    """

    x: Tensor
    hidden: Tensor | None


def read_photo(source: Path | bytes, channels: int, name: str = "the picture") -> Photo:
    """A picture, upright as its EXIF orientation says, in 8 bits, grey or in colour.

    Args:
        source: a file, or its content.
        channels: 1 (colours become grey) or 3 (grey becomes three equal channels).
        name: what messages call it, where it is no path.

    Raises:
        UsageError: there is no such file, or it is no picture that is read.
    """
    image, where = _image(source, name)
    whole = upright(image, where)
    hidden = None
    if has_alpha(whole):
        alpha = np.asarray(whole.convert("RGBA").getchannel("A"))
        hidden = torch.from_numpy(alpha < 255)
        # Colours below transparency are kept, because compositing would mix white into them.
        whole = whole.convert("RGBA").convert("RGB")
    values = np.asarray(flat(whole, channels)).reshape(whole.height, whole.width, channels)
    x = torch.from_numpy(values.transpose(2, 0, 1).astype(np.float32))[None] / 127.5 - 1
    return Photo(x, hidden)


def read_mask(source: Path | bytes, name: str = "the mask") -> Tensor:
    """The missing pixels ``(h, w)`` of a mask: white is missing, black is known.

    Raises:
        UsageError: as :func:`read_photo`; or a pixel is neither black nor white.
    """
    image, where = _image(source, name)
    grey = np.asarray(flat(upright(image, where), 1))
    return binary(torch.from_numpy(grey.copy()))


def write_pictures(x: Tensor, out: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write results as PNG files with a text chunk of facts.

    Args:
        x: ``(n, c, h, w)`` in [-1, 1].
        out: of the one result; several are numbered, ``out-0.png``, ``out-1.png`` and so on.
        facts: what made them, as JSON values; each result's own ``index`` is added.

    Returns:
        The files.
    """
    digits = len(str(len(x) - 1))
    files = []
    for i, one in enumerate(pixels(x).transpose(0, 2, 3, 1)):
        file = out if len(x) == 1 else out.with_name(f"{out.stem}-{i:0{digits}}{out.suffix}")
        image = Image.fromarray(one[..., 0] if one.shape[2] == 1 else one)
        _save(image, file, {**facts, "index": i})
        files.append(file)
    return files


def write_strip(x: Tensor, out: Path, facts: Mapping[str, Any], seconds: float) -> None:
    """Write frames side by side as a PNG, or as an animated GIF.

    Args:
        x: ``(n, c, h, w)`` in [-1, 1].
        out: the file; its suffix says which.
        facts: what made them; a GIF has them as its comment.
        seconds: how long a frame of a GIF is shown.
    """
    if out.suffix.lower() == ".png":
        _save(grid(x, len(x)), out, facts)
        return
    first, *rest = (grid(one[None]) for one in x)
    with whole_file(out) as fresh:
        first.save(
            fresh,
            save_all=True,
            append_images=rest,
            duration=round(1000 * seconds),
            loop=0,
            comment=json.dumps({FACTS: dict(facts)}).encode(),
        )


def facts_of(file: Path) -> dict[str, Any]:
    """What a PNG of :func:`write_pictures` or :func:`write_strip` says of its making."""
    with Image.open(file) as image:
        image.load()
        return json.loads(image.info[FACTS])


def check_out(out: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        UsageError: its suffix is none of these, or its folder is not there.
    """
    if out.suffix.lower() not in suffixes:
        raise UsageError(f"--out must end in {' or '.join(suffixes)}, got {out}")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} of --out is not there; make it first")


def _image(source: Path | bytes, name: str) -> tuple[Image.Image, str]:
    if isinstance(source, bytes):
        check_size(len(source), name)
        return opened(source, name), name
    if not source.is_file():
        raise UsageError(f"no picture at {source}")
    check_size(source.stat().st_size, str(source))
    content: bytes | IO[bytes] = io.BytesIO(source.read_bytes())
    return opened(content, str(source), source.name), str(source)


def _save(image: Image.Image, out: Path, facts: Mapping[str, Any]) -> None:
    info = PngInfo()
    info.add_text("Software", f"fewstep {__version__}")
    info.add_text(FACTS, json.dumps(dict(facts)))
    with whole_file(out) as fresh:
        image.save(fresh, format="PNG", pnginfo=info)
