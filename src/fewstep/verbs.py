"""What the command line's verbs do. Each is a typed function that imports torch only late."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from fewstep.errors import UsageError


def sample(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64,
    out: Path = Path("samples.png"),
    steps: int | None = None,
    times: str | None = None,
    seed: int = 0,
    seeds: str | None = None,
    label: str | None = None,
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    lengths: str | None = None,
    guidance: float | None = None,
    gamma: float | None = None,
    average: str | None = None,
    step: int | None = None,
    device: str | None = None,
    columns: int | None = None,
) -> None:
    """Draw samples from a model.

    Args:
        model: a model folder, a run folder or a bundled name.
        n: how many.
        out: a .png picture, an .npz with x, label and cond.NAME for the other conditions, or a
            folder with one picture a sample, named by its index or, with --seeds, by its seed.
        steps: steps of the sampler; by default the model's fewest (18 for a diffusion model).
        times: the times of the calls instead, descending, e.g. 80,0.8.
        seed: sample i is a function of (seed, i).
        seeds: one a sample instead of -n and --seed, e.g. 0-63 or 1,5,9.
        label: the class of all samples, its name or its number from 0 (the number of classes means
            none); by default the classes take turns.
        cond: a condition of all samples, NAME=VALUE; repeat it for several. VALUE is a class's name
            or number, numbers with commas between them, or a .npy or .npz file with one row or one
            a sample.
        lengths: of samples that differ in length, one for all or one each, e.g. 40 or 40,52,33.
        guidance: scale of classifier-free guidance; 1 is none. Doubles the network calls.
        gamma: share of fresh noise, from 0 to 1, of models that are sampled with one.
        average: another of the run's averages than its first.
        step: the run's model as it was at this step, of which a checkpoint is kept.
        device: where to run; an accelerator if there is one.
        columns: of the grid.
    """
    if n < 1:
        raise UsageError(f"-n must be at least 1, got {n}")
    if columns is not None and columns < 1:
        raise UsageError(f"--columns must be at least 1, got {columns}")
    chosen = numbers("--seeds", seeds, int) if seeds is not None else None
    at = numbers("--times", times, float) if times is not None else None
    if out.suffix not in {".png", ".npz", ""}:
        raise UsageError(f"--out must be a .png, an .npz or a folder, got {out}")

    from fewstep.model import find, load

    loaded = load(model, average=average, device=device, step=step)
    print(f"model: {find(model, average, step)}", file=sys.stderr)
    _say_unfinished(find(model, average, step))
    given = loaded.contract.data.parse(cond, label)
    long = numbers("--lengths", lengths, int) if lengths is not None else None
    x = loaded.sample(
        n,
        steps=steps,
        times=at,
        seed=seed,
        seeds=chosen,
        cond=given,
        lengths=long,
        guidance=guidance,
        gamma=gamma,
    )
    own = chosen or list(range(len(x)))
    conditions = loaded.conditions(own, given, lengths=long)
    _write_samples(x, out, own, conditions, columns)
    calls = len(at) if at and loaded.contract.sampling.kind != "ode" else None
    calls = calls or loaded.calls(len(at) if at else steps, guidance)
    print(f"wrote {len(x)} sample(s) of {calls} network call(s) each to {out}")


def _say_unfinished(folder: Path) -> None:
    """Say on stderr that a model is of a run which is still training or was interrupted."""
    from fewstep.status import unfinished

    if (told := unfinished(folder)) is not None:
        print(told, file=sys.stderr)


def _write_samples(
    x: Any, out: Path, seeds: list[int], conditions: Mapping[str, Any], columns: int | None
) -> None:
    import numpy as np

    from fewstep import pictures
    from fewstep.files import whole_file

    if out.suffix == ".npz":
        arrays: dict[str, Any] = {"label": np.zeros(len(x), np.int64)}
        for key, value in conditions.items():
            name = key if key in {"label", "mask"} else f"cond.{key}"
            arrays[name] = value.numpy()
        with whole_file(out) as fresh:
            np.savez(fresh, x=x.cpu().numpy(), **arrays)
        return
    if not pictures.drawable(x.shape[1:]):
        raise UsageError(f"samples of shape {tuple(x.shape[1:])} are no picture; use --out x.npz")
    if out.suffix == ".png":
        pictures.picture(x, out, columns)
        return
    out.mkdir(parents=True, exist_ok=True)
    for one, seed in zip(x, seeds, strict=True):
        pictures.picture(one[None], out / f"{seed:06d}.png", 1)


def evaluate(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    data: str | None = None,
    held_out: str | None = None,
    metrics: str = "fd,swd,nn",
    features: str | None = None,
    steps: str = "1,2",
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000,
    guidance: float | None = None,
    average: str | None = None,
    step: int | None = None,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Compare a model with data it learnt from and data it never saw.

    Under torchrun the processes share the work.

    Args:
        model: a model folder, a run folder or a bundled name.
        data: digits, mnist, fashion-mnist, cifar10, a toy's name, or the images it learnt from (a
            folder, zip or prepared file); by default what a run learnt from, digits for a model
            without a run.
        held_out: for images of your own: a folder, zip or prepared file that it never saw.
        metrics: some of fd, swd, nn, kid, pr (precision, recall), dc (density, coverage).
        features: that all but swd and nn are taken in, NAME or NAME:FILE of weights: digits,
            pixels, effnet-lite0, resnet20, resnet56, inception, dinov2.
        steps: step counts, e.g. 1,2; for a diffusion model 18 means 35 calls.
        n: for toys and images: samples and held-out data compared, at most.
        guidance: scale of classifier-free guidance.
        average: another of the run's averages than its first.
        step: the run's model as it was at this step, of which a checkpoint is kept.
        device: where to run; an accelerator if there is one.
        out: a JSON file for the numbers.
    """
    counts = numbers("--steps", steps, int)
    if n < 2:
        raise UsageError(f"-n must be at least 2, got {n}")
    from fewstep import evaluation
    from fewstep.model import find, load
    from fewstep.processes import joined
    from fewstep.recipes.records import own_data

    with joined() as world:
        loaded = load(model, average=average, device=device, step=step)
        if world.first:
            _say_unfinished(find(model, average, step))
        data = data or own_data(model)
        protocol = evaluation.named_protocol(data, held_out, loaded.contract.data, n)
        protocol = evaluation.chosen(protocol, metrics, features, loaded.device)
        protocol = evaluation.shared(protocol, world)
        judged = {steps: protocol.judge(loaded, steps, guidance) for steps in counts}
        floor = protocol.floor()
    if not world.first:
        return
    named = {str(loaded.calls(steps, guidance)): row for steps, row in judged.items()}
    lines = [(f"{calls} call{'s' * (calls != '1')}", row) for calls, row in named.items()]
    slowest = min(row["images_per_second"] for row in named.values())
    print(evaluation.table([*lines, ("floor", floor)], slowest))
    for note in protocol.notes():
        print(note)
    if out is not None:
        evaluation.write_metrics(out, {"model": named, "floor": floor, **protocol.judged_in()})
        print(f"wrote {out}")


def doctor(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    data: str | None = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 256,
    average: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Say what a diffusion model is, and whether it may be distilled.

    Each line ends in what to do, or in fine. The exit code is 1 if distilling is pointless.

    Args:
        model: a model folder, a run folder or a bundled name.
        data: digits, mnist, fashion-mnist, cifar10, a toy's name, or the images it learnt from (a
            folder, zip or prepared file); by default what its run learnt from. Without data, less
            can be said.
        n: number of samples of the data, at least 2.
        average: name of one of the run's averages, if not the first.
        device: where to run; an accelerator if there is one.
        json: print everything, measurements included, as JSON.
    """
    if n < 2:
        raise UsageError(f"-n must be at least 2, got {n}")
    from json import dumps

    from fewstep import evaluation
    from fewstep.doctor import examine
    from fewstep.model import load
    from fewstep.recipes.records import own_data

    loaded = load(model, average=average, device=device)
    made = loaded.contract.data
    try:
        samples, _ = evaluation.learnt(data or own_data(model), made, None, loaded.device)
    except UsageError as error:
        if data is not None:
            raise
        print(f"without data: {error}", file=sys.stderr)
        samples = None
    examination = examine(loaded, samples, n=n)
    print(dumps(examination.as_json(), indent=2) if json else examination.text())
    if not examination.distillable:
        raise SystemExit(1)


def status(run: Annotated[Path, tyro.conf.arg(metavar="RUN")], /, *, json: bool = False) -> None:
    """Say how far a run is: its step, loss, time left, checkpoints and last picture.

    Args:
        run: a run folder; it may be training meanwhile.
        json: print everything as JSON.
    """
    from json import dumps

    from fewstep.status import status as read

    found = read(run)
    print(dumps(found.as_json(), indent=2) if json else found.text())


def average(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    std: float,
    out: Path,
    step: int | None = None,
) -> None:
    """Make a power-function average of any width from the snapshots of a run.

    Args:
        run: a run folder with snapshots (--train.snapshot-every and --power when training).
        std: relative width of the average, e.g. 0.1.
        out: the model folder to write.
        step: average up to this step's snapshot; by default the last.
    """
    from fewstep.training.snapshots import reconstruct

    used = reconstruct(run, std, out, step)
    print(f"wrote the average of width {std:g} of {used} snapshots to {out}")


def bench(*, json: bool = False, threads: int = 2, pairs: int = 15) -> None:
    """Time the library against the bare network's passes: ratios, and peak memory.

    Args:
        json: print everything, raw milliseconds included, as JSON.
        threads: of torch.
        pairs: measurements of each side of a ratio.
    """
    if min(threads, pairs) < 1:
        raise UsageError(f"threads and pairs must be at least 1, got {threads} and {pairs}")
    from fewstep.bench import main as measure

    measure(threads, pairs, json)


# Values.


def numbers(option: str, text: str, kind: type) -> list[Any]:
    """1,2,5 and, for whole numbers, 0-63."""
    found: list[Any] = []
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            if kind is int and dash and low:
                first, last = int(low), int(high)
                if not first <= last < first + 1_000_000:
                    raise ValueError
                found += range(first, last + 1)
            else:
                found.append(kind(part))
    except ValueError:
        example = "0-63 or 1,5,9" if kind is int else "80,0.8"
        raise UsageError(f"{option} must look like {example}, got {text!r}") from None
    return found
