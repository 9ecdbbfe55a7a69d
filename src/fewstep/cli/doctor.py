"""``fewstep doctor``."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from fewstep.errors import UsageError
from fewstep.option_kinds import Text


def doctor(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    data: Text = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 256,
    average: Text = None,
    device: Text = None,
    json: bool = False,
) -> None:
    """Say what a diffusion model is, and whether it may be distilled.

    Each line ends in what to do, or in fine. The exit code is 1 if distilling is pointless.

    Args:
        model: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        data: digits, mnist, fashion-mnist, cifar10, a toy's name, or its training images (a
            folder, zip or prepared file); by default the training data of its run. Without data,
            less can be said.
        n: number of samples of the data, at least 2.
        average: name of one of the run's averages, if not the first.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
        json: print everything, measurements included, as JSON.
    """
    if n < 2:
        raise UsageError(f"-n must be at least 2, got {n}")
    from json import dumps

    from fewstep import evaluation
    from fewstep.doctor import examine
    from fewstep.model import load
    from fewstep.recipes.origins import origin

    loaded = load(model, average=average, device=device)
    made = loaded.contract.data
    try:
        of = origin(model, data, None)
        samples, _ = evaluation.training_samples(
            of.data, made, None, loaded.device, held_out=of.held_out, background=of.background
        )
    except UsageError as error:
        if data is not None:
            raise
        print(f"without data: {error}", file=sys.stderr)
        samples = None
    examination = examine(loaded, samples, n=n)
    print(dumps(examination.as_json(), indent=2) if json else examination.text())
    if not examination.distillable:
        raise SystemExit(1)
