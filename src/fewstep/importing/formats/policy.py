"""Checkpoints of Consistency Policy: student, its average and teacher, with their normaliser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fewstep.conditions import Vector
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.errors import UsageError
from fewstep.frontends import Frontend
from fewstep.frontends.chunks import ChunkCodec, Observations
from fewstep.importing.architectures.policy import FIRST, policy_unet
from fewstep.importing.archives import Archive
from fewstep.importing.choice import chosen
from fewstep.importing.contracts import Levels, karras_scalings
from fewstep.importing.fitting import fit
from fewstep.importing.formats import Format
from fewstep.importing.inert import Inert
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import plain_state
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy, checked
from fewstep.model import Model
from fewstep.models import Denoiser
from fewstep.times import karras

NETWORKS = ("model_ema", "model", "teacher")
CHAIN = (27, 54)
"""Bins of the second and of the third call."""
START_STD = 1.0
"""Of the noise that samples start from: the code does not scale it."""

NORMALIZER = "normalizer.params_dict."
ENCODER = "obs_encoder."
NOT_NEEDED = "statistics of the data, from which scale and offset were made"
OF_ENCODER = (
    "the encoder of observations is not read; the condition observation is what it makes of them"
)
ASSUMED = "samples start from noise of standard deviation 1, as the code has it"


def recognise(archive: Archive) -> bool:
    """Whether it is a workspace whose model has the U-Net of diffusion policies."""
    return any(f"{name}.{FIRST}" in _state(archive) for name in NETWORKS)


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    if options.reading is not None:
        raise UsageError(
            f"{archive.source} holds a Consistency Policy, which is read in one way only; leave "
            f"out --as {options.reading}"
        )
    state, settings = _state(archive), _plain(_content(archive).get("cfg"))
    parts = {
        name: {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        for name in NETWORKS
    }
    present = [name for name, own in parts.items() if FIRST in own]
    name = chosen(present, options, archive.source)
    tensors, two_time = parts[name], name != "teacher"
    policy, horizon = _settings(settings, archive)
    description = policy_unet(
        tensors, horizon=horizon, groups=int(policy.get("n_groups", 8)), two_time=two_time
    )
    scheduler = policy.get("noise_scheduler") or {}
    if not isinstance(scheduler, dict):
        raise UsageError(f"{archive.source}: its noise_scheduler is no table of settings")
    levels = Levels(
        float(scheduler.get("data_std", 0.5)),
        float(scheduler.get("time_min", 0.02)),
        float(scheduler.get("time_max", 80.0)),
    ).given(options)
    bounded = scheduler.get("scaling", "boundary") == "boundary"
    scalings = karras_scalings("consistency" if bounded else "edm", levels, 250.0)
    network = fit(description, tensors, archive.source, archive.size)
    actions = int(description.spec["shape"][0])
    observed = int(description.spec["vectors"]["observation"])
    seen = settings.get("n_obs_steps", 2)
    if not isinstance(seen, int) or seen < 1 or observed % seen:
        raise UsageError(f"{archive.source}: {observed} numbers are not of {seen} observations")
    encoded = any(key.startswith(ENCODER) for key in state)
    codec = _codec(state, actions, observed // seen, encoded)
    data = DataSpec(
        shape=(actions, horizon),
        range=(-1.0, 1.0),
        conditions={"observation": Vector(shape=(seen, observed // seen))},
    )
    start = Start(t=scalings.path.t_max, std=START_STD)
    if two_time:
        grid = karras(int(scheduler.get("bins", 80)), levels.sigma_min, levels.sigma_max)
        chain = (start.t, *(float(grid[bin_]) for bin_ in CHAIN if bin_ < len(grid)))
        sampling = Sampling(
            start=start,
            kind="gamma",
            gamma=1.0,
            times={1: (start.t,), len(chain): chain},
            any_times=True,
        )
    else:
        sampling = Sampling(start=start, kind="ode", any_times=True)
    contract = Contract(method="ctm" if two_time else "edm", data=data, sampling=sampling)
    others = {k: f"of the network {k.split('.')[0]}" for k in state if k.split(".")[0] in NETWORKS}
    used = {f"{name}.{theirs}": target.name for theirs, target in description.targets.items()}
    rest = {k: v for k, v in others.items() if k not in used}
    rest |= {k: OF_ENCODER for k in state if k.startswith(ENCODER)}
    for key in (k for k in state if k.startswith(NORMALIZER)):
        if ".input_stats." in key or (encoded and not key.startswith(f"{NORMALIZER}action.")):
            rest[key] = OF_ENCODER if ".input_stats." not in key else NOT_NEEDED
        else:
            used[key] = "codec"
    unknown = [key for key in state if key not in used and key not in rest]
    if unknown:
        raise UsageError(f"{archive.source} holds tensors of no known part: {unknown[:5]}")
    notes = (ASSUMED, *((OF_ENCODER,) if encoded else ()))
    report = Report(format=f"Consistency Policy, {name}", used=used, unused=rest, notes=notes)
    model = Model(Denoiser(network, scalings), contract, frontend=Frontend(codec))
    return Imported(model, report)


def _content(archive: Archive) -> Mapping[str, Any]:
    return archive.content if isinstance(archive.content, dict) else {}


def _state(archive: Archive) -> Mapping[str, Lazy]:
    states = _content(archive).get("state_dicts")
    found = plain_state(states.get("model")) if isinstance(states, dict) else None
    return found or {}


def _settings(settings: Any, archive: Archive) -> tuple[Mapping[str, Any], int]:
    """The policy's settings, and the steps of a chunk."""
    policy = settings.get("policy") if isinstance(settings, dict) else None
    horizon = settings.get("horizon") if isinstance(settings, dict) else None
    if not isinstance(policy, dict) or not isinstance(horizon, int):
        raise UsageError(
            f"{archive.source} holds no settings of its policy, cfg.policy and horizon"
        )
    return policy, horizon


def _plain(value: Any) -> Any:
    """Settings as OmegaConf holds them, as plain values."""
    if not isinstance(value, Inert):
        return value
    state = value.state if isinstance(value.state, dict) else {}
    content = state.get("_content", state.get("_val"))
    if isinstance(content, dict):
        return {str(key): _plain(one) for key, one in content.items()}
    return [_plain(one) for one in content] if isinstance(content, list) else content


def _codec(state: Mapping[str, Lazy], actions: int, observed: int, encoded: bool) -> ChunkCodec:
    """The normaliser: theirs is x scale + offset, ours (x - shift) scale."""

    def of(field: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        names = [f"{NORMALIZER}{field}.{part}" for part in ("scale", "offset")]
        missing = [name for name in names if name not in state]
        if missing:
            raise UsageError(f"the file has no normaliser {missing[0]}")
        scale, offset = (checked(name, state[name]).float().flatten() for name in names)
        if len(scale) != size or len(offset) != size or not bool((scale != 0).all()):
            raise UsageError(f"the normaliser of {field} is not one of {size} numbers")
        return -offset / scale, scale

    net = Observations(actions, observed)
    if not encoded:
        for name, value in zip(("shift", "scale"), of("obs", observed), strict=True):
            net.get_buffer(name).copy_(value)
    shift, scale = of("action", actions)
    return ChunkCodec(net, shift.tolist(), scale.tolist())


FORMAT = Format("checkpoints of Consistency Policy", recognise, read)
