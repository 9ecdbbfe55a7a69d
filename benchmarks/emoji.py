"""Emoji with their names as a folder of pictures, from the array file of the data set.

    python benchmarks/emoji.py emoji_google_64_rgba.npz emoji

The file holds ``images`` uint8 ``(n, 64, 64, 4)``, ``text``, ``category`` and ``code``, one a
picture: Google's Noto emoji (Apache-2.0, SIL OFL) as the npm package emoji-datasource-google 16.0.0
has them (MIT). The folder gets one PNG a picture, on white, and ``metadata.jsonl`` with file_name,
text and category.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image


def caption(text: str) -> str:
    """The name and the short names of an emoji, without what is said twice."""
    parts = [part.replace("_", " ").replace("-", " ").strip() for part in text.split("|")]
    return ", ".join(dict.fromkeys(part for part in parts if part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    arrays = np.load(given.file, allow_pickle=False)
    given.out.mkdir(parents=True)
    rows = []
    for i, pixels in enumerate(arrays["images"]):
        name = f"{i:04d}.png"
        image = Image.new("RGBA", (pixels.shape[1], pixels.shape[0]), "white")
        image.alpha_composite(Image.fromarray(pixels))
        image.convert("RGB").save(given.out / name)
        text, category = caption(str(arrays["text"][i])), str(arrays["category"][i])
        rows.append({"file_name": name, "text": text, "category": category})
    table = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (given.out / "metadata.jsonl").write_text(table, encoding="utf-8")
    print(f"wrote {len(rows):,} pictures and metadata.jsonl to {given.out}")


if __name__ == "__main__":
    main()
