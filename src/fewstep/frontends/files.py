"""The folders ``codec/`` and ``text/`` of a model or of encoded data: written, read, compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save

from fewstep.errors import UsageError
from fewstep.frontends.chunks import ChunkCodec, Observations
from fewstep.frontends.codec import Codec
from fewstep.frontends.taesd import TAESD
from fewstep.frontends.texts import TextReader
from fewstep.frontends.vae import VAE
from fewstep.system.files import sha256
from fewstep.weights import load_weights, separate

CODEC, TEXT = "codec", "text"
"""Names of the two folders."""

LONGEST = 2**16
"""Tokens of the longest text, and the largest size of an autoencoder."""

ABOUT, WEIGHTS = "codec.json", "codec.safetensors"


class _About(BaseModel):
    """What ``codec.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    kind: str
    options: dict[str, Any]
    shift: list[float]
    scale: list[float]
    sha256: str


def _diffusers(**options: Any) -> Any:
    from fewstep.frontends.autoencoders import DiffusersAutoencoder

    return DiffusersAutoencoder(**options)


KINDS: dict[str, Callable[..., Any]] = {
    "taesd": TAESD,
    "vae": VAE,
    "diffusers": _diffusers,
    "chunks": Observations,
}
"""What codecs are made of, by the name that a file gives them: autoencoders and normalisers."""

CODECS: dict[str, Callable[..., Any]] = {"chunks": ChunkCodec}
"""Codecs that are not made of an autoencoder, by that name."""


def _tokens(folder: Path, about: Mapping[str, Any]) -> TextReader:
    from fewstep.frontends.tokens import from_file

    length = about.get("length")
    if type(length) is not int or not 0 < length <= LONGEST:
        raise UsageError(f"{folder / 'text.json'} has the length {length!r:.60} of texts")
    return from_file(folder / "tokenizer.json", length)


def _encoders(folder: Path, about: Mapping[str, Any]) -> TextReader:
    from fewstep.frontends.encoders import read_encoders

    return read_encoders(folder, about)


READERS: dict[str, Callable[[Path, Mapping[str, Any]], TextReader]] = {
    "tokens": _tokens,
    "encoders": _encoders,
}
"""Readers of texts by the name that a file gives them."""


@dataclass(frozen=True)
class Frontend:
    """A codec and a reader of texts; either may be missing.

    Args:
        codec: between images and latents.
        text: what reads prompts.
    """

    codec: Codec | ChunkCodec | None = None
    text: TextReader | None = None

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files of both folders by their path, e.g. ``codec/codec.json``."""
        files: dict[str, bytes] = {}
        if self.codec is not None:
            files |= {f"{CODEC}/{name}": value for name, value in codec_files(self.codec).items()}
        if self.text is not None:
            files |= {f"{TEXT}/{name}": value for name, value in self.text.files().items()}
        return files

    def __bool__(self) -> bool:
        return self.codec is not None or self.text is not None

    @property
    def images(self) -> Codec | None:
        """The codec, where it is one of images.

        Raises:
            UsageError: it is of something else.
        """
        if isinstance(self.codec, ChunkCodec):
            raise UsageError("the codec reads action chunks, and one of images is needed")
        return self.codec

    def shape_of(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of what users see of samples of a shape."""
        return tuple(shape) if self.codec is None else self.codec.decoded_shape(shape)

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each folder's files, by which two frontends are compared."""
        return digests(self.files)

    def write(self, folder: Path) -> None:
        """Write both folders into ``folder``, which is there."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def check(self, other: Frontend | None, ours: str, theirs: str) -> None:
        """Refuse two frontends whose latents or token numbers mean different things.

        Args:
            other: to compare with.
            ours: what messages call this one's owner.
            theirs: what they call the other's.

        Raises:
            UsageError: they differ.
        """
        mine, its = self.digests, other.digests if other is not None else {}
        for part, what in ((CODEC, "codec"), (TEXT, "reader of texts")):
            if mine.get(part) != its.get(part):
                lacks = theirs if part in mine else ours
                reason = f"{lacks} has none" if (part in mine) != (part in its) else "they differ"
                raise UsageError(
                    f"{ours} and {theirs} must have the same {what}, but {reason}; encode the data "
                    "with the model's own (fewstep data encode --like MODEL)"
                )


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of the files of each folder, by the folder's name."""
    parts: dict[str, str] = {}
    for part in sorted({name.split("/")[0] for name in files}):
        own = sorted(name for name in files if name.startswith(f"{part}/"))
        parts[part] = sha256("".join(name + sha256(files[name]) for name in own).encode())
    return parts


def codec_files(codec: Codec | ChunkCodec) -> dict[str, bytes]:
    """``codec.json`` and ``codec.safetensors``."""
    net = codec.net
    weights = save(separate(net.state_dict()), {"format": "pt"})
    names = {TAESD: "taesd", VAE: "vae", Observations: "chunks"}
    about = _About(
        kind=names.get(type(net), "diffusers"),
        options=net.options,
        shift=codec.scaling["shift"],
        scale=codec.scaling["scale"],
        sha256=sha256(weights),
    )
    text = json.dumps(about.model_dump(mode="json"), indent=2) + "\n"
    return {ABOUT: text.encode(), WEIGHTS: weights}


def read_codec(folder: Path) -> Codec | ChunkCodec:
    """The codec of a folder that holds ``codec.json``.

    Raises:
        UsageError: it is damaged, or of a kind that this version does not know.
    """
    try:
        about = _About.model_validate_json((folder / ABOUT).read_bytes())
        weights = (folder / WEIGHTS).read_bytes()
    except (OSError, ValidationError) as error:
        raise UsageError(f"{folder} holds no readable codec: {error}") from error
    if about.format != 1 or about.kind not in KINDS:
        raise UsageError(f"{folder / ABOUT} is of an unknown format or kind {about.kind!r:.60}")
    wrong = [n for n, value in about.options.items() if not _sized(value)]
    if wrong:
        raise UsageError(f"{folder / ABOUT} has the {wrong[0]} {about.options[wrong[0]]!r:.60}")
    try:
        with torch.device("meta"):
            net = KINDS[about.kind](**about.options)
    except UsageError:
        raise
    except Exception as error:  # modules raise all kinds
        raise UsageError(f"{folder / ABOUT} has unknown options: {error}") from error
    load_weights(net, weights, folder, about.sha256)
    return CODECS.get(about.kind, Codec)(net, about.shift, about.scale)


def _sized(value: Any) -> bool:
    """Whether the numbers in an option are sizes that a network can have."""
    if isinstance(value, dict | list):
        return all(_sized(one) for one in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or abs(value) <= LONGEST


def read_text(folder: Path) -> TextReader:
    """The reader of texts of a folder that holds ``text.json``.

    Raises:
        UsageError: it is damaged, or of a kind that this version does not know.
    """
    try:
        about = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        make = READERS[about["kind"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{folder} holds no readable reader of texts ({error!r})") from error
    return make(folder, about)


def read_frontend(folder: Path) -> Frontend | None:
    """The frontend of a model folder or of encoded data; None where it has none."""
    codec = read_codec(folder / CODEC) if (folder / CODEC).is_dir() else None
    text = read_text(folder / TEXT) if (folder / TEXT).is_dir() else None
    return Frontend(codec, text) if codec is not None or text is not None else None
