"""``fewstep evaluate``."""

from __future__ import annotations

from typing import Annotated

import tyro

from fewstep.cli.episodes import evaluate_policy
from fewstep.cli.sample import say_unfinished
from fewstep.cli.values import SolverName, check_solver, numbers, replaced
from fewstep.errors import UsageError
from fewstep.option_kinds import File, Real, Text, Whole, optional
from fewstep.recipes.options import Unseen


def evaluate(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    data: Text = None,
    held_out: Unseen = None,
    metrics: str = "fd,swd,nn",
    features: Text = None,
    steps: Text = None,
    n: Annotated[int | None, optional("INT", aliases=["-n"])] = None,
    env: Text = None,
    gif: File = None,
    guidance: Real = None,
    solver: SolverName = None,
    average: Text = None,
    step: Whole = None,
    device: Text = None,
    out: File = None,
) -> None:
    """Compare a model with its training data and with data that it never saw.

    Under torchrun the processes share the work.

    Args:
        model: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        data: digits, mnist, fashion-mnist, cifar10, a toy's name, or its training images (a
            folder, zip, prepared file or file of arrays); by default the training data of its run,
            and of a bundled model that of its recipe.
        held_out: the part of your own data that the model never saw: the share that its training
            held out, such as 0.1, or a folder, zip or file; by default what its run held out.
        metrics: some of fd, swd, nn, kid, pr (precision, recall), dc (density, coverage).
        features: the features in which all metrics but swd and nn are taken, as NAME or NAME:FILE,
            where FILE holds weights; the names are digits, pixels, effnet-lite0, resnet20,
            resnet56, inception and dinov2.
        steps: step counts, e.g. 1,2; by default those for a few-step model (or its fewest, where it
            is made for others), and the 18 of a sample for a diffusion model, which are 35 calls.
        n: the largest number of samples, and of held-out data, that toys and images are judged by;
            by default 2000. With --env it is the number of episodes, by default 50.
        env: an environment in which a policy acts, e.g. pusht; reward and success then take the
            place of distances to data.
        gif: with --env, a film of the first episode.
        guidance: scale of classifier-free guidance.
        solver: the solver of a diffusion model's ODE; by default heun, which makes two network
            calls a step, as dpm does; the others make one.
        average: name of one of the run's averages; by default the first.
        step: take the run's model as it was at this step, of which a checkpoint is kept.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
        out: a JSON file into which the numbers are written.
    """
    asked = numbers("--steps", steps, int) if steps is not None else None
    check_solver(solver)
    least = 2 if env is None else 1
    if n is not None and n < least:
        raise UsageError(f"-n must be at least {least}, got {n}")
    if env is not None:
        given = {"data": data, "held_out": held_out, "features": features, "guidance": guidance}
        for name, value in given.items():
            if value is not None:
                option = name.replace("_", "-")
                raise UsageError(f"--env judges by rewards, which --{option} says nothing of")
        places = {"average": average, "step": step, "device": device, "out": out, "gif": gif}
        evaluate_policy(model, env, asked, n, solver=solver, **places)
        return
    if gif is not None:
        raise UsageError("--gif is a film of an episode; give --env as well")
    from fewstep import evaluation
    from fewstep.evaluation.report import usual_steps
    from fewstep.model import find, load
    from fewstep.recipes.origins import origin
    from fewstep.system.processes import joined

    with joined() as world:
        folder = find(model, average, step)
        loaded = load(folder, device=device)
        if world.first:
            say_unfinished(folder)
        of = origin(model, data, held_out)
        protocol = evaluation.named_protocol(
            of.data,
            of.held_out,
            loaded.contract.data,
            2000 if n is None else n,
            background=of.background,
            recorded=of.recorded,
        )
        protocol.check()
        protocol = evaluation.chosen(protocol, metrics, features, loaded.device)
        protocol = evaluation.shared(protocol, world)
        counts = asked or usual_steps(loaded)
        judged = {steps: protocol.judge(loaded, steps, guidance, solver) for steps in counts}
        floor = protocol.floor()
    if not world.first:
        return
    named = {str(loaded.calls(steps, guidance, solver)): row for steps, row in judged.items()}
    lines = [(f"{calls} call{'s' * (calls != '1')}", row) for calls, row in named.items()]
    slowest = min(row["images_per_second"] for row in named.values())
    print(evaluation.table([*lines, ("floor", floor)], slowest))
    for note in protocol.notes():
        print(note)
    if out is not None:
        before = replaced(out)
        asked_for = {} if solver is None else {"solver": solver}
        content = {"model": named, "floor": floor, **protocol.judged_in(), **asked_for}
        evaluation.write_metrics(out, content)
        print(f"wrote {out}{before}")
