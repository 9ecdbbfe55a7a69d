"""The main job from Python: distil the bundled teacher, look at it, judge it.

python examples/distil_digits.py
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import fewstep
from fewstep.evaluation.pictures import picture


def main(steps: int | None = None, out: Path = Path("runs/example-digits")) -> Tensor:
    run = fewstep.recipe("digits-cd").build()
    if steps is not None:
        run = replace(run, config=replace(run.config, steps=steps), finish=None)
    model = fewstep.train(run, out=out)
    x = model.sample(100, steps=1, seed=0)
    picture(x, out / "hundred.png")
    return x


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
