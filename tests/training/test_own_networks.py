"""What users froze stays frozen; what their networks share is stored once and shared again."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fewstep
from fewstep.core import UsageError
from fewstep.models import Denoiser
from fewstep.objectives.shared.copies import follow, frozen_copy
from fewstep.training import checkpoints
from fewstep.training.posthoc import PowerFunction
from fewstep.training.train import train
from fewstep.training.trainer import Trainer
from fewstep.weights import learnable
from own_networks import ALL, POINTS, Fourier, Frozen, Net, Tied, TwoNames, Views, made, run_of


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(before: dict[str, torch.Tensor], network: nn.Module) -> set[str]:
    return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}


# Frozen.


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "weight_decay": 0.5, "clip": 0.1}])
@pytest.mark.parametrize(
    ("kind", "stays"), [(Frozen, {"a.weight", "a.bias"}), (Fourier, {"table", "count"})]
)
def test_what_is_frozen_stays(kind, stays, settings, tmp_path, capsys):
    network = made(kind)
    before = state(network)
    model = train(run_of(network, **settings), tmp_path / "run")
    assert moved(before, network) == {*before} - stays
    assert moved(before, model.denoiser.net) == {*before} - stays
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    assert flags == {name: name not in stays for name in flags}
    count = sum(before[name].numel() for name in stays)
    assert (
        f"\n{count} of the parameters are frozen and stay as they are\n" in capsys.readouterr().err
    )
    saved = load_file(checkpoints.newest(tmp_path / "run/checkpoints") / "state.safetensors")
    assert sum(name.endswith("exp_avg") for name in saved) == len(before) - len(stays)


def test_a_network_without_frozen_weights_says_nothing_of_them(tmp_path, capsys):
    train(run_of(made(Net)), tmp_path / "run")
    assert "stay as they are" not in capsys.readouterr().err


def test_a_copy_of_a_loaded_model_learns_but_for_what_was_frozen(tmp_path):
    train(run_of(made(Fourier)), tmp_path / "teacher")
    teacher = fewstep.load(tmp_path / "teacher", network=Fourier(), device="cpu")
    student = copy.deepcopy(teacher.denoiser.net)
    assert not any(p.requires_grad for p in student.parameters())
    before = state(student)
    train(run_of(student), tmp_path / "student")
    assert moved(before, student) == {*before} - {"table", "count"}


def test_a_network_that_its_user_froze_as_a_whole_is_refused(tmp_path):
    network = made(Net).requires_grad_(False)
    assert learnable(network) == []
    with pytest.raises(UsageError, match=r"nothing to learn.*requires_grad_\(True\)"):
        train(run_of(network), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    network.b.requires_grad_(True)
    assert learnable(network) == [network.b.weight, network.b.bias]


class Answering(Net):
    """Answers something else than a tensor of the samples' shape."""

    answer: Any = None

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return self.answer(super().forward(x, c_noise, s_noise, cond))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda out: out[:, :1],
            r"returned a tensor of shape \(\d+, 1\) for samples of shape \(\d+, 2\)",
        ),
        (lambda out: (out, out), "returned a tuple; expected one tensor"),
        (lambda out: None, "returned a NoneType; expected one tensor"),
    ],
)
def test_an_answer_of_another_kind_is_refused(answer, words, tmp_path):
    network = made(Answering)
    network.answer = answer
    with pytest.raises(UsageError, match=f"Answering {words}"):
        train(run_of(network), tmp_path / "run")


def test_lazy_layers_are_refused():
    network = made(Net)
    network.more = torch.nn.LazyLinear(2)
    with pytest.raises(UsageError, match=r"has lazy layers.*call it once on a sample"):
        run_of(network)


def test_whole_numbers_before_the_weights_do_not_change_the_precision(tmp_path):
    network = made(Net)
    old = dict(network.named_children())
    for name in old:
        delattr(network, name)
    network.order = torch.nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
    for name, child in old.items():
        setattr(network, name, child)
    assert not next(network.parameters()).is_floating_point()
    train(run_of(network), tmp_path / "run")


def test_what_is_turned_on_again_learns():
    network = frozen_copy(made(Frozen))
    assert {id(p) for p in learnable(network)} == {id(network.b.weight), id(network.b.bias)}
    network.a.weight.requires_grad_(True)
    assert learnable(network) == [network.a.weight]


def test_frozen_weights_are_not_normalised(tmp_path):
    class Sphere(nn.Linear):
        def normalise_weights(self) -> None:
            with torch.no_grad():
                self.weight /= self.weight.norm()

    network = made(Net)
    network.a, network.b = Sphere(3, 8), Sphere(8, 2)
    network.a.requires_grad_(False)
    before = state(network)
    train(run_of(network), tmp_path / "run")
    assert moved(before, network) == {"b.weight", "b.bias"}
    assert float(network.b.weight.detach().norm()) == pytest.approx(1.0)


def test_nothing_to_learn_is_refused():
    network = made(Fourier)
    network.a = network.b = network.table = None
    run = run_of(network)
    with pytest.raises(UsageError, match=r"nothing to learn as its student.*requires_grad_"):
        Trainer(run.objective, run.data, run.config, {}, torch.device("cpu"))


# Shared.


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_interrupted_is_uninterrupted(name, average, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_of(made(ALL[name]), averages=average, steps=6), whole)
    train(run_of(made(ALL[name]), averages=average, steps=4), parts)
    train(run_of(made(ALL[name], seed=1), averages=average, steps=6), parts)
    left, right = (
        load_file(checkpoints.newest(p / "checkpoints") / "state.safetensors")
        for p in (whole, parts)
    )
    # The frozen weights of a resumed run are those of its checkpoint, too.
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_a_model_is_the_same_when_loaded(name, dtype, tmp_path):
    model = train(run_of(made(ALL[name])), tmp_path / "run")
    if dtype is not None:
        model.save(tmp_path / "run/model", dtype=dtype)
    own = made(ALL[name], seed=1)
    again = fewstep.load(tmp_path / "run", network=own, device="cpu")
    tolerance = 0 if dtype is None else 0.02
    torch.testing.assert_close(again.sample(5), model.sample(5), rtol=0, atol=tolerance)
    assert again.denoiser.net is own


@pytest.mark.parametrize(
    ("kind", "once"), [(Tied, {"net.d.weight"}), (TwoNames, {"net.d.weight", "net.d.bias"})]
)
def test_shared_weights_are_stored_once_and_shared_again(kind, once, tmp_path):
    train(run_of(made(kind)), tmp_path / "run")
    stored = load_file(tmp_path / "run/model/model.safetensors")
    assert {*Denoiser(kind(), run_of(kind()).objective.student.preconditioning).state_dict()} == {
        *stored
    } | once
    assert once.isdisjoint(stored)
    newest = checkpoints.newest(tmp_path / "run/checkpoints")
    checkpoint = load_file(newest / "state.safetensors")
    assert "objective.student.net.c.weight" in checkpoint
    assert {f"objective.student.{name}" for name in once}.isdisjoint(checkpoint)
    assert {f"average.ema.{name}" for name in once}.isdisjoint(checkpoint)
    again = fewstep.load(tmp_path / "run", network=kind(), device="cpu").denoiser.net
    assert again.d.weight is again.c.weight


def test_a_network_that_shares_nothing_reads_what_was_shared(tmp_path):
    class Apart(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.d = nn.Linear(8, 8)

    model = train(run_of(made(Tied)), tmp_path / "run")
    again = fewstep.load(tmp_path / "run", network=Apart(), device="cpu")
    assert torch.equal(again.sample(3), model.sample(3))
    assert again.denoiser.net.d.weight is not again.denoiser.net.c.weight
    train(run_of(made(Apart)), tmp_path / "apart")
    with pytest.raises(
        UsageError, match=r"other values for net\.d\.weight than for net\.c\.weight"
    ):
        fewstep.load(tmp_path / "apart", network=Tied(), device="cpu")


@pytest.mark.parametrize("ties", [["net.a.weight"], {"net.d.weight": 3}, "all"])
def test_odd_ties_in_a_file_are_refused(ties, tmp_path):
    import json

    train(run_of(made(Tied)), tmp_path / "run")
    config = tmp_path / "run/model/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tied": ties}))
    with pytest.raises(UsageError, match="tied must hold names by name"):
        fewstep.load(tmp_path / "run", network=Tied())


def test_views_and_expanded_buffers_stay_what_they_are(tmp_path):
    network = made(Views)
    model = train(run_of(network), tmp_path / "run")
    assert network.grid[0] == 4
    for net in (model.denoiser.net, fewstep.load(tmp_path / "run", network=Views()).denoiser.net):
        assert net.part.tolist() == [4.0 + i for i in range(8)]
        assert net.scale.tolist() == [0.5] * 8
        net.grid.zero_()
        assert not net.part.any()


def test_averages_of_expanded_buffers_follow():
    student = made(Views)
    average = frozen_copy(student)
    with torch.no_grad():
        student.scale[:1].fill_(2.0)
        student.grid.fill_(3.0)
    follow(average, student, 0.5)
    assert average.scale.tolist() == [2.0] * 8
    assert average.part.tolist() == [3.0] * 8
    assert average.scale.stride() == (0,)


def test_averages_leave_whole_numbers_and_frozen_weights_alone():
    student = made(Fourier)
    average = frozen_copy(student)
    with torch.no_grad():
        student.a.weight.add_(1.0)
        student.count.add_(1)
    before = average.a.weight.clone()
    follow(average, student, 0.75)
    torch.testing.assert_close(average.a.weight, before + 0.25)
    assert average.count.tolist() == [4, 5]
    assert torch.equal(average.table, student.table)


def test_snapshots_of_views(tmp_path):
    run = run_of(made(Views), steps=8, snapshot_every=2)
    train(replace(run, averages={"power": PowerFunction(0.1)}), tmp_path / "run")
    assert len([*(tmp_path / "run/snapshots").iterdir()]) == 4


def test_forward_mode_is_checked_beside_whole_numbers():
    from fewstep.training.check import check_derivative

    check_derivative(run_of(made(Fourier)).objective, POINTS)
