"""The same run trained twice: independent trainings, and torch as it was."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from test_resume import OBJECTIVES
from test_resume import run_of as resumable

from fewstep.errors import Interrupted
from fewstep.recipes import recipe
from fewstep.training.train import train
from own_networks import Net, Views, made, run_of
from tiny import NETWORK, settings


def weights(model) -> list[torch.Tensor]:
    return [v.clone() for v in model.denoiser.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("kind", [Net, Views])
def test_fresh_and_another_folder_begin_anew(kind, averages, tmp_path, capsys):
    run = run_of(made(kind), averages=averages)
    first = train(run, tmp_path / "a")
    kept = weights(first)
    assert "trained before" not in capsys.readouterr().err
    assert same(weights(train(run, tmp_path / "a", fresh=True)), kept)
    assert "its networks were trained before, here they begin anew" in capsys.readouterr().err
    assert same(weights(train(run, tmp_path / "b")), kept)
    assert same(weights(first), kept)


def test_seeds_in_a_loop_are_independent(tmp_path):
    run = run_of(made(Net))

    def of(seed: int, out: str, run=run):
        return weights(train(replace(run, config=replace(run.config, seed=seed)), tmp_path / out))

    zero, one = of(0, "a"), of(1, "b")
    assert not same(zero, one)
    assert same(of(1, "c", run_of(made(Net))), one)
    assert same(of(0, "d"), zero)


@pytest.mark.parametrize("name", ["cd with target", "progressive", "dmd2", "tcm", "ctm"])
def test_methods_of_several_networks_begin_anew(name, tmp_path):
    run = resumable(name, "adam")
    first = weights(train(run, tmp_path / "a"))
    assert same(weights(train(run, tmp_path / "b")), first)
    assert name in OBJECTIVES


def test_an_interrupted_run_goes_on_in_the_same_process(tmp_path):
    expected = weights(train(resumable("cd", "adam"), tmp_path / "whole"))
    run = resumable("cd", "adam", 4, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(run, tmp_path / "parts")
    assert same(weights(train(run, tmp_path / "parts")), expected)


def test_a_finished_run_is_given_again(tmp_path):
    run = run_of(made(Net), averages=False)
    first = train(run, tmp_path / "run")
    again = train(run, tmp_path / "run")
    assert same(weights(again), weights(first))
    assert again.denoiser is not run.objective.student


def test_what_the_user_changed_since_stands(tmp_path):
    run, network = run_of(made(Net)), made(Net, seed=1)
    other = weights(train(run_of(network), tmp_path / "other"))
    train(run, tmp_path / "a")
    run.objective.student.net.load_state_dict(made(Net, seed=1).state_dict())
    assert same(weights(train(run, tmp_path / "b")), other)
    run.objective.student.net.a.weight.data.mul_(1.0 + 1e-4)
    assert not same(weights(train(run, tmp_path / "c")), other)


def test_a_new_method_goes_on_from_trained_weights(tmp_path):
    network = made(Net)
    first = weights(train(run_of(network), tmp_path / "a"))
    assert not same(weights(train(run_of(network), tmp_path / "b")), first)


def test_a_recipe_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.training.first.begin", None)
    made_of = recipe("toy-edm", **NETWORK, train=settings(steps=1))
    train(made_of, tmp_path / "run")


def test_checkpointed_blocks_are_what_they_were(tmp_path):
    run = recipe("toy-edm", **NETWORK, train=settings(steps=2, checkpointing=True)).build()
    run = replace(run, finish=None)
    first = weights(train(run, tmp_path / "a"))
    assert not any("forward" in vars(m) for m in run.objective.modules())
    assert same(weights(train(run, tmp_path / "b")), first)


@pytest.mark.parametrize("given", ["run", "recipe", "interrupted"])
def test_threads_and_generator_are_as_they_were(given, tmp_path):
    runs = {
        "run": run_of(made(Net)),
        "recipe": recipe("toy-edm", **NETWORK, train=settings(steps=1)),
        "interrupted": resumable("cd", "adam", 2, signal.SIGTERM),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        with suppress(Interrupted):
            train(runs[given], tmp_path / "run")
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
