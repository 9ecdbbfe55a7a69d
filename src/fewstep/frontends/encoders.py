"""Pretrained text encoders of transformers as a reader of texts, with their files.

The null is the empty text, or zeros where a pipeline has ``force_zeros_for_empty_prompt``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import conditions as kinds
from fewstep.conditions import Condition
from fewstep.errors import UsageError
from fewstep.frontends.families import FAMILIES, FORMULAS, LENGTHS, PROJECTED, Texts
from fewstep.frontends.stock import read_config
from fewstep.frontends.towers import Tower, files_of, read_tower
from fewstep.system.files import sha256

MOST = 2**16
"""Tokens, and the width of one."""

BATCH = 16
"""Texts that are encoded at a time."""


class Encoders:
    """A reader of texts made of pretrained encoders, in float32.

    ``length`` is the most tokens of a text that one of them reads whole.

    Args:
        towers: the encoders with their tokenizers, in the pipelines' order.
        texts: settings.
        conditions: what they make of a text; computed from the empty text where nobody knows.
    """

    kind = "encoders"

    def __init__(
        self,
        towers: Sequence[Tower],
        texts: Texts,
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        self.towers, self.texts = tuple(towers), texts
        self.length = max(self._limit(tower) for tower in self.towers)
        self._conditions = dict(conditions or {}) or self._measured()

    @property
    def conditions(self) -> dict[str, Condition]:
        """``text``, and ``pooled`` of families that have it; each knows its null."""
        return dict(self._conditions)

    def to(self, device: torch.device | str) -> Encoders:
        """Move the encoders; what they make comes back to the CPU."""
        for tower in self.towers:
            tower.model.to(device)
        return self

    def cut(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts of which no encoder reads the end."""
        readers = [tower for tower in self.towers if self._limit(tower) == self.length]
        return [i for i, t in enumerate(texts) if any(r.count(t) > self.length for r in readers)]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Conditions on the CPU: ``text`` float32 ``(n, tokens, width)``, its mask, ``pooled``."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of texts")
        parts = [self._encoded([*texts[i : i + BATCH]]) for i in range(0, len(texts), BATCH)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def files(self) -> dict[str, bytes]:
        """``text.json``, and for each encoder its configuration, weights and tokenizer."""
        files = {name: value for tower in self.towers for name, value in tower.files().items()}
        about = {
            "kind": self.kind,
            "family": self.texts.family,
            "length": self.texts.length,
            "width": self.texts.width,
            "zeros": self.texts.zeros,
            "encoders": [tower.name for tower in self.towers],
            "conditions": {k: v.model_dump(mode="json") for k, v in self._conditions.items()},
            "sha256": {name: sha256(value) for name, value in sorted(files.items())},
        }
        return {"text.json": (json.dumps(about, indent=2) + "\n").encode(), **files}

    def _limit(self, tower: Tower) -> int:
        return tower.length if tower.clip else self.texts.length

    def _measured(self) -> dict[str, Condition]:
        empty = {key: value[0] for key, value in self.encode([""]).items()}
        tokens, mask = empty["text"], empty["text_mask"]
        text = kinds.Sequence(shape=tokens.shape[1:], length=len(tokens))
        declared: dict[str, Condition] = {
            "text": text if self.texts.zeros else text.with_null(tokens, mask)
        }
        if "pooled" in empty:
            pooled = kinds.Vector(shape=empty["pooled"].shape)
            declared["pooled"] = pooled if self.texts.zeros else pooled.with_null(empty["pooled"])
        return declared

    def _encoded(self, texts: list[str]) -> dict[str, Tensor]:
        made = FORMULAS[self.texts.family](self.towers, self.texts, texts)
        made = {key: value.float().cpu() for key, value in made.items()}
        mask = made.pop("text_mask", torch.ones(made["text"].shape[:2]))
        return {"text": made["text"], "text_mask": mask.bool(), **made}


def from_folder(folder: str | Path, length: int | None = None) -> Encoders:
    """The text encoders of a pipeline of diffusers, or of a folder with one encoder.

    Args:
        folder: with ``text_encoder/``, ``tokenizer/`` and so on; or with a ``config.json``,
            weights and a tokenizer.
        length: the most tokens of T5; CLIP's is fixed.

    Raises:
        UsageError: there are no encoders, or they are of no family that is known.
    """
    path = Path(folder)
    suffixes = ("", "_2", "_3")
    pairs = [(path / f"text_encoder{s}", path / f"tokenizer{s}") for s in suffixes]
    pairs = [pair for pair in pairs if pair[0].is_dir()]
    if not pairs and (path / "config.json").is_file():
        pairs = [(path, path)]
    if not pairs:
        raise UsageError(
            f"{path} holds no text encoder: expected text_encoder/ and tokenizer/ as diffusers "
            "writes them, or config.json, weights and tokenizer of one encoder"
        )
    towers = [
        read_tower(encoder, tokenizer, encoder.name if encoder != path else "text_encoder")
        for encoder, tokenizer in pairs
    ]
    classes = tuple(tower.architecture for tower in towers)
    if classes not in FAMILIES:
        raise UsageError(
            f"{path} has the text encoders {', '.join(classes)}; these are read: "
            + "; ".join(" + ".join(each) for each in FAMILIES)
        )
    family = FAMILIES[classes]
    fixed = towers[0].length
    if family not in LENGTHS and length not in (None, fixed):
        raise UsageError(f"CLIP reads {fixed} tokens, got --length {length}; leave it out")
    if length is not None and length < 1:
        raise UsageError(f"--length must be at least 1, got {length}")
    texts = Texts(
        family=family,
        length=length or LENGTHS.get(family, fixed),
        width=_width(path) if classes == (PROJECTED, PROJECTED) else 0,
        zeros=family == "sdxl" and _zeros(path),
    )
    return Encoders(towers, texts)


def read_encoders(folder: Path, about: Mapping[str, Any]) -> Encoders:
    """The text encoders of a ``text/`` folder, as :meth:`Encoders.files` wrote it.

    Raises:
        UsageError: a file is missing, damaged or not the one that was written.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        names = [str(name) for name in about["encoders"]]
        given = {name: about[name] for name in ("family", "length", "width", "zeros")}
        texts = TypeAdapter(Texts).validate_json(json.dumps(given))
        conditions = TypeAdapter(dict[str, Condition]).validate_python(about["conditions"])
        digests = {str(name): str(value) for name, value in dict(about["sha256"]).items()}
        if not (0 < texts.length <= MOST and 0 <= texts.width <= MOST) or (
            not {"text"} <= conditions.keys() <= {"text", "pooled"}
        ):
            raise ValueError("a size or a condition that no encoder has")
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UsageError(f"{folder / 'text.json'} is damaged ({error})") from error
    known = {"text_encoder", "text_encoder_2", "text_encoder_3"}
    if len({*names} & known) < max(1, len(names)):
        raise UsageError(f"{folder / 'text.json'} names the encoders {names!r:.200}")
    # The names are the reader's own, so that no file's name leads to another folder.
    files = [file for name in names for file in files_of(name) if (folder / file).is_file()]
    strange = [*({*digests} ^ {*files})]
    if strange:
        raise UsageError(
            f"{folder / 'text.json'} and the files beside it do not agree on {strange[0]!r:.200}"
        )
    for name in files:
        if sha256((folder / name).read_bytes()) != digests[name]:
            raise UsageError(f"{folder / name} is not the file that was written")
    towers = [
        read_tower(folder / name, folder / name.replace("text_encoder", "tokenizer"), name)
        for name in names
    ]
    if FAMILIES.get(tuple(tower.architecture for tower in towers)) != texts.family:
        raise UsageError(f"{folder / 'text.json'} and its encoders do not fit together")
    return Encoders(towers, texts, conditions)


def _width(pipeline: Path) -> int:
    """The width of T5's tokens, of an SD3 pipeline without it."""
    if not (pipeline / "transformer" / "config.json").is_file():
        raise UsageError(f"{pipeline} has neither T5 nor the network, which says how wide T5's are")
    width = read_config(pipeline / "transformer").get("joint_attention_dim")
    if type(width) is not int or not 0 < width <= MOST:
        raise UsageError(f"{pipeline}: the network's joint_attention_dim is {width!r:.60}")
    return width


def _zeros(pipeline: Path) -> bool:
    """Whether a pipeline of SDXL takes zeros for the empty text, as it does by default."""
    path = pipeline / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return bool(index.get("force_zeros_for_empty_prompt", True))
