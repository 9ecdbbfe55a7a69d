"""Put a run's model among those that ship with the package, its weights in half precision.

python benchmarks/bundle.py runs/digits-edm digits-edm

With the name of a bundled model for the run, its card is written anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fewstep
from fewstep import cards
from fewstep.evaluation import named_protocol
from fewstep.evaluation.report import usual_steps
from fewstep.training.described import SPEED, note

ASSETS = Path(fewstep.__file__).parent / "assets"


def main(run: str, name: str) -> None:
    model = fewstep.load(run, device="cpu")
    model.card = cards.Card(
        title=name,
        text="A model of digits of 8 x 8 pixels that ships with fewstep, trained by "
        f"`fewstep train {name}`. Its weights are stored in half precision.",
        data="`digits` (Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, "
        "CC BY 4.0): 1,200 training images",
        licence="Apache-2.0, as the package; the digits are under CC BY 4.0.",
    )
    folder = model.save(ASSETS / name, dtype=torch.float16, samples=0)
    model = fewstep.load(folder, device="cpu")
    protocol = named_protocol("digits", None, model.contract.data, 2000)
    rows = {}
    for steps in usual_steps(model):
        calls = model.calls(steps)
        rows[f"{calls} call{'s' * (calls > 1)}"] = protocol.judge(model, steps)
    rows["floor"] = protocol.floor()
    numbers = {
        caption: {key: value for key, value in row.items() if key != SPEED}
        for caption, row in rows.items()
    }
    cards.write(model, folder, place=name, numbers=numbers, note=note())
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder} ({size / 2**20:.2f} MiB)")


if __name__ == "__main__":
    main(*sys.argv[1:])
