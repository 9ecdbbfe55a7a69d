"""``fewstep push``."""

from __future__ import annotations

from typing import Annotated

import tyro

from fewstep.option_kinds import Text, Whole


def push(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    repository: Annotated[str, tyro.conf.arg(metavar="OWNER/NAME")],
    /,
    *,
    private: bool = False,
    message: str = "Upload a model",
    licence: Text = None,
    average: Text = None,
    step: Whole = None,
) -> None:
    """Upload a model to the Hugging Face Hub: its weights, its description and a model card.

    The token is the one of HF_TOKEN or of hf auth login. The card has the evaluation of the model's
    run, where there is one.

    Args:
        model: a model folder, a run folder or a bundled name.
        repository: the repository that receives the model; it is made where there is none.
        private: make a repository that only you can see.
        message: the message of the commit.
        licence: the licence of the model, such as cc-by-4.0; by default the one of its card.
        average: name of one of the run's averages; by default the first.
        step: take the run's model as it was at this step, of which a checkpoint is kept.
    """
    from dataclasses import replace

    from fewstep import hub
    from fewstep.model import find, load
    from fewstep.training.described import evaluation, note

    hub.parse(f"{hub.PREFIX}{repository}")
    folder = find(model, average, step)
    loaded = load(folder, device="cpu")
    if licence is not None:
        loaded.card = replace(loaded.card, licence=licence)
    # metrics.json is of the run's own model, not of its other averages or of earlier steps.
    run = folder.resolve().parent
    own = folder.name == "model" and (run / "run.json").is_file()
    numbers = evaluation(run / "metrics.json") if own else {}
    address = loaded.push_to_hub(
        repository,
        private=private,
        message=message,
        numbers=numbers or None,
        note=note() if numbers else "",
    )
    print(f"uploaded {loaded!r}: {address}")
    print(f"fewstep.load('hub:{repository}') loads it")
