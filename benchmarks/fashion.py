"""Draw the bundled pair of Fashion-MNIST side by side, from the same noise.

python benchmarks/fashion.py docs/pictures/fashion-pair.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import fewstep
from fewstep.evaluation.pictures import rows

COLUMNS = 16


def main(out: str) -> None:
    teacher, student = fewstep.load("fashion-edm"), fewstep.load("fashion-cd")
    lines = [
        ("diffusion model, 35 calls", teacher.sample(COLUMNS, seed=0)),
        ("distilled, 1 call", student.sample(COLUMNS, steps=1, seed=0)),
        ("distilled, 2 calls", student.sample(COLUMNS, steps=2, seed=0)),
        ("diffusion model, 1 call", teacher.sample(COLUMNS, steps=1, seed=0)),
    ]
    rows(lines, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
