"""AdamW with averages of 8 bits: it learns, resumes bit for bit, and is small."""

from __future__ import annotations

import sys

import pytest
import torch

from fewstep.core import UsageError
from fewstep.training import checkpoints
from fewstep.training.optimizers import load_optimizer, optimizer_of, state_of, state_size
from survive import differing, run_of, tensors, trainer_of
from tiny import settings


def config(**changed):
    return settings(**{"optimizer": "adam8bit", "warmup": 0, **changed})


def optimiser(parameters, **changed):
    pytest.importorskip("bitsandbytes", reason="the extra adam8bit is not installed")
    return optimizer_of(parameters, config(**changed))


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(8))]


def steps(made, of, count: int) -> None:
    for i in range(count):
        for p in of:
            # A gradient that never vanishes: 8 bits of a constant would be exact.
            p.grad = p.detach() + 0.1 * torch.sin(torch.arange(p.numel()) + i).reshape(p.shape)
        made.step()


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match=r"needs the extra: pip install 'fewstep\[adam8bit\]'"):
        optimizer_of(parameters(), config())


def test_it_steps_about_as_adamw_does():
    ours, theirs = parameters(), parameters()
    start = [p.detach().clone() for p in ours]
    steps(optimiser(ours, lr=1e-2), ours, 20)
    steps(optimizer_of(theirs, config(lr=1e-2, optimizer="adamw")), theirs, 20)
    for a, b, first in zip(ours, theirs, start, strict=True):
        way = (b - first).norm()
        assert way > 0.05 * first.norm()
        assert (a - b).norm() < 0.05 * way


def test_its_state_comes_back_bit_for_bit(tmp_path):
    whole, parts = parameters(), parameters()
    steps(optimiser(whole), whole, 6)
    first = optimiser(parts)
    steps(first, parts, 3)
    saved = {
        f"o.{i}.{k}": torch.as_tensor(v) for i, e in state_of(first).items() for k, v in e.items()
    }
    second = optimiser(parts)
    load_optimizer(second, saved, "o.")

    def later(made, of):
        for i in range(3, 6):
            for p in of:
                p.grad = p.detach() + 0.1 * torch.sin(torch.arange(p.numel()) + i).reshape(p.shape)
            made.step()

    later(second, parts)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_run_resumes_bit_for_bit(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra adam8bit is not installed")
    whole = trainer_of(run_of(optimizer="adam8bit"))
    for _ in range(6):
        whole.advance()
    first = trainer_of(run_of(optimizer="adam8bit"))
    for _ in range(3):
        first.advance()
    saved = checkpoints.save(tmp_path, 3, first.state(), 1)
    second = trainer_of(run_of(optimizer="adam8bit"))
    second.load(checkpoints.read(saved), saved)
    for _ in range(3):
        second.advance()
    assert differing(tensors(whole.state()), tensors(second.state())) == []


def test_its_size_is_what_the_plan_says():
    of = parameters()
    made = optimiser(of)
    steps(made, of, 1)
    names = ("state1", "state2", "absmax1", "absmax2")
    real = sum(e[n].nbytes for e in state_of(made).values() for n in names if n in e)
    assert state_size(of, config()) == real
    assert state_size(of, config()) < state_size(of, config(optimizer="adam")) / 3.8
