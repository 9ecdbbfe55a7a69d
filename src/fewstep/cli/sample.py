"""``fewstep sample``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fewstep.cli.values import SolverName, check_solver, numbers, replaced
from fewstep.errors import UsageError
from fewstep.option_kinds import File, Real, Text, Whole, optional


def sample(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    n: Annotated[int | None, optional("INT", aliases=["-n"])] = None,
    out: Path = Path("samples.png"),
    steps: Whole = None,
    times: Text = None,
    seed: int = 0,
    seeds: Text = None,
    label: Text = None,
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    prompts: File = None,
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    lengths: Text = None,
    guidance: Real = None,
    gamma: Real = None,
    solver: SolverName = None,
    eta: Real = None,
    churn: Real = None,
    average: Text = None,
    step: Whole = None,
    device: Text = None,
    engine: Literal["eager", "compile", "onnx", "openvino"] = "eager",
    columns: Whole = None,
    latents: bool = False,
) -> None:
    """Draw samples from a model.

    Args:
        model: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        n: the number of samples; by default 64, or one for each prompt.
        out: a .png picture, an .npz with x, label and cond.NAME for the other conditions, or a
            folder with one picture a sample, named by its index or, with --seeds, by its seed.
        steps: steps of the sampler; by default the model's fewest (18 for a diffusion model). Each
            step of a consistency model after the first adds noise to its answer and calls it again.
        times: the times of the calls instead, descending, e.g. 80,0.8.
        seed: the number from which noise is drawn; sample i is a function of (seed, i).
        seeds: a seed for each sample instead of -n and --seed, e.g. 0-63 or 1,5,9.
        label: the class of all samples, its name or its number from 0 (the number of classes means
            none); by default the classes take turns.
        prompt: a text of what to draw; repeat it for several, which the samples take in turn.
        prompts: a text file with a prompt in each line, which the samples take in turn.
        cond: a condition of all samples, NAME=VALUE; repeat it for several. VALUE is a class's name
            or number, numbers with commas between them, or a .npy or .npz file with one row or one
            a sample.
        lengths: the lengths of samples that may differ in length, one for all or one for each, e.g.
            40 or 40,52,33.
        guidance: scale of classifier-free guidance; 1 is none. Doubles the network calls,
            unless the network reads the scale itself.
        gamma: share of fresh noise, from 0 to 1, of models that are sampled with one.
        solver: the solver of a diffusion model's ODE; by default heun, which makes two network
            calls a step, as dpm (the midpoint rule) does; the others make one.
        eta: share of fresh noise in each step of the solver ddim, from 0 (none) to 1 (ancestral
            sampling).
        churn: amount of noise that is added before the steps of heun or euler (EDM's S_churn), 0
            for none.
        average: name of one of the run's averages; by default the first.
        step: take the run's model as it was at this step, of which a checkpoint is kept.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
        engine: what runs the network: eager is torch, compile its compiler, onnx and openvino are
            the runtimes of these extras on the CPU, which keep an exported graph for the next time.
        columns: the number of samples in a row of the picture.
        latents: write what the network makes, where the model would decode it to images.
    """
    check_solver(solver)
    if n is not None and n < 1:
        raise UsageError(f"-n must be at least 1, got {n}")
    if columns is not None and columns < 1:
        raise UsageError(f"--columns must be at least 1, got {columns}")
    texts = _texts(prompt, prompts)
    chosen = numbers("--seeds", seeds, int) if seeds is not None else None
    at = numbers("--times", times, float) if times is not None else None
    if out.suffix not in {".png", ".npz", ""}:
        raise UsageError(f"--out must be a .png, an .npz or a folder, got {out}")

    from fewstep.model import find, load

    folder = find(model, average, step)
    loaded = load(folder, device=device, engine=engine)
    if latents and loaded.frontend.codec is None:
        raise UsageError(f"--latents: {model} has no codec; its samples are what the network makes")
    print(f"model: {folder}", file=sys.stderr)
    say_unfinished(folder)
    given = loaded.contract.data.parse(cond, label)
    long = numbers("--lengths", lengths, int) if lengths is not None else None
    count = len(chosen) if chosen else n or len(texts) or 64
    turns = [texts[i % len(texts)] for i in range(count)] if texts else None
    x = loaded.sample(
        count,
        steps=steps,
        times=at,
        seed=seed,
        seeds=chosen,
        cond=given,
        prompts=turns,
        lengths=long,
        guidance=guidance,
        gamma=gamma,
        solver=solver,
        eta=eta,
        churn=churn,
        latents=latents,
    )
    own = chosen or list(range(len(x)))
    conditions = loaded.conditions(own, given, lengths=long, prompts=turns)
    files = [out / f"{one:06d}.png" for one in own] if not out.suffix else [out]
    before = replaced(*files)
    _write_samples(x, out, own, conditions, columns)
    calls = len(at) if at and loaded.contract.sampling.kind != "ode" else None
    calls = calls or loaded.calls(len(at) if at else steps, guidance, solver)
    print(f"wrote {len(x)} sample(s) of {calls} network call(s) each to {out}{before}")


def _texts(prompt: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the command line and of a file.

    Raises:
        UsageError: the file cannot be read, or holds none.
    """
    if file is None:
        return [*prompt]
    if prompt:
        raise UsageError("--prompt and --prompts say the same; give one of them")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts {file} cannot be read: {error}") from error
    texts = [line for line in lines if line]
    if not texts:
        raise UsageError(f"{file} holds no prompts; write one in each line")
    return texts


def say_unfinished(folder: Path) -> None:
    """Say on stderr that a model is of a run which is still training or was interrupted."""
    from fewstep.system.status import unfinished

    if (message := unfinished(folder)) is not None:
        print(message, file=sys.stderr)


def _write_samples(
    x: Any, out: Path, seeds: list[int], conditions: Mapping[str, Any], columns: int | None
) -> None:
    import numpy as np

    from fewstep.evaluation import pictures
    from fewstep.system.files import whole_file

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
