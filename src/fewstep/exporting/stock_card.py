"""The card of a folder for diffusers: the exact calls, and what the stock code does unasked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.card_text import MOVED
from fewstep.exporting.schedulers import CLOSE, Call
from fewstep.model import Model
from fewstep.version import __version__


def stock_card(
    model: Model,
    folder: Path,
    scheduler: Mapping[str, Any],
    pipeline: str | None,
    calls: Mapping[int, Call | None],
) -> str:
    """README.md of the folder.

    Args:
        model: that was exported.
        folder: that will hold it.
        scheduler: its configuration.
        pipeline: the class of diffusers' pipeline; None where there is none.
        calls: for numbers of steps of a consistency model, how the pipeline makes them.
    """
    data, place = model.contract.data, json.dumps(str(folder))
    head = (
        f"# A {model.contract.method} model for diffusers\n\n"
        f"This folder holds a model of data of {data.summary()} as a `UNet2DModel` beside a "
        f"`{scheduler['_class_name']}`, in float32. It was written by fewstep {__version__}. "
        "`fewstep.json` has the contract of the model"
    )
    if calls:
        return (
            f"{head} and the calls below.\n\n{_consistency(model, place, scheduler, calls)}"
            f"{_remarks(model, scheduler, calls)}"
        )
    return f"{head}.\n\n{_diffusion(model, place, scheduler, pipeline)}"


def _labels(model: Model, n: int) -> str:
    return f"torch.arange({n}) % {model.contract.data.labels}"


def _consistency(
    model: Model, place: str, scheduler: Mapping[str, Any], calls: Mapping[int, Call | None]
) -> str:
    ready = {steps: call for steps, call in calls.items() if call is not None}
    shown = ready[2] if 2 in ready else ready[min(ready)]
    labels = f"    class_labels={_labels(model, 4)},\n" if model.contract.data.labels else ""
    code = (
        "import torch\nfrom diffusers import ConsistencyModelPipeline\n\n"
        f"pipeline = ConsistencyModelPipeline.from_pretrained({place})\n"
        "images = pipeline(\n    batch_size=4,\n"
        f"{labels}    num_inference_steps=None,\n    timesteps={[*shown.timesteps]},\n"
        '    generator=torch.Generator().manual_seed(0),\n    output_type="np",\n).images\n'
    )
    rows = [
        f"| {steps} | {_row(call)} |"
        for steps, call in sorted(calls.items(), key=lambda item: item[0])
    ]
    return (
        f"```python\n{code}```\n\n{MOVED}\n\n"
        "The scheduler cannot store a list of times, so the call gives it: positions on the grid "
        f"of {scheduler['num_train_timesteps']} noise levels, of which 0 is the highest.\n\n"
        "| steps | argument | noise levels of the calls | of the model's own times |\n"
        "| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
    )


def _row(call: Call | None) -> str:
    if call is None:
        return "none: two times of the model share a position of the grid | |"
    sigmas = ", ".join(f"{sigma:.5g}" for sigma in call.sigmas)
    exact = "the same" if call.error < 1e-6 else f"off by {100 * call.error:.2g}%"
    own = ", ".join(f"{sigma:.5g}" for sigma in call.wanted)
    return f"`timesteps={[*call.timesteps]}` | {sigmas} | {own}: {exact}"


def _remarks(model: Model, scheduler: Mapping[str, Any], calls: Mapping[int, Call | None]) -> str:
    data, points = model.contract.data, scheduler["num_train_timesteps"]
    remarks = [
        "A list must end on 0. A list such as `timesteps=[22]` gives the network noise of "
        f"{scheduler['sigma_max']:g} as if it were noise of that position's level.",
        "`num_inference_steps=n` takes other levels than the table's where n is above 1."
        + (
            f" For n from {points // 2 + 1} to {points - 1} it takes the n highest levels of the "
            "grid only."
            if points > 2
            else ""
        ),
        "`torch_dtype` sets the precision when the pipeline is loaded; without it the weights are "
        "float32.",
    ]
    if any(call is not None and call.error > CLOSE for call in calls.values()):
        remarks.append(
            "Where the levels differ from the model's own times, `Model.sample(times=[...])` with "
            "the levels of the table does what the pipeline does."
        )
    if data.labels:
        remarks += [
            "Without `class_labels` the pipeline draws them from torch's global generator, so that "
            "`generator` does not fix the pictures.",
            f"The classes are numbered from 0 to {data.labels - 1}. The label {data.labels}, which "
            "stands for no class in fewstep, is not stored, and the pipeline has no guidance.",
        ]
    if data.shape[0] != 3:
        remarks.append(
            f"The pipeline refuses `latents=` of {data.shape[0]} channel(s), because it expects 3; "
            "give a `generator`."
        )
    return "What the stock code does:\n\n" + "".join(f"- {remark}\n" for remark in remarks)


def _diffusion(model: Model, place: str, scheduler: Mapping[str, Any], pipeline: str | None) -> str:
    name, data = scheduler["_class_name"], model.contract.data
    network = f'{place}, subfolder="unet"' if pipeline else place
    shape = ", ".join(map(str, data.shape))
    labels = f", class_labels={_labels(model, 4)}" if data.labels else ""
    code = (
        f"import torch\nfrom diffusers import {name}, UNet2DModel\n\n"
        f"unet = UNet2DModel.from_pretrained({network})\n"
        f'scheduler = {name}.from_pretrained({place}, subfolder="scheduler")\n'
        "scheduler.set_timesteps(50)\n"
        "generator = torch.Generator().manual_seed(0)\n"
        f"x = torch.randn(4, {shape}, generator=generator) * scheduler.init_noise_sigma\n"
        "with torch.no_grad():\n    for t in scheduler.timesteps:\n"
        f"        raw = unet(scheduler.scale_model_input(x, t), t{labels}).sample\n"
        "        x = scheduler.step(raw, t, x, generator=generator).prev_sample\n"
    )
    stock = (
        f"`{pipeline}.from_pretrained(FOLDER)` loads it, too. "
        if pipeline
        else "diffusers has no pipeline that gives such a network what it needs. "
    )
    return (
        f"```python\n{code}```\n\n{MOVED} {stock}The network's answers mean the same in "
        "diffusers as in fewstep, at the numbers of steps or the noise levels that the scheduler "
        "knows. The solvers are not the same, so samples of equal noise are not equal.\n"
    )
