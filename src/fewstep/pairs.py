"""Noise and what a diffusion model's ODE makes of it, in shards, for methods that learn from it.

Pair i has the noise of sample i (a function of the seed and i), and every shard is computed in
batches of its own. So the bytes of a shard depend on the command alone: a killed command that is
repeated, and any number of processes, leave the same folder. Processes never meet: they share the
folder and the locks in it, and the last to finish completes ``pairs.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.core import Cond, UsageError, widest
from fewstep.data.encoded import Encoded
from fewstep.data.pairs import OTHER, RECORD, About, Pairs, name_of, opened, packed, read_record
from fewstep.data.shards import compare_settings, file_digest, held
from fewstep.model import Model, SampleNoise
from fewstep.models import AbstractDenoiser
from fewstep.paths import Event, Time
from fewstep.sampling_options import SOLVERS
from fewstep.system.bars import bar
from fewstep.system.files import LOCK, TEMPORARY, whole_file, write_json
from fewstep.system.processes import ALONE, World
from fewstep.training.checkpoints import fingerprint

Conditions = Callable[[range], dict[str, Tensor]]
"""Conditions of pairs by their numbers, on the CPU."""


class Outcome(NamedTuple):
    """Shards that were made and that were there already; the pairs, once all processes are done."""

    made: int
    kept: int
    pairs: Pairs | None


def make(
    model: Model,
    out: str | Path,
    n: int,
    *,
    solver: str = "heun",
    steps: int | None = None,
    guidance: float | None = None,
    label: int | None = None,
    cond: Mapping[str, Any] | None = None,
    drawn: Encoded | None = None,
    seed: int = 0,
    shard_size: int = 1024,
    batch: int = 256,
    paths: int = 0,
    world: World = ALONE,
) -> Outcome:
    """Write pairs, or what is missing of them.

    ``x`` is what ``model.sample`` gives with the same seed, guidance and steps, before it is
    limited to the data's range; the solver there is Heun's.

    Args:
        model: a diffusion model.
        out: the folder.
        n: how many.
        solver: heun, euler, ddim, dpm or dpm++2m.
        steps: times at which the solver stops; 18 if not given.
        guidance: scale of classifier-free guidance; 1 is none.
        label: of all pairs; by default the index modulo the number of labels.
        cond: other conditions by name, one row for all pairs or ``n`` rows.
        drawn: encoded data, from whose samples each pair draws one and takes its conditions, such
            as its caption.
        seed: pair i is a function of (seed, i).
        shard_size: pairs in a file.
        batch: pairs at a time; changes nothing but memory, speed and the rounding of sums.
        paths: states of the ODE's path to store between noise and sample.
        world: this process makes every ``size``-th shard, from ``rank`` on.

    Raises:
        UsageError: the model is no diffusion model, an argument is out of its range, the folder
            holds something else, or another process makes the same shard.
    """
    out = Path(out)
    sampling, data, path = model.contract.sampling, model.contract.data, model.denoiser.path
    if sampling.kind != "ode":
        raise UsageError(
            f"this {model.contract.method} model is sampled by {sampling.kind}, in few steps; "
            "pairs are made of a diffusion model, by its ODE"
        )
    least = {"-n": (n, 1), "--shard-size": (shard_size, 1), "--batch": (batch, 1)}
    for name, (value, low) in (least | {"--seed": (seed, 0), "--paths": (paths, 0)}).items():
        if value < low:
            raise UsageError(f"{name} must be at least {low}, got {value}")
    if solver not in SOLVERS:
        raise UsageError(f"--solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    grid = model.times(steps)
    if paths >= len(grid):
        raise UsageError(
            f"{len(grid)} step(s) have {len(grid) - 1} state(s) between noise and sample, got "
            f"--paths {paths}; take more --steps"
        )
    if data.masked:
        raise UsageError("pairs are of one shape, and this model's samples differ in length")
    conditions = _conditions(model, n, label, cond, drawn, seed)
    others = {name: one for name, one in data.conditions.items() if name != "label"}
    denoiser = model.guided(guidance, conditions(range(1)))
    about = About(
        teacher=fingerprint(model.denoiser),
        path=str(path),
        start=(sampling.start.t, sampling.start.std),
        solver=solver,
        steps=len(grid),
        grid=sampling.grid,
        guidance=1.0 if guidance is None else guidance,
        seed=seed,
        label=label,
        n=n,
        shard_size=shard_size,
        shape=tuple(size for size in data.shape if size is not None),
        labels=data.labels,
        range=data.range,
        path_times=tuple(grid[len(grid) * j // (paths + 1)] for j in range(1, paths + 1)),
        conditions=others,
        given=drawn.fingerprint if drawn else _digest(data.convert(cond, n)) if cond else "",
    )
    out.mkdir(parents=True, exist_ok=True)
    with _opened(out, about) as handle:
        teacher = _Teacher(model, denoiser, grid, about, conditions)
        made, kept = _shards(teacher, about, out, batch, world, handle)
        with held(handle, 0, str(out / RECORD)):
            done = _complete(out, about)
    return Outcome(made, kept, Pairs(out) if done else None)


def _conditions(
    model: Model,
    n: int,
    label: int | None,
    cond: Mapping[str, Any] | None,
    drawn: Encoded | None,
    seed: int,
) -> Conditions:
    """The conditions of pairs by their numbers.

    Raises:
        UsageError: they are not those of the model, or a model of texts is given none.
    """
    data = model.contract.data
    if drawn is None:
        if model.frontend.text is not None and not cond:
            raise UsageError(
                "this model reads texts, and pairs of the empty text alone teach a student no "
                "others; give --data ENCODED, the data whose captions the pairs draw, or --cond"
            )
        every = model.conditions(range(n), cond, label=label)
        return lambda indices: {k: v[indices.start : indices.stop] for k, v in every.items()}
    if cond or label is not None:
        raise UsageError(
            "the pairs draw their conditions from --data; leave --cond and --label out"
        )
    if not data.agrees(drawn.spec):
        raise UsageError(
            f"the model generates {data.summary()}, the data {drawn.folder} has "
            f"{drawn.spec.summary()}; encode it with the model's own (fewstep data encode --like)"
        )
    rows = np.random.default_rng([seed, len(drawn)]).integers(len(drawn), size=n)
    return lambda indices: dict(drawn.batch(rows[indices.start : indices.stop]).cond)


@contextmanager
def _opened(out: Path, about: About) -> Iterator[Any]:
    """Begin pairs in a folder, or go on with them; gives the handle of its locks."""
    own = {LOCK, RECORD, f"{TEMPORARY}{RECORD}"}
    if not (out / RECORD).exists() and any(p.name not in own for p in out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no pairs; choose another --out")
    with (out / LOCK).open("w") as handle:
        with held(handle, 0, str(out / RECORD)):
            if (out / RECORD).exists():
                _compare(out, read_record(out), about)
            else:
                write_json(out / RECORD, about.model_dump(mode="json"))
        yield handle


def _compare(out: Path, before: About, about: About) -> None:
    compare_settings(before.settings(), about.settings(), out, "pairs")


def _shards(
    teacher: _Teacher, about: About, out: Path, batch: int, world: World, handle: Any
) -> tuple[int, int]:
    """Make this process's shards that are not there; how many were made, and how many kept."""
    parts = about.shards()
    own = range(world.rank, len(parts), world.size)
    made = 0
    with bar("making", "pairs", sum(len(parts[i]) for i in own)) as advance:
        for i in own:
            target = out / name_of(i)
            with held(handle, 1 + i, str(target), wait=False):
                if _whole(target, about, i):
                    advance(len(parts[i]))
                    continue
                states = []
                for start in range(parts[i].start, parts[i].stop, batch):
                    states.append(teacher(range(start, min(start + batch, parts[i].stop))))
                    advance(len(states[-1]["x"]))
                tensors = {name: torch.cat([one[name] for one in states]) for name in states[0]}
                with whole_file(target) as fresh:
                    fresh.write_bytes(packed(tensors, about, i))
                made += 1
    return made, len(own) - made


def _digest(cond: Mapping[str, Tensor]) -> str:
    """The sha256 of conditions."""
    digest = hashlib.sha256()
    for key in sorted(cond):
        digest.update(key.encode())
        # One row that is repeated is the same condition for any number of pairs.
        rows = cond[key][:1] if cond[key].stride()[0] == 0 else cond[key]
        digest.update(rows.contiguous().numpy().data)
    return digest.hexdigest()


def _whole(path: Path, about: About, shard: int) -> bool:
    try:
        opened(path, about, shard, verify=True)
    except UsageError:
        return False
    return True


def _complete(out: Path, about: About) -> bool:
    """Write the sha256 of all shards, if all are there."""
    names = [name_of(i) for i in range(len(about.shards()))]
    if not all((out / name).exists() for name in names):
        return False
    digests = {name: file_digest(out / name) for name in names}
    write_json(out / RECORD, about.model_copy(update={"sha256": digests}).model_dump(mode="json"))
    return True


class _Teacher:
    """From indices to their pairs."""

    def __init__(
        self,
        model: Model,
        denoiser: AbstractDenoiser,
        grid: list[float],
        about: About,
        conditions: Conditions,
    ) -> None:
        self.model, self.about, self.conditions = model, about, conditions
        self.times = torch.tensor(grid, dtype=torch.float64)
        # As float32 where the device has no other.
        between = torch.tensor(about.path_times, dtype=widest(model.device)).tolist()
        self.denoiser = _Seen(denoiser, between)

    @torch.no_grad()
    def __call__(self, indices: range) -> dict[str, Tensor]:
        about, device = self.about, self.model.device
        noise = SampleNoise([(about.seed, i) for i in indices], about.shape)(0)
        cond = self.conditions(indices)
        there = {key: value.to(device) for key, value in cond.items()}
        x = noise.to(device, widest(device)) * about.start[1]
        x = SOLVERS[about.solver](self.denoiser, x, self.times, there)
        last = self.times[-1:].to(x.device, x.dtype).expand(len(x))
        tensors = {"noise": noise, "x": self.denoiser(x, last, None, there).float().cpu()}
        tensors |= {k if k == "label" else f"{OTHER}{k}": v for k, v in cond.items()}
        if about.path_times:
            states = [state.float().cpu() for state in self.denoiser.states.values()]
            tensors["path"] = torch.stack(states, 1)
        return tensors


class _Seen(AbstractDenoiser):
    """Keeps the last state that it was asked at each of some times: the solver's own.

    Heun's method asks the same times first where it only tries to go.
    """

    def __init__(self, denoiser: AbstractDenoiser, times: Sequence[float]) -> None:
        super().__init__()
        self.denoiser, self.path = denoiser, denoiser.path
        self.cond_keys, self.two_time = denoiser.cond_keys, denoiser.two_time
        self.calls = denoiser.calls
        self.wanted = tuple(times)
        self.states: dict[float, Tensor] = {}

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The denoiser's answer."""
        if (at := float(t[0])) in self.wanted:
            self.states[at] = x
        return self.denoiser(x, t, s, cond)
