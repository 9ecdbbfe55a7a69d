"""The verbs that choose: a method (compare) and sampling times (search)."""

from __future__ import annotations

from pathlib import Path

from fewstep.recipes.methods import METHODS


def compare(
    *,
    data: str = "digits",
    methods: str = ",".join(METHODS),
    budget: str = "60s",
    seeds: int = 3,
    first_seed: int = 1,
    steps: str = "1,2,4",
    teacher: str | None = None,
    resolution: int | None = None,
    held_out: str | None = None,
    n: int = 2000,
    out: Path | None = None,
) -> None:
    """Train methods side by side from one teacher, and report which serves best.

    An interrupted comparison goes on where it was; a method that fails is reported.

    Args:
        data: digits, a toy's name, fashion-mnist, cifar10, or a folder or zip of images.
        methods: names, with commas between them.
        budget: of each method and seed: seconds of training (60s) or samples seen (20000samples).
        seeds: trainings of each method.
        first_seed: of the first of them.
        steps: numbers of sampling steps to judge.
        teacher: a diffusion model that all start from; the digits have one.
        resolution: of a folder of images.
        held_out: for a folder of images: others, that no model saw.
        n: samples and held-out data compared, at most.
        out: the folder of runs and report; by default runs/compare-DATA.
    """
    from fewstep.compare import Budget, Study
    from fewstep.verbs import numbers

    study = Study(
        data=data,
        methods=methods.split(","),
        budget=Budget.of(budget),
        seeds=seeds,
        first_seed=first_seed,
        steps=numbers("--steps", steps, int),
        teacher=teacher,
        resolution=resolution,
        held_out=held_out,
        n=n,
    )
    page = study.run(out or Path("runs") / f"compare-{Path(data).stem}")
    print(f"wrote {page}, {page.with_name('report.json')}")
