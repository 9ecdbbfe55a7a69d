"""The contract of a model: the times at which it may generate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import UsageError
from fewstep.data import toy
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.ict import Doubling, ImprovedConsistency
from fewstep.training.config import Run, TrainConfig
from fewstep.training.train import contract, dry, train


def spec(any_times: bool = True) -> Contract:
    sampling = Sampling(
        start=Start(t=80.0, std=80.0),
        kind="renoise",
        times={1: (80.0,), 2: (80.0, 1.0)},
        any_times=any_times,
    )
    return Contract(method="ct", data=DataSpec(shape=(2,)), sampling=sampling)


def test_times_join_those_of_the_method():
    own = spec()
    found = own.with_times({2: [80.0, 0.8], 3: (80.0, 2.0, 0.5)})
    assert found.sampling.times == {1: (80.0,), 2: (80.0, 0.8), 3: (80.0, 2.0, 0.5)}
    assert own.sampling.times == {1: (80.0,), 2: (80.0, 1.0)}
    rest = {"times": own.sampling.times}
    assert found.sampling.model_copy(update=rest) == own.sampling
    assert (found.method, found.data) == (own.method, own.data)
    assert own.with_times({}) == own
    assert Contract.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "times", [{2: (80.0,)}, {2: (40.0, 1.0)}, {2: (80.0, 90.0)}, {2: (80.0, 0.0)}]
)
def test_times_that_do_not_fit_are_refused(times):
    with pytest.raises(UsageError, match=r"sampling times do not fit: .* of 2 step\(s\)"):
        spec().with_times(times)


def test_a_model_of_fixed_times_takes_no_others():
    own = spec(any_times=False)
    assert own.with_times({2: (80.0, 1.0)}) == own
    with pytest.raises(UsageError, match=r"generates at the times .* only"):
        own.with_times({2: (80.0, 0.8)})


def run(**settings) -> Run:
    network = ResidualMLP((2,), width=8, blocks=1)
    student = Denoiser(network, ConsistencyBoundary(sigma_data=0.5))
    return Run(
        recipe="",
        arguments={},
        objective=ImprovedConsistency(student, schedule=Doubling(8, 2, 4)),
        data=toy("two-modes"),
        config=TrainConfig(steps=1, batch=4, device="cpu", sample_every=0),
        **settings,
    )


def test_a_run_puts_its_sampling_times_into_the_contract(tmp_path):
    plain = run()
    assert contract(plain).sampling.times == {1: (80.0,)}
    times = {2: (80.0, 0.8)}
    timed = replace(plain, sampling_times=times)
    assert contract(timed).sampling.times == {1: (80.0,), **times}
    assert train(timed, tmp_path / "run").contract.sampling.times == {1: (80.0,), **times}


@pytest.mark.parametrize("start", [dry, lambda wrong: train(wrong, "never")])
def test_a_run_of_wrong_times_does_not_start(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="sampling times do not fit"):
        start(run(sampling_times={2: (1.0, 0.8)}))
    assert not (tmp_path / "never").exists()
