"""What reads prompts: a tokenizer, or a pretrained text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fewstep.conditions import Condition


class TextReader(Protocol):
    """From texts to the conditions that a network reads.

    Attributes:
        kind: a key of ``fewstep.frontends.files.READERS``.
        length: the most tokens of a text.
    """

    kind: str
    length: int

    @property
    def conditions(self) -> dict[str, Condition]:
        """What it makes of a text, by name; each knows its null, the empty text."""
        ...

    def cut(self, texts: Sequence[str]) -> list[int]:
        """The positions of the texts of which the end is cut off, because they are too long."""
        ...

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of texts, batch first, on the CPU."""
        ...

    def files(self) -> dict[str, bytes]:
        """What its folder holds, by name; ``text.json`` is among it."""
        ...
