"""Interrupted, crashed, damaged, repeated: a run ends as if nothing had happened, or says why."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from fewstep.core import Batch
from fewstep.data import Dataset, toy
from fewstep.errors import Interrupted
from fewstep.model import load
from fewstep.models import (
    EDM,
    ConsistencyBoundary,
    Denoiser,
    FeatureDiscriminator,
    Flow,
    Judge,
    LowRank,
)
from fewstep.models.low_rank import learn_adapters
from fewstep.models.nets import ResidualMLP
from fewstep.models.nets.edm2 import Uncertainty
from fewstep.objectives.base import Objective
from fewstep.objectives.consistency import Consistency, Fixed, Progressive, SameNoise, TeacherStep
from fewstep.objectives.consistency_continuous import ContinuousConsistency
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.diff_instruct import DiffInstruct
from fewstep.objectives.dmd import DMD
from fewstep.objectives.dmd2 import DMD2
from fewstep.objectives.drifting import Drifting
from fewstep.objectives.ect import EasyConsistency
from fewstep.objectives.f_distill import FDistill
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.ict import Doubling, ImprovedConsistency
from fewstep.objectives.kd import KnowledgeDistillation
from fewstep.objectives.ladd import LADD
from fewstep.objectives.progressive import Halving, ProgressiveDistillation
from fewstep.objectives.rcm import RCM
from fewstep.objectives.shared.copies import frozen_copy
from fewstep.objectives.shared.matching import FewSteps
from fewstep.objectives.shared.weights import karras_weight, unweighted
from fewstep.objectives.sid import SiD
from fewstep.objectives.tcm import Curriculum, TruncatedConsistency
from fewstep.paths import Linear, Trig, VarianceExploding
from fewstep.recipes import METHODS, recipe
from fewstep.recipes.start import Start
from fewstep.system.files import flush
from fewstep.times import (
    KarrasUniform,
    LogNormal,
    ShiftedFlow,
)
from fewstep.training import checkpoints
from fewstep.training.averages import constant, warmed
from fewstep.training.config import Run
from fewstep.training.train import train
from survive import held_by_another
from tiny import WithPairs, build, fewstep, settings, timeless, trained, tree

STEPS = 10


def network(seed: int, dropout: float = 0.2) -> ResidualMLP:
    torch.manual_seed(seed)
    return ResidualMLP((2,), 8, 1, dropout=dropout)


def denoising() -> Objective:
    student = Denoiser(network(0), EDM(sigma_data=0.5))
    return Denoising(student, times=LogNormal(), weight=unweighted)


def flow_matching() -> Objective:
    student = Denoiser(network(0), Flow(path=Linear()))
    return FlowMatching(
        student, times=lambda b, rng: torch.rand(b, generator=rng, dtype=torch.float64) * 0.9 + 0.05
    )


def distillation(rate: float) -> Objective:
    student = Denoiser(network(0), ConsistencyBoundary(sigma_data=0.5))
    teacher = Denoiser(network(1), EDM(sigma_data=0.5))
    return Consistency(student, TeacherStep(teacher), schedule=Fixed(5, rate))


def adapting(name: str) -> Objective:
    """A method whose student learns adapters alone."""
    made = {"cd": lambda: distillation(0.9), "scd": of_family("scd")}[name]()
    assert isinstance(made.student, Denoiser)
    torch.manual_seed(5)
    learn_adapters(made.student.net, 2, 3.0)
    if name == "cd":
        made.target = frozen_copy(made.student)
    return made


def consistency_training() -> Objective:
    student = Denoiser(network(0), ConsistencyBoundary(sigma_data=0.5))
    return Consistency(student, SameNoise(student.path), schedule=Progressive(2, 6, STEPS))


def continuous(taught: bool) -> Objective:
    student = Denoiser(network(0), ConsistencyBoundary(sigma_data=0.5))
    teacher = Denoiser(network(1), EDM(sigma_data=0.5)) if taught else None
    return ContinuousConsistency(student, teacher, times=KarrasUniform())


def progressive() -> Objective:
    student, teacher = (Denoiser(network(seed), EDM(sigma_data=0.5)) for seed in range(2))
    return ProgressiveDistillation(student, teacher, schedule=Halving(4, 3))


def improved() -> Objective:
    student = Denoiser(network(0), ConsistencyBoundary(sigma_data=0.5))
    return ImprovedConsistency(student, schedule=Doubling(STEPS, 2, 8))


def clean(seed: int) -> Denoiser:
    return Denoiser(network(seed), EDM(sigma_data=0.5, path=VarianceExploding(0.0, 80.0)))


def matching() -> Objective:
    student, teacher, fake = (Denoiser(network(seed), EDM(sigma_data=0.5)) for seed in range(3))
    return DMD(
        student,
        teacher,
        fake,
        generate=FewSteps((80.0,)),
        weight=unweighted,
        regression=0.0,
        critic_updates=2,
    )


def easy() -> Objective:
    student = clean(0)
    return EasyConsistency(student, SameNoise(student.path), curriculum=Curriculum(3))


def truncated() -> Objective:
    student = clean(0)
    curriculum = Curriculum(3, least=1e-6, start=6)
    return TruncatedConsistency(student, clean(0), SameNoise(student.path), curriculum=curriculum)


def scored(judged: bool) -> Objective:
    student, teacher, fake = (Denoiser(network(seed), EDM(sigma_data=0.5)) for seed in range(3))
    judge = Judge(fake, toy("two-modes", 64).batch([0, 1]), width=4) if judged else None
    return SiD(student, teacher, fake, judge=judge, critic_updates=1 + judged)


def score_regularised() -> Objective:
    path = Trig(t_max=1.56)
    student, teacher, fake = (
        Denoiser(network(seed), EDM(sigma_data=0.5)).on(path) for seed in range(3)
    )
    times, matching = LogNormal(), ShiftedFlow()
    return RCM(student, teacher, fake, times=times, matching_times=matching, warmup=3, every=2)


def knowledge_distillation() -> Objective:
    student = Denoiser(network(0), EDM(sigma_data=0.5))
    return KnowledgeDistillation(student, states=(80.0,))


def apart(seed: int) -> Denoiser:
    denoiser = Denoiser(network(seed), EDM(sigma_data=0.5))
    torch.nn.init.normal_(denoiser.net.last_weight)  # fresh ones all answer the same
    return denoiser


def f_distill() -> Objective:
    fake = apart(2)
    return FDistill(
        apart(0),
        apart(1),
        fake,
        Judge(fake, Batch(torch.zeros(2, 2)), width=4),
        generate=FewSteps((80.0, 1.0)),
        weight=karras_weight(0.5),
        critic_updates=1,
        rate=0.5,
    )


def diff_instruct() -> Objective:
    generate, weight = FewSteps((1.0,)), karras_weight(0.5)
    return DiffInstruct(apart(0), apart(1), apart(2), generate=generate, weight=weight)


def adversarial() -> Objective:
    student, teacher = (Denoiser(network(seed), EDM(sigma_data=0.5)) for seed in range(2))
    judge = FeatureDiscriminator(teacher, Batch(torch.zeros(1, 2)), width=4)
    generate = FewSteps((80.0, 1.0), inputs="noised")
    times = {"times": LogNormal(1.0, 1.0), "teacher_times": KarrasUniform()}
    return LADD(student, judge, generate=generate, teacher=teacher, penalty=0.1, **times)


def drifting() -> Objective:
    student = Denoiser(network(0), EDM(sigma_data=0.5))
    return Drifting(student, generate=FewSteps((80.0,)), group=4)


def weighed() -> Objective:
    student = Denoiser(network(0), EDM(sigma_data=0.5))
    uncertainty = Uncertainty(8)
    return Denoising(student, times=LogNormal(), weight=unweighted, uncertainty=uncertainty)


def of_family(name: str, **options) -> Callable[[], Objective]:
    """As its recipe builds it."""

    def build() -> Objective:
        source, teacher = (Denoiser(network(seed), EDM(sigma_data=0.5)) for seed in range(2))
        torch.nn.init.normal_(teacher.net.last_weight)  # else both would answer the same
        chosen = METHODS[name].options(**options)
        start = Start(
            recipe=replace(recipe(f"toy-{name}", train=settings(steps=STEPS)), options=chosen),
            data=toy("two-modes", 64),
            source=source,
            teacher=teacher,
            model=None,
            drop=None,
        )
        return chosen.objective(start)

    return build


def matched(judged: Literal["fake", "teacher"], lora: bool = False) -> Objective:
    student, teacher, fake = (Denoiser(network(seed), EDM(sigma_data=0.5)) for seed in range(3))
    if lora:
        fake = LowRank(teacher, rank=2)
    return DMD2(
        student,
        teacher,
        fake,
        generate=FewSteps((80.0, 1.0)),
        weight=karras_weight(0.5),
        critic_updates=3,
        judge=Judge(fake, toy("two-modes", 64).batch(torch.arange(2)), width=4),
        judged=judged,
        penalty=1.0,
    )


OBJECTIVES = {
    "denoising": denoising,
    "denoising of equal weight": weighed,
    "flow matching": flow_matching,
    "cd": lambda: distillation(0.0),
    "cd with target": lambda: distillation(0.9),
    "ct": consistency_training,
    "ict": improved,
    "ect": easy,
    "tcm": truncated,
    "continuous cd": lambda: continuous(True),
    "continuous ct": lambda: continuous(False),
    "progressive": progressive,
    "dmd": matching,
    "sct": of_family("sct"),
    "scd": of_family("scd"),
    "ctm": of_family("ctm", points=5, solver_steps=3, rate=0.9),
    "pcm": of_family("pcm", phases=2, points=5),
    "lcm": of_family("lcm", ddim_steps=5, target=0.9),
    "adversarial ctm": of_family("ctm", points=5, solver_steps=3, rate=0.9, adversarial=1.0),
    "adversarial pcm": of_family("pcm", phases=2, points=5, adversarial=0.1),
    "meanflow": of_family("meanflow"),
    "imm": of_family("imm", group=4),
    "shortcut": of_family("shortcut", rate=0.9),
    "flowmap": of_family("flowmap"),
    "dmd2": lambda: matched("fake"),
    "dmd2 on the teacher": lambda: matched("teacher"),
    "dmd2 with adapters": lambda: matched("fake", lora=True),
    "cd of adapters": lambda: adapting("cd"),
    "scd of adapters": lambda: adapting("scd"),
    "kd": knowledge_distillation,
    "f-distill": f_distill,
    "diff-instruct": diff_instruct,
    "sid": lambda: scored(False),
    "sida": lambda: scored(True),
    "rcm": score_regularised,
    "ladd": adversarial,
    "drifting": drifting,
}


class Signalling:
    """Points; the ``at``-th access sends this process a signal, or fails like a crash."""

    def __init__(self, data: Dataset, at: int, signum: int | None) -> None:
        self.data, self.at, self.signum, self.count = data, at, signum, 0
        self.shape, self.labels, self.image = data.shape, data.labels, data.image

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices):
        if len(indices) in (2, 64):  # the checks before the first step
            return self.data.batch(indices)
        self.count += 1
        if self.count == self.at:
            if self.signum is None:
                raise ArithmeticError("the power went out")
            signal.raise_signal(self.signum)
        return self.data.batch(indices)


def run_of(objective: str, optimizer: str, at: int = 0, signum: int | None = None) -> Run:
    return Run(
        recipe="test",
        arguments={"objective": objective},
        objective=OBJECTIVES[objective](),
        data=Signalling(WithPairs(toy("two-modes", 64)), at, signum),
        config=settings(
            steps=STEPS, optimizer=optimizer, schedule="cosine", warmup=3, save_every=4
        ),
        averages={"main": constant(0.8), "slow": warmed(0.99)},
    )


def same_end(one: Path, other: Path) -> None:
    """Student, averages, target, optimisers, delivered models and logs agree bit for bit."""
    left, right = (
        load_file(checkpoints.newest(p / "checkpoints") / "state.safetensors") for p in (one, other)
    )
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []
    for model in ("model", "averages/slow"):
        a, b = ((p / model / "model.safetensors").read_bytes() for p in (one, other))
        assert a == b
    assert timeless(one) == timeless(other)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "radam"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_interrupted_ends_as_uninterrupted(objective, optimizer, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_of(objective, optimizer), whole)
    with pytest.raises(Interrupted, match="000000002; the same command resumes") as stopped:
        train(run_of(objective, optimizer, 2, signal.SIGTERM), parts)
    assert stopped.value.signum == signal.SIGTERM
    with pytest.raises(ArithmeticError):
        # After step 2 the seventh access belongs to step 9: step 8 was saved, row 9 was not.
        train(run_of(objective, optimizer, 7, None), parts)
    capsys.readouterr()
    train(run_of(objective, optimizer), parts)
    assert f"resuming from {parts}/checkpoints/000000008" in capsys.readouterr().err
    assert [row["step"] for row in timeless(parts)] == list(range(1, STEPS + 1))
    same_end(whole, parts)
    state = load_file(whole / "checkpoints" / "000000010" / "state.safetensors")
    kept = {name.split(".")[1] for name in state if name.startswith("objective.")}
    beside = {
        "cd with target": {"target"},
        "cd of adapters": {"target"},
        "scd of adapters": {"uncertainty"},
        "ct": {"target"},
        "ctm": {"target"},
        "lcm": {"target"},
        "adversarial ctm": {"target", "discriminator"},
        "adversarial pcm": {"discriminator"},
        "denoising of equal weight": {"uncertainty"},
        "dmd": {"fake"},
        "shortcut": {"target"},
        "scd": {"uncertainty"},
        "sct": {"uncertainty"},
        "progressive": {"previous", "intervals", "reached"},
        "f-distill": {"critic", "factors"},
        "diff-instruct": {"fake"},
        "sid": {"fake"},
        "sida": {"fake", "judge"},
        "rcm": {"fake"},
        "dmd2": {"critic"},
        "dmd2 on the teacher": {"critic"},
        "dmd2 with adapters": {"critic"},
        "ladd": {"judge"},
    }
    assert kept == {"student"} | beside.get(objective, set())


@pytest.mark.parametrize("at", [1, 4, 9])
def test_interrupted_at_other_steps(at, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_of("cd with target", "adam"), whole)
    with pytest.raises(Interrupted):
        train(run_of("cd with target", "adam", at, signal.SIGINT), parts)
    train(run_of("cd with target", "adam"), parts)
    same_end(whole, parts)


def test_interrupted_in_the_last_step(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_of("cd", "adam"), whole)
    with pytest.raises(Interrupted):
        train(run_of("cd", "adam", STEPS, signal.SIGTERM), parts)
    assert json.loads((parts / "run.json").read_text())["delivered"] is None
    train(run_of("cd", "adam"), parts)
    same_end(whole, parts)


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train(run_of("cd", "adam"), tmp_path / "a")
    with pytest.raises(Interrupted):
        train(run_of("cd", "adam", 2, signal.SIGINT), tmp_path / "b")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_stages_and_skips_resume(tmp_path):
    def objective() -> Objective:
        made = denoising()
        made.stage = lambda step: step // 3
        loss = made.loss

        def sometimes_bad(batch, draws):
            found = loss(batch, draws)
            return type(found)(
                {"denoising": found.terms["denoising"] / draws.t.new_tensor(made.ok)}
            )

        made.loss = sometimes_bad
        draw = made.draw

        def noting(batch, step, rng):
            made.ok = 0.0 if step in {4, 5} else 1.0
            return draw(batch, step, rng)

        made.draw = noting
        return made

    OBJECTIVES["staged"] = objective
    try:
        train(run_of("staged", "adam"), tmp_path / "whole")
        with pytest.raises(Interrupted):
            train(run_of("staged", "adam", 5, signal.SIGTERM), tmp_path / "parts")
        train(run_of("staged", "adam"), tmp_path / "parts")
    finally:
        del OBJECTIVES["staged"]
    same_end(tmp_path / "whole", tmp_path / "parts")
    assert timeless(tmp_path / "parts")[-1]["skipped"] == 2
    manifest = json.loads((tmp_path / "parts/checkpoints/000000010/state.json").read_text())
    assert (manifest["stage"], manifest["stage_start"], manifest["updates"]) == (3, 9, 1)


# The command, in a process of its own.

NETWORK = ("--width", "8", "--blocks", "1")
FEW = ("--train.batch", "8", "--train.log-every", "1", "--train.sample-every", "0")
LONG = 150


def command(out: Path, *more: object) -> list[str]:
    return [str(a) for a in ("train", "toy-edm", *NETWORK, *FEW, "--out", out, *more)]


@contextlib.contextmanager
def halted(out: Path, *more: object) -> Iterator[subprocess.Popen[str]]:
    """The command in another process, which waits in some step for us to read what it says.

    The pipe is made so small that the process cannot say, and so do, all of its steps unread.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", "from fewstep.cli import main; main()", *command(out, *more)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    try:
        for line in process.stderr:
            if line.startswith("step "):
                break
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals(signum, tmp_path, capsys):
    out, whole = tmp_path / "parts", tmp_path / "whole"
    steps = ("--train.steps", LONG)
    with halted(out, *steps) as process:
        # Meanwhile nobody else may train there.
        other = fewstep(capsys, *command(out, *steps))
        assert other.code == 2
        assert other.err == f"fewstep: another process is training in {out}\n"
        process.send_signal(signum)
        said = process.stderr.read()
        assert process.wait() == 128 + signum, said
    saved = checkpoints.newest(out / "checkpoints")
    assert 0 < int(saved.name) < LONG
    assert f"fewstep: interrupted; saved {saved}; the same command resumes" in said
    assert "Traceback" not in said
    resumed = fewstep(capsys, *command(out, *steps))
    assert resumed.code == 0
    assert f"resuming from {saved} in {out}" in resumed.err
    assert fewstep(capsys, *command(whole, *steps)).code == 0
    left, right = ((p / "model" / "model.safetensors").read_bytes() for p in (out, whole))
    assert left == right
    assert timeless(out) == timeless(whole)


@pytest.mark.parametrize("more", [(), ("--fresh",), ("--train.steps", 8)])
def test_a_folder_in_use_stays_as_it_is(more, tmp_path, capsys):
    out = tmp_path / "run"
    assert fewstep(capsys, *command(out, "--train.steps", 4)).code == 0
    before = tree(tmp_path)
    with held_by_another(out):
        outcome = fewstep(capsys, *command(out, "--train.steps", 4, *more))
    assert outcome.code == 2, outcome.err
    assert outcome.err == f"fewstep: another process is training in {out}\n"
    assert tree(tmp_path) == before


# The same command again.


def test_a_finished_run_says_so(tmp_path, capsys):
    out = tmp_path / "run"
    assert fewstep(capsys, *command(out, "--train.steps", 4)).code == 0
    before = tree(out)
    again = fewstep(capsys, *command(out, "--train.steps", 4))
    assert again.code == 0
    assert f"{out} is finished at step 4; --fresh (in Python, fresh=True) starts anew" in (
        again.err
    )
    assert tree(out) == before


def test_fresh_moves_aside_and_deletes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert fewstep(capsys, *command(out, "--train.steps", 4, "--fresh")).code == 0
    first = tree(out)
    outcome = fewstep(capsys, *command(out, "--train.steps", 3, "--width", 4, "--fresh"))
    assert outcome.code == 0
    assert f"moved the old run to {out}.1" in outcome.err
    second = tree(out)
    assert fewstep(capsys, *command(out, "--train.steps", 2, "--fresh")).code == 0
    assert tree(tmp_path / "run.1") == first
    assert tree(tmp_path / "run.2") == second
    assert [row["step"] for row in timeless(out)] == [1, 2]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--width", 12, "width: was 8, now 12"),
        ("--data", "moons", "data: was 'two-modes', now 'moons'"),
        ("--train.lr", 0.5, "train.lr: was 0.002, now 0.5"),
        ("--train.seed", 1, "train.seed: was 0, now 1"),
        ("--train.batch", 9, "train.batch: was 8, now 9"),
        ("--train.optimizer", "radam", "train.optimizer: was 'adam', now 'radam'"),
    ],
)
def test_other_arguments_are_listed_and_refused(option, value, says, tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    before = tree(tmp_path)
    outcome = fewstep(capsys, *command(out, "--train.steps", 4, option, value))
    assert outcome.code == 2
    assert outcome.err.startswith(f"fewstep: {out} holds a run with other arguments:\n  {says}\n")
    assert outcome.err.count(": was ") == 1
    assert "--fresh" in outcome.err
    assert tree(tmp_path) == before


def trained_toy(out: Path, capsys, steps: int = 4) -> Path:
    assert fewstep(capsys, *command(out, "--train.steps", steps, "--train.save-every", 2)).code == 0
    return out


def test_all_other_arguments_are_listed(tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    changed = ("--width", 12, "--blocks", 2, "--train.lr", 0.5)
    outcome = fewstep(capsys, *command(out, "--train.steps", 4, *changed))
    assert outcome.code == 2
    assert outcome.err.count(": was ") == 3


def test_another_recipe_is_refused(tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    outcome = fewstep(capsys, "train", "toy-ct", *NETWORK, "--out", out)
    assert outcome.code == 2
    assert "recipe: was 'toy-edm', now 'toy-ct'" in outcome.err


def test_steps_logging_and_device_may_change(tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    free = {"log-every": 3, "sample-every": 6, "save-every": 5, "keep": 1, "device": "cpu"}
    options = [part for name, value in free.items() for part in (f"--train.{name}", value)]
    outcome = fewstep(capsys, *command(out, "--train.steps", 7, "--train.threads", 1, *options))
    assert outcome.code == 0, outcome.err
    assert f"resuming from {out}/checkpoints/000000004" in outcome.err
    assert [row["step"] for row in timeless(out)] == [1, 2, 3, 4, 6, 7]
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000007"]
    assert (out / "samples" / "000000006.png").is_file()
    assert json.loads((out / "run.json").read_text())["run"]["train"]["steps"] == 7


def test_an_extended_run_equals_a_longer_one(tmp_path, capsys):
    constant_rate = ("--train.schedule", "constant")
    for steps in (3, 7):
        out = command(tmp_path / "parts", "--train.steps", steps, *constant_rate)
        assert fewstep(capsys, *out).code == 0
    assert (
        fewstep(capsys, *command(tmp_path / "whole", "--train.steps", 7, *constant_rate)).code == 0
    )
    left, right = (
        (tmp_path / p / "model" / "model.safetensors").read_bytes() for p in ("parts", "whole")
    )
    assert left == right


def test_no_pictures_means_none(tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    assert not (out / "samples").exists()
    assert "samples/" not in (out / "model" / "README.md").read_text()


def test_a_crash_before_delivery_delivers_later(tmp_path, capsys, monkeypatch):
    out = trained_toy(tmp_path / "run", capsys)
    short = (out / "model" / "model.safetensors").read_bytes()

    def crash(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("fewstep.training.train._deliver", crash)
        assert fewstep(capsys, *command(out, "--train.steps", 9)).code == 2
    assert fewstep(capsys, *command(out, "--train.steps", 9)).code == 0
    assert (out / "model" / "model.safetensors").read_bytes() != short


# Another teacher.


def test_another_teacher_of_the_same_name_is_refused(tmp_path, capsys):
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    trained(teacher, "toy-edm", steps=3)
    student = ("train", "toy-cd", "--teacher", teacher, *FEW, "--out", out)
    assert fewstep(capsys, *student, "--train.steps", 4).code == 0
    shutil.rmtree(teacher)
    trained(teacher, "toy-edm", steps=5)
    before = tree(out)
    outcome = fewstep(capsys, *student, "--train.steps", 8)
    assert outcome.code == 2
    assert "step.teacher" in outcome.err
    assert "--fresh" in outcome.err
    assert tree(out) == before


# Damage.


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose_an_entry(file: Path) -> None:
    values = json.loads(file.read_text())
    del values["updates"]
    file.write_text(json.dumps(values))


def change_the_step(file: Path) -> None:
    file.write_text(file.read_text().replace('"step": 4', '"step": 5'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.safetensors", truncate),
        ("state.safetensors", flip),
        ("state.safetensors", Path.unlink),
        ("state.json", truncate),
        ("state.json", flip),
        ("state.json", lose_an_entry),
        ("state.json", change_the_step),
    ],
)
def test_a_damaged_checkpoint_is_refused(name, damage, tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    checkpoint = out / "checkpoints" / "000000004"
    damage(checkpoint / name)
    outcome = fewstep(capsys, *command(out, "--train.steps", 6))
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith(f"fewstep: the checkpoint {checkpoint} is damaged")
    assert "delete it" in outcome.err
    assert "--fresh" in outcome.err
    # As it says.
    shutil.rmtree(checkpoint)
    outcome = fewstep(capsys, *command(out, "--train.steps", 6))
    assert outcome.code == 0
    assert "resuming from" in outcome.err
    assert "000000002" in outcome.err


def test_a_half_written_row_of_the_log_is_dropped(tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lr": 0.0')
    assert fewstep(capsys, *command(out, "--train.steps", 6)).code == 0
    assert [row["step"] for row in timeless(out)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("text", ["{", "[]", '{"run": {}}'])
def test_a_damaged_record_is_refused(text, tmp_path, capsys):
    out = trained_toy(tmp_path / "run", capsys)
    (out / "run.json").write_text(text)
    outcome = fewstep(capsys, *command(out, "--train.steps", 6))
    assert outcome.code == 2
    assert f"{out}/run.json is damaged" in outcome.err
    assert "--fresh" in outcome.err


def test_disk_full_in_a_checkpoint(tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "run", tmp_path / "whole"
    both = ("--train.steps", 6, "--train.save-every", 2)

    def full_at_4(path: Path) -> None:
        if "000000004" in str(path):
            raise OSError(28, os.strerror(28), str(path))
        flush(path)

    with monkeypatch.context() as patched:
        patched.setattr("fewstep.system.files.flush", full_at_4)
        outcome = fewstep(capsys, *command(out, *both))
    assert outcome.code == 2
    assert "No space left" in outcome.err
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000002"]
    assert not [name for name in tree(tmp_path) if ".new" in name or ".old" in name]
    assert checkpoints.read(out / "checkpoints" / "000000002")[1]["step"] == 2
    resumed = fewstep(capsys, *command(out, *both))
    assert resumed.code == 0
    assert f"resuming from {out}/checkpoints/000000002" in resumed.err
    assert fewstep(capsys, *command(whole, *both)).code == 0
    left, right = ((p / "model" / "model.safetensors").read_bytes() for p in (out, whole))
    assert left == right


def test_a_failed_renaming_keeps_the_old_model(tmp_path, monkeypatch):
    model = load(trained(tmp_path / "run", "toy-edm", steps=2), device="cpu")
    model.save(tmp_path / "model")
    before = tree(tmp_path / "model")
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.startswith(".new-"):
            raise OSError(5, os.strerror(5), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        model.save(tmp_path / "model")
    assert tree(tmp_path / "model") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "run"]


def test_a_crash_of_a_first_run_leaves_a_run_to_go_on_with(tmp_path, capsys, monkeypatch):
    run = build("toy-edm", steps=4)
    with monkeypatch.context() as patched:
        patched.setattr("fewstep.training.trainer.Trainer.advance", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(run, tmp_path / "run")
    train(build("toy-edm", steps=4), tmp_path / "run")
    train(build("toy-edm", steps=4), tmp_path / "whole")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
