"""``fewstep plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from fewstep.errors import UsageError
from fewstep.option_kinds import Real, Text


def plot(
    source: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN|MODEL ...")],
    /,
    *,
    out: Path = Path("plot.png"),
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 40,
    steps: Text = None,
    seed: int = 0,
    label: Text = None,
    guidance: Real = None,
    device: Text = None,
) -> None:
    """Draw how runs went, or how models sample.

    Run folders give one picture of their losses and of the metrics of their evaluations on the way.
    Models give the way of samples from noise to data, all from the same noise: lines for models of
    the plane, and for models of images a strip with a column for each step. The model of a run is
    RUN/model.

    Args:
        source: run folders; or models: model folders, bundled names or hub:OWNER/NAME[@REVISION].
        out: the picture: .png, or .svg or .pdf for curves and paths, or .gif for a film of paths.
        n: the number of paths of models of the plane; a strip shows 4 images at most.
        steps: the steps of the sampler, one number for all models or one for each, e.g. 18,1; by
            default each model's fewest (18 for a diffusion model).
        seed: the number from which noise is drawn.
        label: the class of all samples, its name or its number; by default the classes take turns.
        guidance: scale of classifier-free guidance; 1 is none.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
    """
    from fewstep.cli.values import replaced
    from fewstep.plotting.figures import check_suffix

    runs = [Path(name) for name in source if (Path(name) / "run.json").is_file()]
    if runs and len(runs) < len(source):
        raise UsageError(
            f"{runs[0]} is a run, whose curves are drawn, and not all of the others are; give "
            f"{runs[0] / 'model'} to draw how its model samples"
        )
    check_suffix(out, *([] if runs else [".gif"]))
    note = replaced(out)
    if runs:
        from fewstep.plotting import curves

        panels = curves(runs, out)
        print(f"{', '.join(panels)} of {len(runs)} run(s) in {out}{note}")
        return
    _models(source, out, n, _steps(steps, len(source)), seed, label, guidance, device, note)


def _steps(text: str | None, models: int) -> list[int | None]:
    """The number of steps of each model.

    Raises:
        UsageError: they are neither one nor as many as the models.
    """
    from fewstep.cli.values import numbers

    given: list[int | None] = [None] if text is None else numbers("--steps", text, int)
    if len(given) not in {1, models}:
        raise UsageError(f"--steps gives {len(given)} numbers for {models} models; give 1 or all")
    return given * models if len(given) == 1 else given


def _models(
    source: tuple[str, ...],
    out: Path,
    n: int,
    steps: list[int | None],
    seed: int,
    label: str | None,
    guidance: float | None,
    device: str | None,
    note: str,
) -> None:
    from fewstep.model import load
    from fewstep.plotting import animation, paths, strip, walk

    if n < 1:
        raise UsageError(f"-n must be at least 1, got {n}")
    models = [load(name, device=device) for name in source]
    plane = all(model.contract.data.shape == (2,) for model in models)
    walks = [
        walk(
            model,
            Path(name).name if Path(name).name != "model" else Path(name).resolve().parent.name,
            n if plane else min(n, 4),
            steps=count,
            seed=seed,
            label=label,
            guidance=guidance,
        )
        for name, model, count in zip(source, models, steps, strict=True)
    ]
    if plane:
        (animation if out.suffix == ".gif" else paths)(walks, out)
        print(f"paths of {n} samples in {out}{note}")
        return
    if out.suffix != ".png":
        raise UsageError(f"a strip of images is a .png picture, got {out}")
    codec = models[0].frontend.codec
    columns = strip(walks, out, decode=None if codec is None else codec.decode)
    print(f"{columns} columns, from noise to samples, in {out}{note}")
    for one in walks:
        levels = ", ".join(f"{level:.3g}" for level in one.levels)
        print(f"  {one.name}: {one.calls} network call(s); noise levels {levels}")
