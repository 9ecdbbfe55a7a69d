"""``fewstep search``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli.values import numbers
from fewstep.errors import UsageError
from fewstep.option_kinds import File, Text
from fewstep.recipes.options import Unseen


def search(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    steps: str = "2",
    data: Text = None,
    held_out: Unseen = None,
    metric: Literal["fd", "swd", "kid"] = "fd",
    features: Text = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000,
    seed: int = 0,
    evaluations: int = 16,
    average: Text = None,
    device: Text = None,
    out: File = None,
) -> None:
    """Search the times between the first and the last call of few-step sampling.

    They are written into the model, and sampling in so many steps uses them from then on. The
    times of k steps are those of k - 1 with one more. Candidates are judged on training data; what
    evaluate reports stays unseen.

    Args:
        model: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        steps: step counts, e.g. 2,3,4.
        data: digits, mnist, fashion-mnist, cifar10, a toy's name, or its training images (a
            folder, zip, prepared file or file of arrays); by default the training data of its run,
            and of a bundled model that of its recipe.
        held_out: the share of your own data that training held out, which is left out here as well;
            by default what its run held out.
        metric: the distance to minimise.
        features: the features in which fd and kid are taken; see fewstep evaluate --help.
        n: the largest number of samples, and of training data, that are compared.
        seed: the number from which noise and data are drawn, the same for all candidates.
        evaluations: the approximate number of candidates for each number of steps.
        average: name of one of the run's averages; by default the first.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
        out: a new folder for a copy of the model, instead of writing into it.
    """
    if n < 2 or evaluations < 4:
        raise UsageError(
            f"-n must be at least 2 and --evaluations at least 4, got {n} and {evaluations}"
        )
    if out is not None and out.exists():
        raise UsageError(f"{out} is there already; choose another --out")
    from fewstep.model import find, load

    counts = sorted(set(numbers("--steps", steps, int)))
    folder = find(model, average)
    if out is None and not Path(model).exists():
        raise UsageError(
            f"{model} stays as it is, as it is no folder of yours; give --out FOLDER for a copy"
        )

    from fewstep import evaluation
    from fewstep.data.catalogue import judging_features
    from fewstep.evaluation import search as searching
    from fewstep.recipes.origins import origin

    loaded = load(folder, device=device)
    config = (folder / "config.json").read_text(encoding="utf-8")
    contract = loaded.contract
    searching.check(contract.sampling, contract.method, counts, seed)
    of = origin(model, data, held_out)
    samples, judge = evaluation.training_samples(
        of.data,
        contract.data,
        features,
        loaded.device,
        held_out=of.held_out,
        background=of.background,
    )
    n = min(n, len(samples))
    distance = searching.distance_to(samples, loaded, metric, judge, n, seed)
    before = {k: loaded.times(k) for k in range(1, counts[-1] + 1)}
    results, fewer = {}, math.inf
    print(f"steps  {metric + ' before':>10}  {'after':>10}  times")
    with searching.watched(distance, 1 + (evaluations + 1) * (len(before) - 1)) as shown:
        for k, one in searching.greedy(shown, before, loaded.denoiser.path, evaluations):
            notes = ["as before, none tried was better"] if one.times == one.before else []
            notes += [f"no better than {k - 1}"] if one.distance >= fewer else []
            fewer = one.distance
            if k == 1 or k in counts:
                results[k] = one
                times = ", ".join(f"{t:g}" for t in one.times)
                remarks = f" ({'; '.join(notes)})" if notes and k > 1 else ""
                distances = f"{one.distance_before:10.4g}  {one.distance:10.4g}"
                print(f"{k:5}  {distances}  {times}{remarks}", flush=True)
    record = {
        "data": of.data,
        "held_out": of.held_out,
        "metric": metric,
        "features": features or judging_features(of.data),
        "n": n,
        "seed": seed,
        "evaluations": evaluations,
        "steps": {k: one._asdict() for k, one in results.items()},
    }
    print(f"of {n:,} samples to as many training data; see evaluate for data that is held out")
    chosen = {k: results[k] for k in counts}
    written = searching.write(folder, config, chosen, record, out)
    print(f"wrote the times to {written / 'config.json'}, the search to {written / 'search.json'}")
