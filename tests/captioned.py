"""Captioned pictures, a tiny codec and a tiny tokenizer, for tests of texts and latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewstep.frontends import Codec, Frontend
from fewstep.frontends.taesd import TAESD
from fewstep.frontends.tokens import Tokenizer, clip
from fewstep.frontends.vae import VAE

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
MERGES = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("u", "e</w>"), ("bl", "ue</w>")]


def write_pictures(folder: Path, n: int = 12, side: int = 16, table: bool = True) -> list[str]:
    """Squares of one colour on grey, and their captions; returns the captions."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        name, colour = list(COLOURS.items())[i % 3]
        pixels = np.full((side, side, 3), 128, np.uint8)
        x, y = rng.integers(0, side // 2, 2)
        pixels[y : y + side // 2, x : x + side // 2] = colour
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "text": f"a {name} square, number {i}"})
        if not table:
            (folder / f"{i:02d}.txt").write_text(rows[-1]["text"] + "\n")
    if table:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines)
    return [row["text"] for row in rows]


def tokenizer(length: int = 12) -> Tokenizer:
    """CLIP's tokenizer with five merges."""
    return Tokenizer(clip(MERGES), length)


def vae(seed: int = 0) -> Codec:
    """A codec of two halvings with four channels, of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Codec(VAE(width=8, blocks=1), 0.0, 4.0)


def write_taesd(folder: Path, channels: int = 4, normalised: bool = False) -> TAESD:
    """The two files of a random TAESD, in half precision as they are published."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TAESD(channels, normalised)
    for name in ("encoder", "decoder"):
        state = {k: v.half() for k, v in getattr(net, name).state_dict().items()}
        torch.save(state, folder / f"tiny_{name}.pth")
    return net


def write_frontend(folder: Path) -> Frontend:
    """``codec/`` and ``text/`` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    frontend = Frontend(vae(), tokenizer())
    frontend.write(folder)
    return frontend
