"""Put a run's model among those that ship with the package, its weights in half precision.

python benchmarks/bundle.py runs/digits-edm digits-edm
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fewstep

ASSETS = Path(fewstep.__file__).parent / "assets"


def main(run: str, name: str) -> None:
    model = fewstep.load(run, device="cpu")
    card = (
        f"# {name}\n\nAn 8 x 8 digit model that ships with fewstep, trained by "
        f"`fewstep train {name}`; weights stored in half precision.\n\n"
        "Data: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, CC BY 4.0), "
        "1,200 training images.\n\nLimits: it draws digits of 8 x 8 pixels and nothing else.\n"
    )
    folder = model.save(ASSETS / name, card=card, dtype=torch.float16)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder} ({size / 2**20:.2f} MiB)")


if __name__ == "__main__":
    main(*sys.argv[1:])
