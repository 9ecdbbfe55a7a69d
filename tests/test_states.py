"""The states that a callback of ``Model.sample`` is given, and that it changes no sample."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewstep.conditions import Mask
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.model import Model, SampleNoise
from fewstep.models import EDM, Clamped, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.paths import Linear
from fewstep.sampling_options import SOLVERS
from fewstep.solvers import STEPS, deterministic, ode
from fewstep.states import State
from oracles import GaussianFlowMap
from small_nets import shaken

KINDS = ("ode", "renoise", "deterministic", "gamma")


def model_of(kind: str, shape=(2,), denoiser=None, **data) -> Model:
    """Spread so widely that the limits of the data's range are met."""
    denoiser = denoiser or Denoiser(shaken(ResidualMLP(shape, 16, 1)), EDM(sigma_data=2.0))
    path = denoiser.path
    sampling = Sampling(
        start=Start(t=path.t_max, std=path.start_std()),
        kind=kind,
        any_times=True,
        gamma=0.5 if kind == "gamma" else None,
    )
    spec = DataSpec(shape=shape, **data)
    return Model(denoiser, Contract(method="cd", data=spec, sampling=sampling))


def states_of(model: Model, n: int = 3, **given) -> list[State]:
    states: list[State] = []
    model.sample(n, callback=states.append, **given)
    return states


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_callback_sees_every_step_and_changes_no_sample(kind, steps):
    model = model_of(kind)
    plain = model.sample(3, steps=steps, seed=4)
    states = states_of(model, steps=steps, seed=4)
    assert [(s.step, s.steps, s.first) for s in states] == [(i + 1, steps, 0) for i in range(steps)]
    times = model.times(steps)
    end = 0.0 if kind == "ode" else model.denoiser.path.t_min
    assert [s.t for s in states] == pytest.approx([*times[1:], end])
    assert states[-1].x.equal(plain)
    for state in states:
        assert state.x.dtype == torch.float32
        assert state.x.shape == (3, 2)
        assert state.x0 is not None
        assert state.x0.shape == (3, 2)
        assert not state.x.requires_grad
    assert (states[-1].x.abs().max() <= 1).all()


@pytest.mark.parametrize(
    "given", [{"solver": s} for s in SOLVERS] + [{"churn": 20.0}, {"eta": 1.0}]
)
def test_every_solver_reports_its_steps(given):
    given = {"solver": "ddim", **given} if "eta" in given else given
    model = model_of("ode")
    plain = model.sample(3, steps=4, **given)
    states = states_of(model, steps=4, **given)
    assert [s.step for s in states] == [1, 2, 3, 4]
    assert [s.t for s in states] == pytest.approx([*model.times(4)[1:], 0.0])
    assert states[-1].x.equal(plain)


def test_states_of_a_solver_are_its_own():
    model = model_of("ode")
    x = SampleNoise([(0, i) for i in range(3)], (2,))(0).double() * 80
    times = torch.tensor(model.times(4), dtype=torch.float64)
    for name in ("heun", "dpm"):
        states = states_of(model, steps=4, solver=name)
        for i in range(3):
            there = ode(model.denoiser, x, times[: i + 2], step=STEPS[name])
            assert states[i].x.equal(there.float())
            here = ode(model.denoiser, x, times[: i + 1], step=STEPS[name])
            estimate = model.denoiser(here, times[i].expand(3))
            torch.testing.assert_close(states[i].x0, estimate.float(), rtol=1e-6, atol=1e-6)


def test_states_of_a_consistency_model():
    model = model_of("renoise")
    states = states_of(model, steps=2)
    noise = SampleNoise([(0, i) for i in range(3)], (2,))
    denoiser = Clamped(model.denoiser)
    high, low = (torch.full((3,), t, dtype=torch.float64) for t in model.times(2))
    first = denoiser(noise(0).double() * 80, high)
    assert states[0].x0 is not None
    assert states[0].x0.equal(first.float())
    assert states[0].x.equal(denoiser.path.renoise(first, noise(1).double(), low).float())
    assert states[1].x.equal(states[1].x0)


def test_a_flow_map_estimates_clean_data_only_where_it_jumps_there():
    model = model_of("deterministic", denoiser=GaussianFlowMap(Linear()), range=None)
    model.to = lambda device: model  # it has no weights
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "device", torch.device("cpu"))
        model.sample(3, steps=3, callback=states.append)
    assert [s.x0 is None for s in states] == [True, True, False]
    x = SampleNoise([(0, i) for i in range(3)], (2,))(0).double()
    times = torch.tensor([1.0, 2 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(states[-1].x, deterministic(model.denoiser, x, times).float())


def test_batches_report_one_after_the_other():
    model = model_of("ode")
    whole = model.sample(5, steps=3)
    states = states_of(model, 5, steps=3, batch=2)
    assert [(s.first, s.step, len(s.x)) for s in states] == [
        *((0, i, 2) for i in (1, 2, 3)),
        *((2, i, 2) for i in (1, 2, 3)),
        *((4, i, 1) for i in (1, 2, 3)),
    ]
    found = torch.cat([s.x for s in states if s.step == 3])
    torch.testing.assert_close(found, whole, rtol=0, atol=5e-6)


@pytest.mark.parametrize("wide", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_callback_does_to_a_state_changes_no_sample(kind, wide, monkeypatch):
    model = model_of(kind)
    for module in ("sampling", "solvers"):  # float32 is the widest that some devices have
        monkeypatch.setattr(f"fewstep.{module}.widest", lambda device: wide)

    def destroy(state: State) -> None:
        state.x.zero_()
        assert state.x0 is not None
        state.x0.zero_()

    assert model.sample(3, steps=4, callback=destroy).equal(model.sample(3, steps=4))
    states = states_of(model, steps=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        states[0].step = 7  # pyright: ignore[reportAttributeAccessIssue]


def test_states_end_where_their_samples_end():
    model = model_of("ode", shape=(1, 4), conditions={"mask": Mask()}, range=None)
    states = states_of(model, 2, steps=3, lengths=[4, 2])
    for state in states:
        assert state.x0 is not None
        for x in (state.x, state.x0):
            assert x[0].all()
            assert x[1, :, :2].all()
            assert not x[1, :, 2:].any()


def test_an_error_in_a_callback_ends_the_sampling():
    seen = []

    def stop(state: State) -> None:
        seen.append(state.step)
        raise StopIteration("enough")

    with pytest.raises(StopIteration, match="enough"):
        model_of("ode").sample(3, steps=5, callback=stop)
    assert seen == [1]
