"""Texts as numbers: a byte-pair tokenizer, kept as the file of the library ``tokenizers``.

A text encoder that learns with the network reads the numbers themselves. CLIP's merges make a
vocabulary of 49,408 tokens; ``restricted`` keeps the merges that a set of texts uses, and the 512
single bytes, so that every other text can still be read.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import Condition, Text
from fewstep.errors import UsageError

NAME = "text"
"""The condition that a tokenizer makes."""

START, END = "<|startoftext|>", "<|endoftext|>"


def library() -> Any:
    """The package ``tokenizers``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(
            "reading texts needs the package tokenizers; install it with: pip install "
            "'fewstep[text]'"
        ) from error
    return tokenizers


class Tokenizer:
    """From texts to the condition ``text`` of token numbers.

    Args:
        tokenizer: of the package ``tokenizers``, with the tokens of start and end.
        length: the most tokens of a text, start and end included; longer texts are cut.
    """

    kind = "tokens"

    def __init__(self, tokenizer: Any, length: int = 77) -> None:
        self.tokenizer, self.length = tokenizer, length
        # Texts are filled up and cut here, whatever a file says.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.start, self.end = (tokenizer.token_to_id(token) for token in (START, END))
        if self.start is None or self.end is None or length < 3:
            raise UsageError(f"a tokenizer needs the tokens {START} and {END}, and a length of 3")

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return self.tokenizer.get_vocab_size()

    @property
    def conditions(self) -> dict[str, Condition]:
        """The condition of a text, by name."""
        return {
            NAME: Text(vocabulary=self.vocabulary, length=self.length, empty=(self.start, self.end))
        }

    def cut(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts of which the end is cut off."""
        return [i for i, ids in enumerate(self._ids(texts)) if len(ids) > self.length - 2]

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``text``, int64 ``(n, length)``, and ``text_mask``, bool, True where a token is real."""
        ids = torch.zeros(len(texts), self.length, dtype=torch.int64)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for row, own in enumerate(self._ids(texts)):
            whole = torch.tensor([self.start, *own[: self.length - 2], self.end])
            ids[row, : len(whole)] = whole
            mask[row, : len(whole)] = True
        return {NAME: ids, f"{NAME}_mask": mask}

    def files(self) -> dict[str, bytes]:
        """What a folder holds of it: ``text.json`` and ``tokenizer.json``."""
        about = {"kind": self.kind, "length": self.length}
        return {
            "text.json": (json.dumps(about, indent=2) + "\n").encode(),
            "tokenizer.json": (json.dumps(json.loads(self.tokenizer.to_str())) + "\n").encode(),
        }

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        plain = [" ".join(text.split()) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(plain, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def from_file(path: str | Path, length: int) -> Tokenizer:
    """A tokenizer of a ``tokenizer.json``, or of CLIP's list of merges (``.txt`` or ``.txt.gz``).

    Raises:
        UsageError: the file cannot be read as one.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = content.decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{place} cannot be read as a tokenizer ({error})") from error
    if text.lstrip().startswith("{"):
        try:
            return Tokenizer(library().Tokenizer.from_str(text), length)
        except UsageError:
            raise
        except Exception as error:  # the package raises bare Exceptions
            raise UsageError(f"{place} is no tokenizer.json ({error})") from error
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]
    if len(merges) < 1000 or any(len(pair) != 2 for pair in merges):
        raise UsageError(f"{place} is neither a tokenizer.json nor CLIP's list of merges")
    return Tokenizer(clip([(a, b) for a, b in merges]), length)


def clip(merges: Sequence[tuple[str, str]]) -> Any:
    """CLIP's tokenizer with these merges (Radford et al. 2021): lower case, words, bytes, pairs."""
    package = library()
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [a + b for a, b in merges]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    model = package.models.BPE(
        vocab=vocabulary,
        merges=[*merges],
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        unk_token=END,
    )
    made = package.Tokenizer(model)
    parts, split = (
        package.pre_tokenizers,
        package.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
    )
    names = package.normalizers
    made.normalizer = names.Sequence([names.NFC(), names.Lowercase()])
    made.pre_tokenizer = parts.Sequence(
        [
            parts.Split(split, behavior="removed", invert=True),
            parts.ByteLevel(add_prefix_space=False),
        ]
    )
    made.add_special_tokens([START, END])
    return made


def restricted(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """A tokenizer of the same merges as far as the texts use them, which reads them alike.

    Args:
        tokenizer: of byte pairs.
        texts: from which the vocabulary is taken.

    Raises:
        UsageError: the tokenizer is none of byte pairs as CLIP's is.
    """
    state: Mapping[str, Any] = json.loads(tokenizer.tokenizer.to_str())
    kind = state["model"].get("type")
    if kind != "BPE":
        raise UsageError(f"--restrict keeps byte pairs of CLIP's tokenizer, got one of kind {kind}")
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    made_by = {a + b: (a, b) for a, b in reversed(merges)}
    used: set[tuple[str, str]] = set()
    names = {number: name for name, number in state["model"]["vocab"].items()}
    waiting = {names[i] for ids in tokenizer._ids(texts) for i in ids}
    while waiting:
        word = waiting.pop()
        pair = made_by.get(word)
        if pair is not None and pair not in used:
            used.add(pair)
            waiting |= {*pair}
    fewer = Tokenizer(clip([pair for pair in merges if pair in used]), tokenizer.length)
    own, its = (
        [[one.tokenizer.id_to_token(i) for i in ids] for ids in one._ids(texts)]
        for one in (tokenizer, fewer)
    )
    if own != its:
        raise UsageError(
            "--restrict keeps byte pairs of CLIP's tokenizer, and this one splits texts otherwise; "
            "leave it out"
        )
    return fewer


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of CLIP's vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
