"""The verbs that choose: a method (compare) and sampling times (search)."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.errors import UsageError
from fewstep.recipes.methods import STUDENTS


def compare(
    *,
    data: str = "digits",
    methods: str = ",".join(STUDENTS),
    budget: str = "60s",
    seeds: int = 3,
    first_seed: int = 1,
    steps: str = "1,2,4",
    teacher: str | None = None,
    resolution: int | None = None,
    held_out: str | None = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000,
    out: Path | None = None,
) -> None:
    """Train methods side by side from one teacher, and report which serves best.

    An interrupted comparison goes on where it was; a method that fails is reported.

    Args:
        data: digits, a toy's name, fashion-mnist, cifar10, or a folder or zip of images.
        methods: names, with commas between them; dmd2+adversarial=0 changes a method's options.
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
    from fewstep.compare import Budget, Plan, Study
    from fewstep.training.train import Interrupted
    from fewstep.verbs import numbers

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
        n=n,
    )
    try:
        page = Study(plan).run(out or Path("runs") / f"compare-{Path(data).stem}")
    except Interrupted as stopped:
        print(f"fewstep: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.signum) from None
    print(f"wrote {page}, {page.with_name('report.json')}")


def search(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    steps: str = "2",
    data: str | None = None,
    metric: Literal["fd", "swd", "kid"] = "fd",
    features: str | None = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000,
    seed: int = 0,
    evaluations: int = 16,
    average: str | None = None,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Find the times between of few-step sampling, and write them into the model.

    Sampling in so many steps uses them from then on. The times of k steps are those of k - 1 with
    one more. Candidates are judged on training data; what evaluate reports stays unseen.

    Args:
        model: a model folder, a run folder or a bundled name.
        steps: step counts, e.g. 2,3,4.
        data: digits, mnist, fashion-mnist, cifar10, a toy's name, or the images it learnt from (a
            folder, zip or prepared file); by default what a run learnt from, digits for a model
            without a run.
        metric: the distance to minimise.
        features: in which fd and kid are taken, as of evaluate.
        n: samples and training data compared, at most.
        seed: of noise and data, the same for all candidates.
        evaluations: candidates for each number of steps, about.
        average: another of the run's averages than its first.
        device: where to run; an accelerator if there is one.
        out: a new folder for a copy of the model, instead of writing into it.
    """
    if n < 2 or evaluations < 4:
        raise UsageError(
            f"-n must be at least 2 and --evaluations at least 4, got {n} and {evaluations}"
        )
    if out is not None and out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    from fewstep.model import find, load
    from fewstep.verbs import numbers

    counts = sorted(set(numbers("--steps", steps, int)))
    folder = find(model, average)
    if out is None and not Path(model).exists():
        raise UsageError(f"the bundled {model} stays as it is; give --out FOLDER for a copy")

    from fewstep import evaluation
    from fewstep import search as searching
    from fewstep.data.catalogue import judging_features
    from fewstep.recipes.records import own_data

    loaded = load(model, average=average, device=device)
    config = (folder / "config.json").read_text(encoding="utf-8")
    contract = loaded.contract
    searching.check(contract.sampling, contract.method, counts, seed)
    data = data or own_data(model)
    learnt, judge = evaluation.learnt(data, contract.data, features, loaded.device)
    n = min(n, len(learnt))
    distance = searching.distance_to(learnt, loaded, metric, judge, n, seed)
    before = {k: loaded.times(k) for k in range(1, counts[-1] + 1)}
    found, fewer = {}, math.inf
    print(f"steps  {metric + ' before':>10}  {'after':>10}  times")
    with searching.watched(distance, 1 + (evaluations + 1) * (len(before) - 1)) as shown:
        for k, one in searching.greedy(shown, before, loaded.denoiser.path, evaluations):
            notes = ["as before, none tried was better"] if one.times == one.before else []
            notes += [f"no better than {k - 1}"] if one.distance >= fewer else []
            fewer = one.distance
            if k == 1 or k in counts:
                found[k] = one
                times = ", ".join(f"{t:g}" for t in one.times)
                told = f" ({'; '.join(notes)})" if notes and k > 1 else ""
                distances = f"{one.distance_before:10.4g}  {one.distance:10.4g}"
                print(f"{k:5}  {distances}  {times}{told}", flush=True)
    record = {
        "data": data,
        "metric": metric,
        "features": features or judging_features(data),
        "n": n,
        "seed": seed,
        "evaluations": evaluations,
        "steps": {k: one._asdict() for k, one in found.items()},
    }
    print(f"of {n:,} samples to as many training data; see evaluate for data that is held out")
    chosen = {k: found[k] for k in counts}
    written = searching.write(folder, config, chosen, record, out)
    print(f"wrote the times to {written / 'config.json'}, the search to {written / 'search.json'}")
