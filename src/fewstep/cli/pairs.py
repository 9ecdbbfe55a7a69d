"""``fewstep data pairs``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.cli.values import SolverName, check_solver
from fewstep.option_kinds import File, Real, Text


def pairs(
    teacher: Annotated[str, tyro.conf.arg(metavar="TEACHER")],
    /,
    *,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])],
    out: Path,
    solver: SolverName = "heun",
    steps: int = 18,
    guidance: Real = None,
    label: Text = None,
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    data: File = None,
    seed: int = 0,
    shard_size: int = 1024,
    batch: int = 256,
    paths: int = 0,
    average: Text = None,
    device: Text = None,
) -> None:
    """Write noise and what a diffusion model makes of it, for methods that learn from such pairs.

    A killed command goes on when it is repeated. Several processes (torchrun) share the work.

    Args:
        teacher: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        n: the number of pairs.
        out: the folder that is written.
        solver: the solver of the model's ODE.
        steps: times at which the solver stops; 18 of Heun's method are 35 network calls.
        guidance: scale of classifier-free guidance; 1 is none. Doubles the network calls,
            unless the network reads the scale itself.
        label: the class of all pairs, its name or its number from 0 (the number of classes means
            none); by default the classes take turns.
        cond: a condition of all pairs, NAME=VALUE; repeat it for several. VALUE is a class's name
            or number, numbers with commas between them, or a .npy or .npz file with one row or one
            a pair.
        data: encoded data (fewstep data encode): each pair draws a sample of it and takes its
            conditions, such as its caption.
        seed: pair i is a function of (seed, i), as sample i is.
        shard_size: the number of pairs in a file.
        batch: the number of pairs that are made at a time.
        paths: the number of states between noise and sample that are stored too, for students of
            several steps.
        average: name of one of the run's averages; by default the first.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
    """
    check_solver(solver)
    from fewstep.data.encoded import Encoded
    from fewstep.model import find, load
    from fewstep.pairs import make
    from fewstep.system.devices import usable_device
    from fewstep.system.processes import announced

    world = announced()
    place = usable_device(device)
    if place.type == "cuda" and world.size > 1:
        place = f"cuda:{world.local}"
    folder = find(teacher, average)
    model = load(folder, device=place)
    print(f"model: {folder}", file=sys.stderr)
    given = model.contract.data.parse(cond, label)
    made, kept, done = make(
        model,
        out,
        n,
        solver=solver or "heun",
        steps=steps,
        guidance=guidance,
        label=given.pop("label", None),
        cond=given,
        drawn=Encoded(data) if data is not None else None,
        seed=seed,
        shard_size=shard_size,
        batch=batch,
        paths=paths,
        world=world,
    )
    counts = f"made {made} shard(s), kept {kept}"
    if done is None:
        print(f"{counts}; process {world.rank} of {world.size} is done, others are not")
    else:
        shape = "x".join(map(str, done.shape))
        print(f"{counts}; wrote {len(done):,} pair(s) of {shape} to {out}")
