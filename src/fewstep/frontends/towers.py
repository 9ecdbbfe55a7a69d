"""One text encoder of transformers with its tokenizer: read strictly, and written again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.frontends.stock import filled, package, read_config, tensors_of
from fewstep.weights import separate, tied

CLASSES = {
    "CLIPTextModel": ("CLIPTextConfig", "CLIPTokenizer"),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", "CLIPTokenizer"),
    "T5EncoderModel": ("T5Config", "T5TokenizerFast"),
}
"""Of each encoder that is read the classes of its configuration and of its tokenizer."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)

_NAMES_FILES = re.compile(r"_files?$|^(vocab|merges|init_inputs|chat_template_path)$")
"""Entries of a tokenizer's configuration that can name files."""

POSITIONS = "position_ids"
"""A buffer of CLIP, 0 to n - 1, which older files store and newer ones leave out."""


@dataclass(frozen=True)
class Tower:
    """A text encoder.

    Args:
        name: of its folder: ``text_encoder``, ``text_encoder_2`` or ``text_encoder_3``.
        architecture: the name of its class.
        config: its ``config.json``.
        model: frozen, in float32.
        tokenizer: of transformers.
        tokenizer_files: the tokenizer's files by name.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    model: nn.Module
    tokenizer: Any
    tokenizer_files: dict[str, bytes]

    @property
    def clip(self) -> bool:
        """Whether it is a CLIP, which reads a fixed number of tokens."""
        return self.architecture != "T5EncoderModel"

    @property
    def length(self) -> int:
        """The number of tokens of a CLIP; 0 of others."""
        if not self.clip:
            return 0
        known = int(self.config.get("max_position_embeddings", 77))
        return min(known, int(self.tokenizer.model_max_length))

    def tokens(self, texts: Sequence[str], length: int | None = None) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, each ``(n, length)``, cut and padded."""
        return self.tokenizer(
            [*texts],
            padding="max_length",
            max_length=length or self.length,
            truncation=True,
            return_tensors="pt",
        )

    def count(self, text: str) -> int:
        """The tokens of a text that is not cut, with those of its start and its end."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def __call__(
        self,
        texts: Sequence[str],
        *,
        length: int | None = None,
        masked: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """What the encoder answers.

        Args:
            texts: any number.
            length: tokens; a CLIP's own if not given.
            masked: hide the padding.
            output_hidden_states: of all layers too.
        """
        tokens = self.tokens(texts, length)
        device = next(self.model.parameters()).device
        masked = masked or bool(self.config.get("use_attention_mask"))
        return self.model(
            tokens["input_ids"].to(device),
            attention_mask=tokens["attention_mask"].to(device) if masked else None,
            output_hidden_states=output_hidden_states,
        )

    def files(self) -> dict[str, bytes]:
        """All that :func:`read_tower` needs, by path."""
        state = self.model.state_dict()
        ties = tied(state)
        weights = separate({name: value for name, value in state.items() if name not in ties})
        tokenizer = self.name.replace("text_encoder", "tokenizer")
        config = {**self.config, "architectures": [self.architecture]}
        return {
            f"{self.name}/config.json": (json.dumps(config, indent=2) + "\n").encode(),
            f"{self.name}/model.safetensors": save(weights, {"format": "pt"}),
            **{f"{tokenizer}/{name}": value for name, value in self.tokenizer_files.items()},
        }


def files_of(name: str) -> list[str]:
    """The paths of all files that an encoder and its tokenizer may have in a ``text/`` folder."""
    tokenizer = name.replace("text_encoder", "tokenizer")
    own = [f"{name}/config.json", f"{name}/model.safetensors"]
    return [*own, *(f"{tokenizer}/{file}" for file in TOKENIZER_FILES)]


def read_tower(encoder: Path, tokenizer: Path, name: str) -> Tower:
    """A text encoder of its folders.

    Args:
        encoder: with ``config.json`` and weights.
        tokenizer: with the tokenizer's files.
        name: see :class:`Tower`.

    Raises:
        UsageError: a class is not allowed, or a file is missing or damaged.
    """
    config = {k: v for k, v in read_config(encoder).items() if not k.startswith("_")}
    # The type of the numbers, and code of others, are none of a configuration's business here.
    for key in ("torch_dtype", "dtype", "auto_map", "attn_implementation"):
        config.pop(key, None)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if architecture not in CLASSES:
        raise UsageError(
            f"{encoder / 'config.json'} describes a {architecture!r:.100}; text encoders of the "
            f"classes {', '.join(CLASSES)} are read"
        )
    library = package("transformers", "a text encoder")
    of_config, of_tokenizer = (getattr(library, cls) for cls in CLASSES[architecture])
    try:
        with torch.device("meta"):
            model: nn.Module = getattr(library, architecture)(of_config.from_dict(config))
    except Exception as error:  # its constructors raise all kinds
        raise UsageError(
            f"transformers cannot build a {architecture} of {encoder / 'config.json'}: {error}"
        ) from error
    _fill(model, tensors_of(encoder, "model"), encoder)
    files = {n: (tokenizer / n).read_bytes() for n in TOKENIZER_FILES if (tokenizer / n).is_file()}
    if not files:
        raise UsageError(
            f"{tokenizer} holds no tokenizer; expected {' or '.join(TOKENIZER_FILES[:1])}, or "
            "vocab.json and merges.txt"
        )
    _check_tokenizer(tokenizer)
    try:
        reader = of_tokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    except Exception as error:  # it raises all kinds
        raise UsageError(f"{tokenizer} cannot be read as a tokenizer: {error}") from error
    return Tower(name, architecture, config, model, reader, files)


def _check_tokenizer(folder: Path) -> None:
    """Refuse a configuration by which the library would open files that are not in the folder.

    Files of known names are found without it. What it may say of ``special_tokens_map_file`` is the
    place where somebody's tokenizer once lay, and nobody opens it.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold a mapping in JSON, got {type(config).__name__}")
    if config.get("auto_map"):
        raise UsageError(f"{path} names code (auto_map), which is not executed here; remove it")
    for name, value in config.items():
        if name == "special_tokens_map_file" or not _NAMES_FILES.search(name):
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one.removeprefix("./") not in TOKENIZER_FILES:
                raise UsageError(
                    f"{path} names the file {one!r:.200} as its {name}; only the tokenizer's own "
                    f"files in its folder are read: {', '.join(TOKENIZER_FILES)}"
                )


def _fill(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load weights under whichever names the file's version of transformers gave them."""
    wanted = model.state_dict()
    # Versions differ in a prefix of CLIP's names.
    ours = {name.removeprefix("text_model."): name for name in wanted}
    renamed = {
        ours.get(name.removeprefix("text_model."), name): value
        for name, value in tensors.items()
        if not name.endswith(POSITIONS)
    }
    shared = "encoder.embed_tokens.weight"
    if shared in wanted and shared not in renamed and "shared.weight" in renamed:
        renamed[shared] = renamed["shared.weight"]
    filled(model, renamed, source)
    for name, buffer in [*model.named_buffers()]:
        if buffer.is_meta:
            parent, _, last = name.rpartition(".")
            if last != POSITIONS:
                raise UsageError(f"{source}: {name} is stored nowhere, which cannot be read")
            positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            model.get_submodule(parent).register_buffer(last, positions, persistent=False)
