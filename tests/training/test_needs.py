"""What a run says of its memory before it begins, and what it may turn on."""

from __future__ import annotations

from dataclasses import replace

import torch

from fewstep.recipes import recipe
from fewstep.training import checkpoints, needs
from fewstep.training.memory import estimate
from fewstep.training.train import dry, train
from survive import differing, run_of, tensors, trainer_of
from tiny import settings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def distilled(**own):
    few = settings(steps=2, batch=8, **own)
    made = recipe("digits-cd", target=0.9, train=few).build()
    return replace(made, finish=None)


def test_a_large_run_says_what_it_needs_before_it_begins(monkeypatch, tmp_path, capsys):
    train(run_of(), tmp_path / "small")
    assert "memory, estimated" not in capsys.readouterr().err
    monkeypatch.setattr(needs, "LARGE", 0)
    train(run_of(), tmp_path / "large")
    said = capsys.readouterr().err
    assert said.index("memory, estimated:") < said.index("starting in")
    one, other = (
        checkpoints.read(checkpoints.newest(tmp_path / name / "checkpoints"))[0]
        for name in ("small", "large")
    )
    assert differing(one, other) == []
    train(run_of(steps=13), tmp_path / "large")  # a run that is resumed fitted before
    assert "memory, estimated" not in capsys.readouterr().err


def test_a_run_on_an_accelerator_always_says_it():
    assert needs.is_large(run_of(), GPU)
    assert not needs.is_large(run_of(), CPU)


def test_the_plan_is_made_without_the_device_and_leaves_the_run_as_it_was():
    run = run_of(checkpointing=False)
    before = tensors(trainer_of(run).state())
    flags = [p.requires_grad for p in run.objective.parameters()]
    with needs.on_the_cpu(run) as made:
        told = estimate(run, made, 1, GPU)
        here = estimate(run, made)
    assert "process and libraries" not in told.held
    assert "process and libraries" in here.held
    assert told.peak < here.peak
    assert flags == [p.requires_grad for p in run.objective.parameters()]
    assert differing(before, tensors(trainer_of(run).state())) == []


def said_of(run, device=GPU) -> list[str]:
    with needs.on_the_cpu(run) as made:
        return needs.needs(run, made, device).splitlines()


def test_what_can_be_turned_on_is_what_is_off(monkeypatch):
    monkeypatch.setattr(needs, "free_bytes", lambda device: None)
    lines = said_of(distilled())
    at = lines.index("if this does not fit, turn on:")
    options = {line.split()[0] + (" bf16" * ("bf16" in line)) for line in lines[at + 1 :]}
    assert options == {
        *("--lora", "--train.precision bf16", "--train.optimizer", "--train.offload"),
        *("--train.batch", "--train.checkpointing"),
    }
    more = said_of(distilled(offload=True, precision="bf16", checkpointing=True))
    options = {line.split()[0] for line in more[more.index("if this does not fit, turn on:") + 1 :]}
    assert options == {"--lora", "--train.optimizer", "--train.batch"}
    adapted = replace(recipe("digits-cd", lora=2, train=settings(steps=2)).build(), finish=None)
    assert not any("--lora" in line for line in said_of(adapted))
    assert not any("--train.offload" in line for line in said_of(distilled(), CPU))


def test_a_run_that_does_not_fit_is_told_so(monkeypatch):
    monkeypatch.setattr(needs, "free_bytes", lambda device: 3 * 2**20)
    monkeypatch.setattr(needs.Estimate, "peak", property(lambda self: 4 * 2**20))
    lines = said_of(distilled())
    assert "this does not fit into the 3 MiB that are free on cuda; turn on:" in lines
    monkeypatch.setattr(needs, "free_bytes", lambda device: 5 * 2**20)
    assert "if this does not fit, turn on:" in said_of(distilled())


def test_a_dry_run_says_the_same():
    assert "turn on:" in dry(distilled())
    free = needs.free_bytes(CPU)
    assert free is None or free > 2**20


def test_savings_of_adapters_are_what_adapters_save():
    run = distilled()
    with needs.on_the_cpu(run) as made:
        told = estimate(run, made, 1, GPU)
        (line,) = [s for s in needs.savings(run, made, told, GPU) if s.startswith("--lora")]
    student = sum(p.numel() for p in run.objective.student.parameters())
    # One average, two moments and a gradient of each weight in float32.
    assert f"about {4 * 4 * student / 2**20:,.0f} MiB" in line
