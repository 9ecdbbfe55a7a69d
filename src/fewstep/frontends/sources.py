"""Codecs and readers of texts by what users have: our folders, models, other projects' files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.frontends.codec import Codec
from fewstep.frontends.files import ABOUT, CODEC, TEXT, Frontend, read_codec, read_text
from fewstep.frontends.taesd import read_taesd
from fewstep.frontends.texts import TextReader

LENGTH = 77
"""Tokens of a text unless another number is asked for; CLIP's."""


def open_codec(source: str | Path) -> Codec:
    """A codec.

    Args:
        source: a codec folder; a model folder, a run folder or encoded data that holds one; a
            folder with the two files of a TAESD, ``..._encoder.pth`` and ``..._decoder.pth`` (or
            ``.safetensors``); or an autoencoder or a pipeline that diffusers wrote.

    Raises:
        UsageError: there is no codec.
    """
    path = Path(source)
    if not path.is_dir():
        raise UsageError(f"no codec at {str(path)!r}: give the folder of one")
    for folder in (path, path / CODEC, path / "model" / CODEC):
        if (folder / ABOUT).is_file() and (known := Frontend(read_codec(folder)).images):
            return known
    halves = [_half(path, name) for name in ("encoder", "decoder")]
    if all(half is not None for half in halves):
        encoder, decoder = (_state(half) for half in halves if half is not None)
        return Codec(read_taesd(encoder, decoder, str(path)))
    for folder in (path, path / "vae"):
        if (folder / "config.json").is_file():
            from fewstep.frontends.autoencoders import from_diffusers

            return from_diffusers(folder)
    raise UsageError(
        f"{path} holds no codec: expected {ABOUT}, two files of a TAESD (..._encoder.pth and "
        "..._decoder.pth), or an autoencoder or a pipeline of diffusers"
    )


def open_text(source: str | Path, length: int | None = None) -> TextReader:
    """What reads texts.

    Args:
        source: a ``text/`` folder; a model folder, a run folder or encoded data that holds one; a
            ``tokenizer.json`` or CLIP's list of merges, for an encoder that learns with the
            network; or a folder with text encoders that transformers or diffusers wrote.
        length: the most tokens of a text; 77 or the encoder's own if not given.

    Raises:
        UsageError: there is none.
    """
    path = Path(source)
    if path.is_file():
        from fewstep.frontends.tokens import from_file

        return from_file(path, length or LENGTH)
    for folder in (path, path / TEXT, path / "model" / TEXT):
        if (folder / "text.json").is_file():
            return read_text(folder)
    if path.is_dir():
        from fewstep.frontends.encoders import from_folder

        return from_folder(path, length)
    raise UsageError(
        f"no reader of texts at {str(path)!r}: give a tokenizer.json, CLIP's list of merges, or a "
        "folder with text encoders"
    )


def _half(folder: Path, name: str) -> Path | None:
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.stem.endswith(name) and path.suffix in {".pth", ".pt", ".safetensors"}
    ]
    if len(files) > 1:
        raise UsageError(f"{folder} holds several files that end in {name}; keep one")
    return files[0] if files else None


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise all kinds
        raise UsageError(f"{path} cannot be read as tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{path} holds no tensors by name")
    return state
