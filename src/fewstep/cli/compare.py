"""``fewstep compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.cli.values import numbers
from fewstep.option_kinds import File, Text, Whole
from fewstep.recipes.methods import STUDENTS
from fewstep.recipes.options import Colour, Unseen


def compare(
    *,
    data: str = "digits",
    methods: str = ",".join(STUDENTS),
    budget: str = "60s",
    seeds: int = 3,
    first_seed: int = 1,
    steps: str = "1,2,4",
    teacher: Text = None,
    resolution: Whole = None,
    held_out: Unseen = None,
    background: Colour = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000,
    out: File = None,
) -> None:
    """Train methods side by side from one teacher, and report which serves best.

    An interrupted comparison goes on where it was; a method that fails is reported.

    Args:
        data: digits, a toy's name, fashion-mnist, cifar10, or a folder or zip of images.
        methods: names, with commas between them; dmd2+adversarial=0 changes a method's options.
        budget: of each method and seed: seconds of training (60s) or samples seen (20000samples).
        seeds: the number of trainings of each method, which differ in their seed.
        first_seed: the seed of the first training; the next ones count up.
        steps: numbers of sampling steps to judge.
        teacher: a diffusion model that all start from; the digits have one.
        resolution: height and width to which the images of a folder are cropped and resized.
        held_out: the part of your own data that no model sees: a share, such as 0.1, or the path
            of other such data.
        background: the colour behind transparent pixels of images; white if not given.
        n: samples and held-out data compared, at most.
        out: the folder of runs and report; by default runs/compare-DATA.
    """
    from fewstep.compare import Budget, Plan, Study
    from fewstep.training.train import Interrupted

    plan = Plan(
        data=data,
        methods=methods.split(","),
        budget=Budget.of(budget),
        seeds=seeds,
        first_seed=first_seed,
        steps=numbers("--steps", steps, int),
        teacher=teacher,
        resolution=resolution,
        held_out=held_out,
        background=background,
        n=n,
    )
    try:
        page = Study(plan).run(out or Path("runs") / f"compare-{Path(data).stem}")
    except Interrupted as stopped:
        print(f"fewstep: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.signum) from None
    print(f"wrote {page}, {page.with_name('report.json')}")
