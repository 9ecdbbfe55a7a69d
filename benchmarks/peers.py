"""Whole training steps beside those of official code, in one run on this machine.

python benchmarks/peers.py --fastgen FOLDER --consistency-models FOLDER [--rows sct,ct] [--pairs 9]

FOLDERs are clones of NVlabs/FastGen and openai/consistency_models, whose own requirements have to
be installed; a row without its clone, or whose clone cannot be imported, is left out and named.
Each side runs in a fresh process on DDPM++ of 64 channels, 32 x 32 pixels, batches of 8 and no
dropout. The two are asked for a step in turn. A row has the medians of the pairs' ratios by the
clock and by CPU time with their quartiles, and the peaks of memory of both processes.

A pair waits until the load average is below --load; after --patience seconds it is measured all the
same, and the row is marked as taken under load.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import MagicMock

import torch

from fewstep import bench
from fewstep.models import EDM, ConsistencyBoundary, Denoiser
from fewstep.objectives.consistency import Consistency, Fixed, SameNoise, TeacherStep
from fewstep.objectives.shared.distances import l2
from fewstep.training.averages import constant
from fewstep.training.memory import MIB, most_resident

RATES = (0.999, 0.9999, 0.9999432)
"""Of the evaluation averages of OpenAI's launch scripts."""
STANDINS = (
    *("piq", "torchvision", "mpi4py", "blobfile"),
    *("wandb", "boto3", "botocore", "webdataset", "av", "cv2", "imageio", "ftfy", "timm"),
)
"""What the peers import and these rows do not call; where it is missing, an empty module is it."""
CALM, PATIENCE = 0.3, 120.0

Step = Callable[[], Any]


# Our sides.


def sct() -> Step:
    return bench.sct()


def meanflow() -> Step:
    return bench.meanflow()


def ct() -> Step:
    return discrete(None)


def cd() -> Step:
    torch.manual_seed(0)
    return discrete(Denoiser(bench.network(), EDM(sigma_data=0.5)))


def discrete(teacher: Denoiser | None) -> Step:
    """Consistency training or distillation with a target network and three averages."""
    torch.manual_seed(0)
    student = Denoiser(bench.network(), ConsistencyBoundary(sigma_data=0.5))
    source = SameNoise(student.path) if teacher is None else TeacherStep(teacher.on(student.path))
    objective = Consistency(
        student,
        source,
        schedule=Fixed(40, 0.95),
        distance=l2,
        weight=lambda t, r: torch.ones_like(t),
    )
    rules = {str(rate): constant(rate) for rate in RATES}
    return bench.stepping(objective, rules, optimizer="radam")


# Their sides.


def fastgen(method: str, configuration: str, second: bool) -> Step:
    """A step of FastGen's own model class with its own optimiser."""
    overriding = importlib.import_module("fastgen.configs.config_utils").override_config_with_opts
    config = importlib.import_module(configuration).create_config().model
    sizes = ["model_channels=64", "channel_mult=[1,2,2]", "+num_blocks=2", "dropout=0.0"]
    others = ["label_dim=0", "augment_dim=0", f"r_timestep={second}"]
    config.net = overriding(config.net, ["-", *sizes, *others])
    config.device, config.precision = torch.device("cpu"), "float32"
    config.pretrained_model_path, config.input_shape = "", [*bench.SHAPE]
    config.use_ema = False
    model = getattr(importlib.import_module("fastgen.methods"), method)(config)
    model.on_train_begin()
    model.init_optimizers()
    none = torch.zeros(bench.BATCH, 0)
    real = torch.rand(bench.BATCH, *bench.SHAPE) * 2 - 1
    data = {"real": real, "condition": none, "neg_condition": none}
    count = iter(range(10**6))

    def step() -> None:
        i = next(count)
        model.optimizers_zero_grad(i)
        losses, _ = model.single_train_step(data, i)
        model.grad_scaler.scale(losses["total_loss"]).backward()
        model.optimizers_schedulers_step(i)

    return step


def openai(distils: bool) -> Step:
    """OpenAI's loss and averages around the same network, with torch's RAdam as they have it."""
    loss = importlib.import_module("cm.karras_diffusion").KarrasDenoiser
    update_ema = importlib.import_module("cm.nn").update_ema
    torch.manual_seed(0)
    net = bench.network().train()
    copies = [copy.deepcopy(net).requires_grad_(False) for _ in range(1 + len(RATES))]
    diffusion = loss(distillation=True, loss_norm="l2", weight_schedule="uniform")
    teacher = copy.deepcopy(net).requires_grad_(False) if distils else None
    teachers = loss(distillation=False, loss_norm="l2") if distils else None
    optimizer = torch.optim.RAdam(net.parameters(), lr=1e-6)
    real = torch.rand(bench.BATCH, *bench.SHAPE) * 2 - 1

    def step() -> None:
        terms = diffusion.consistency_losses(
            net, real, 40, target_model=copies[0], teacher_model=teacher, teacher_diffusion=teachers
        )
        terms["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for each, rate in zip(copies, (0.95, *RATES), strict=True):
            update_ema([*each.parameters()], [*net.parameters()], rate)

    return step


EDM_CONFIGS = "fastgen.configs.experiments.EDM"
ROWS: dict[str, tuple[str, Step | Callable[[], Step], Callable[[], Step]]] = {
    "sct": (
        "fastgen",
        sct,
        lambda: fastgen("SCMModel", f"{EDM_CONFIGS}.config_sct_cifar10", False),
    ),
    "meanflow": (
        "fastgen",
        meanflow,
        lambda: fastgen("MeanFlowModel", f"{EDM_CONFIGS}.config_mf_cifar10", True),
    ),
    "ct": ("consistency_models", ct, lambda: openai(False)),
    "cd": ("consistency_models", cd, lambda: openai(True)),
}
"""The clone that a row needs, our side, and the peer's."""


# One side in a process of its own.


class Absent(MetaPathFinder, Loader):
    """Imports an empty stand-in for packages that are not installed, and for what is in them."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Of a stand-in; other names are none of ours."""
        ours = fullname.partition(".")[0] in STANDINS
        return ModuleSpec(fullname, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> Any:
        """A module whose every attribute is there."""
        return MagicMock(name=spec.name)

    def exec_module(self, module: Any) -> None:
        """It has no code."""


def serve(row: str, side: str) -> None:
    """Make steps on request; each answer is a line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    with suppress(ImportError):  # these look for packages of those names when they are imported
        importlib.import_module("diffusers")
        importlib.import_module("transformers")
    sys.meta_path.append(Absent())  # behind what is installed
    _, ours, theirs = ROWS[row]
    step = (ours if side == "ours" else theirs)()

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer("ready")
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), time.process_time()
        step()
        seconds = time.perf_counter() - clock, time.process_time() - cpu
        answer([*seconds, most_resident() / MIB])


class Side:
    """A process that makes steps of one side of a row."""

    def __init__(self, row: str, side: str, clone: Path, threads: int) -> None:
        path = os.pathsep.join([*([str(clone)] if side == "theirs" else []), *sys.path])
        environment = {**os.environ, "PYTHONPATH": path}
        words = [sys.executable, __file__, "--serve", row, side, "--threads", str(threads)]
        self.process = subprocess.Popen(
            *(words,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.answer()

    def answer(self) -> Any:
        """What the process says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("its process ended; what it printed says why")
        return json.loads(line)

    def step(self) -> tuple[float, float, float]:
        """Seconds by the clock and of CPU time, and the peak in MiB so far."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def waited(load: float, patience: float) -> bool:
    """Wait for a calm machine; False where none came."""
    began = time.monotonic()
    while os.getloadavg()[0] > load:
        if time.monotonic() - began > patience:
            return False
        time.sleep(5)
    return True


def measured(row: str, clone: Path, given: argparse.Namespace) -> dict[str, Any]:
    sides: list[Side] = []
    try:
        for name in ("ours", "theirs"):
            sides.append(Side(row, name, clone, given.threads))
        for side in sides:
            for _ in range(2):
                side.step()
        pairs, calm, patience = [], True, given.patience
        for i in range(given.pairs):
            calm &= waited(given.load, patience)
            patience = patience if calm else 0.0
            order = (0, 1) if i % 2 else (1, 0)
            times = {k: sides[k].step() for k in order}
            pairs.append((times[0], times[1]))
    finally:
        for side in sides:
            side.close()
    peaks = [max(pair[k][2] for pair in pairs) for k in range(2)]
    return {
        "row": row,
        "clock": spread([ours[0] / theirs[0] for ours, theirs in pairs]),
        "cpu": spread([ours[1] / theirs[1] for ours, theirs in pairs]),
        "peak_mib": [round(p) for p in peaks],
        "peak": round(peaks[0] / peaks[1], 3),
        "pairs": len(pairs),
        "calm": calm,
    }


def spread(ratios: Sequence[float]) -> list[float]:
    """Median and quartiles."""
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return [round(x, 3) for x in (median(ratios), low, high)]


def line(figures: dict[str, Any]) -> str:
    clock, cpu = ("{:.2f} ({:.2f} to {:.2f})".format(*figures[k]) for k in ("clock", "cpu"))
    ours, theirs = figures["peak_mib"]
    under = "" if figures["calm"] else "  times under load"
    peak = f"{ours:,}/{theirs:,} MiB = {figures['peak']:.2f}"
    return f"{figures['row']:<10} {clock:<22} {cpu:<22} {peak}{under}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fastgen", type=Path)
    parser.add_argument("--consistency-models", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", type=float, default=CALM)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.serve:
        serve(*given.serve)
        return
    rows = given.rows.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"unknown row(s) {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if given.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {given.pairs}")
    print(f"torch {torch.__version__}, {given.threads} thread(s), ours over theirs; quartiles")
    print(f"{'row':<10} {'by the clock':<22} {'by CPU time':<22} peak")
    every = []
    for row in rows:
        clone: Path | None = getattr(given, ROWS[row][0])
        if clone is None:
            print(f"{row:<10} left out: give --{ROWS[row][0].replace('_', '-')} FOLDER", flush=True)
            continue
        try:
            every.append(measured(row, clone, given))
        except (RuntimeError, OSError) as error:
            print(f"{row:<10} left out: {error}", flush=True)
        else:
            print(line(every[-1]), flush=True)
    if given.json:
        print(json.dumps(every, indent=2))


if __name__ == "__main__":
    main()
