"""Model cards: the README.md of a model folder, and a small grid of samples beside it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from fewstep.card_text import PICTURE, SHOWN, Numbers, text
from fewstep.card_text import Card as Card
from fewstep.contract import Contract
from fewstep.errors import UsageError
from fewstep.image_grid import drawable, grid
from fewstep.models import AbstractDenoiser
from fewstep.models.spec import custom_network
from fewstep.system.files import whole_file

README = "README.md"

LARGEST = 100_000
"""Bytes of the grid's file, at most."""


class Carded(Protocol):
    """A model, as its card sees it."""

    denoiser: AbstractDenoiser
    contract: Contract
    card: Card

    def times(self, steps: int | None = None) -> list[float]:
        """The times of a sample."""
        ...

    def calls(self) -> int:
        """Network calls of a sample."""
        ...

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of a sample as users see it."""
        ...

    @property
    def sample(self) -> Callable[..., Tensor]:
        """Generates samples."""
        ...


def write(
    model: Carded,
    folder: Path,
    *,
    card: Card | None = None,
    place: str | None = None,
    samples: int = SHOWN,
    numbers: Numbers | None = None,
    note: str = "",
) -> None:
    """Write the card of a model into its folder; each file is whole or absent.

    Args:
        model: that is in the folder.
        folder: of the model.
        card: what the card says beside the contract, by default the model's own.
        place: what the model is loaded by, by default the folder.
        samples: number of samples in the picture, where they are images; 0 draws none.
        numbers: an evaluation of the model: measurements by name, of samples by caption.
        note: how the numbers were measured.
    """
    x = _drawn(model, samples)
    if x is None:
        (folder / PICTURE).unlink(missing_ok=True)
    else:
        with whole_file(folder / PICTURE) as fresh:
            fresh.write_bytes(_small(grid(x)))
    try:
        steps, calls = len(model.times()), model.calls()
    except UsageError:  # a contract without any times, which is saved all the same
        steps, calls = 1, 1
    markdown = text(
        model.card if card is None else card,
        model.contract,
        str(folder) if place is None else place,
        steps=steps,
        calls=calls,
        custom=custom_network(model.denoiser),
        shown=0 if x is None else len(x),
        numbers=numbers,
        note=note,
    )
    with whole_file(folder / README) as fresh:
        fresh.write_text(markdown, encoding="utf-8")


def _drawn(model: Carded, n: int) -> Tensor | None:
    """Samples for a card; None where they are no pictures, or cannot be had.

    Args:
        model: that is in the folder.
        n: how many samples; 0 for none.
    """
    shape = model.shape
    if n < 1 or len(shape) != 3 or not drawable(shape) or model.contract.data.masked:
        return None
    try:
        return model.sample(n, seed=0)
    except Exception:  # networks of users raise all kinds
        # It needs conditions that only its user knows, or too much memory: the weights are saved
        # all the same.
        return None


def _small(image: Image.Image) -> bytes:
    """A PNG of at most ``LARGEST`` bytes."""
    while True:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4))
