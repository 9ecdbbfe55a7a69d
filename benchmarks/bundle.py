"""Put a run's model among those that ship with the package, its weights in half precision.

python benchmarks/bundle.py runs/digits-edm digits-edm
python benchmarks/bundle.py runs/fashion-mnist-edm-small fashion-edm

With the name of a bundled model for the run, its card is written anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import fewstep
from fewstep import cards
from fewstep.bundled import BUNDLED
from fewstep.evaluation import named_protocol
from fewstep.evaluation.report import usual_steps
from fewstep.training.described import SPEED, note

ASSETS = Path(fewstep.__file__).parent / "assets"
DATA = {
    "digits": (
        "digits of 8 x 8 pixels",
        "`digits` (Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, CC BY "
        "4.0): 1,200 training images",
        "the digits are under CC BY 4.0",
        2000,
    ),
    "fashion-mnist": (
        "clothes of 28 x 28 pixels",
        "`fashion-mnist` (Xiao, Rasul and Vollgraf 2017, Zalando, MIT): 60,000 training images",
        "Fashion-MNIST is under the MIT licence",
        1000,
    ),
}
"""Of each data set: what the samples are, its source, its licence, and samples to judge by."""


def main(run: str, name: str) -> None:
    model, recipe = fewstep.load(run, device="cpu"), fewstep.recipe(BUNDLED[name])
    what, source, licence, n = DATA[recipe.data.data]
    model.card = cards.Card(
        title=name,
        text=f"A model of {what} that ships with fewstep, trained by `fewstep train "
        f"{recipe.name}`. Its weights are stored in half precision.",
        data=source,
        licence=f"Apache-2.0, as the package; {licence}.",
    )
    folder = model.save(ASSETS / name, dtype=torch.float16, samples=0)
    model = fewstep.load(folder, device="cpu")
    protocol = named_protocol(recipe.data.data, None, model.contract.data, n)
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
