"""``fewstep average``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from fewstep.option_kinds import Whole


def average(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    std: float,
    out: Path,
    step: Whole = None,
) -> None:
    """Make a power-function average of any width from the snapshots of a run.

    Args:
        run: the folder of a run with --train.snapshot-every and --average-widths, or a folder with
            the snapshots of a training of EDM2, whose names end on -KIMG-STD.pkl.
        std: relative width of the average, e.g. 0.1.
        out: the model folder to write.
        step: average up to this step's snapshot (of EDM2, up to this KIMG); by default the last.
    """
    from fewstep.cli.values import replaced
    from fewstep.training.snapshots import reconstruct

    before = replaced(out)
    used = reconstruct(run, std, out, step)
    print(f"wrote the average of width {std:g} of {used} snapshots to {out}{before}")
