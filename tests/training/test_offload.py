"""What waits in the CPU's memory: the same numbers, nothing used while it is away, and how much."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_resume import OBJECTIVES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.core import UsageError
from fewstep.data import toy
from fewstep.models import LowRank
from fewstep.training.averages import constant
from fewstep.training.memory import estimate
from fewstep.training.train import dry
from fewstep.training.trainer import Trainer
from tiny import WithPairs, build, fewstep, settings

CPU = torch.device("cpu")
DATA = WithPairs(toy("two-modes", 64))
STEPS = 4


def trainer(name: str, **changed) -> Trainer:
    config = settings(batch=8, accumulation=2, **changed)
    return Trainer(OBJECTIVES[name](), DATA, config, {"main": constant(0.9)}, CPU)


def advanced(made: Trainer, steps: int = STEPS) -> dict[str, torch.Tensor]:
    for _ in range(steps):
        made.advance()
    return {k: v.clone() for k, v in made.state()[0].items()}


def tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def apart(made: Trainer) -> dict[str, list[torch.Tensor]]:
    """By kind, the tensors that wait now; without optimisers' counts of steps."""
    assert made.offload is not None
    copies = made.offload.copies
    frozen = [t for n in made.objective.frozen for t in tensors(made.objective.get_submodule(n))]
    kinds = {
        "frozen": frozen,
        "average": [t for c in made.averages.copies.values() for t in tensors(c)],
    } | {
        name: [v for entry in o.state.values() for k, v in entry.items() if k != "step"]
        for name, o in made.optimizers.items()
    }
    return {
        kind: [t for t in found if t in copies and t.data_ptr() == copies[t].data_ptr()]
        for kind, found in kinds.items()
    }


class Forbidden(TorchDispatchMode):
    """Fails where an operation is given a tensor that waits, but to copy it."""

    def __init__(self, away: dict[str, list[torch.Tensor]]) -> None:
        super().__init__()
        self.places = {t.data_ptr() for ts in away.values() for t in ts if t.numel()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.numel() and "copy" not in func.__name__:
                assert leaf.data_ptr() not in self.places, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_learns_the_same(name):
    plain, moved = (advanced(trainer(name, offload=on)) for on in (False, True))
    assert plain.keys() == moved.keys()
    assert all(torch.equal(plain[key], moved[key]) for key in plain)


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("dmd2", {"frozen", "average", "student", "critic"}),
        ("sida", {"frozen", "average", "student", "critic"}),
        ("ladd", {"frozen", "average", "student", "heads"}),
        ("scd", {"frozen", "average"}),
    ],
)
def test_no_loss_is_given_what_waits(name, wait, monkeypatch):
    made, kinds = trainer(name, offload=True), set()
    phases = made.objective.phases()

    def guarded(score):
        def found(batch, draws):
            away = {kind: ts for kind, ts in apart(made).items() if ts}
            with Forbidden(away):
                loss = score(batch, draws)
            kinds.update(away)
            return loss

        return found

    monkeypatch.setattr(
        made.objective,
        "phases",
        lambda: [replace(p, loss=guarded(p.loss), more=[*map(guarded, p.more)]) for p in phases],
    )
    advanced(made)
    assert kinds == wait


def test_a_network_that_adapters_share_stays():
    made = trainer("dmd2 with adapters", offload=True)
    assert any(isinstance(m, LowRank) for m in made.objective.modules())
    advanced(made, 3)  # the generator's turn is the first
    assert [kind for kind, ts in apart(made).items() if ts] == ["average", "student"]


def test_each_phase_has_what_it_needs_and_nothing_else():
    made = trainer("dmd2", offload=True)
    advanced(made, 1)  # generator, then critic
    assert [kind for kind, ts in apart(made).items() if ts] == ["frozen", "student"]
    advanced(made, 1)  # critic alone
    assert [kind for kind, ts in apart(made).items() if ts] == ["frozen", "average", "student"]
    made.offload.begin("student", made.optimizers)
    assert [kind for kind, ts in apart(made).items() if ts] == ["average", "critic"]


def test_an_average_that_is_asked_for_is_there():
    made = trainer("dmd2", offload=True)
    advanced(made, 2)
    assert apart(made)["average"]
    given = made.student("main")
    assert apart(made)["average"] == []
    assert given is made.averages.copies["main"]


def test_a_device_without_a_number_is_the_first_one():
    given = OBJECTIVES["dmd2"](), DATA, settings(batch=8, accumulation=2, offload=True)
    made = Trainer(*given, {"main": constant(0.9)}, torch.device("cpu:0"))
    advanced(made, 2)
    assert [kind for kind, ts in apart(made).items() if ts] == ["frozen", "average", "student"]


def test_a_module_within_brings_its_network_back():
    made = trainer("dmd2", offload=True)
    advanced(made, 2)
    away = apart(made)["frozen"]
    assert away
    made.objective.teacher.net.first(torch.zeros(1, 2))
    assert apart(made)["frozen"] == []


def test_at_the_end_all_is_back_and_nothing_watches():
    made = trainer("dmd2", offload=True)
    hooks = [len(m._forward_pre_hooks) for m in made.objective.teacher.modules()]
    assert any(hooks)
    advanced(made, 2)
    made.close()
    assert not any(apart(made).values())
    assert not any(len(m._forward_pre_hooks) for m in made.objective.teacher.modules())


def test_what_waits_is_told_before():
    made = trainer("dmd2", offload=True)
    run = replace(build("toy-edm"), objective=made.objective, data=DATA, config=made.config)
    told = {p.name.split(",")[0]: p.away for p in estimate(run, made).passes}
    advanced(made)
    for phase in ("student", "critic"):
        made.offload.begin(phase, made.optimizers)
        assert told[phase] == sum(t.nbytes for ts in apart(made).values() for t in ts)
    assert told["averages follow"] == min(told["student"], told["critic"]) - sum(
        t.nbytes for t in tensors(made.averages.copies["main"])
    )


def test_a_run_on_the_cpu_has_nowhere_to_put_it(tmp_path, capsys):
    done = fewstep(capsys, "train", "digits-edm", "--train.offload", "--out", tmp_path / "run")
    assert done.code == 2
    assert "this run is on the CPU; leave it out" in done.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="on the CPU"):
        dry(replace(build("toy-edm"), config=settings(offload=True)))


def test_compiled_networks_stay_where_they_are():
    with pytest.raises(UsageError, match=r"leave out --train.offload"):
        trainer("denoising", offload=True, compile=True)
