"""Solvers, eta and churn of diffusion models; what more steps of a consistency model mean."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.core import UsageError
from fewstep.errors import UsageWarning
from fewstep.model import Model, SampleNoise, load
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.paths import Linear
from fewstep.sampling_options import SOLVERS
from fewstep.solvers import STEPS, Churn, dpmpp_2m, ode, stochastic_ddim
from fewstep.times import to_zero
from small_nets import shaken
from tiny import fewstep


def model_of(kind: str = "ode", path=None, **sampling) -> Model:
    scalings = EDM(sigma_data=0.5)
    denoiser = Denoiser(
        shaken(ResidualMLP((2,), 16, 1, classes=2)), scalings.on(path) if path else scalings
    )
    path = denoiser.path
    start = Start(t=path.t_max, std=path.start_std())
    given = {"start": start, "kind": kind, "any_times": True, "guidance": Guidance(), **sampling}
    data = DataSpec(shape=(2,), labels=2, range=None)
    return Model(denoiser, Contract(method="m", data=data, sampling=Sampling(**given)))


def start(n: int = 4) -> tuple[torch.Tensor, SampleNoise, dict]:
    noise = SampleNoise([(0, i) for i in range(n)], (2,))
    return noise(0).double() * 80, noise, {"label": torch.arange(n) % 2}


def ended(model: Model, x: torch.Tensor, cond: dict, steps: int) -> torch.Tensor:
    last = torch.full((len(x),), model.times(steps)[-1], dtype=torch.float64)
    return model.denoiser(x, last, None, cond).float()


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_those_of_their_names(name):
    model, (x, _, cond) = model_of(), start()
    times = torch.tensor(model.times(5), dtype=torch.float64)
    if name == "dpm++2m":
        there = dpmpp_2m(model.denoiser, x, times, cond)
    else:
        there = ode(model.denoiser, x, times, cond, step=STEPS[name])
    found = model.sample(4, steps=5, solver=name)
    assert found.equal(ended(model, there, cond, 5))
    assert found.equal(model.sample(4, steps=5)) == (name == "heun")


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_is_the_noise_of_ddim(eta):
    model, (x, noise, cond) = model_of(), start()
    times = torch.tensor(model.times(5), dtype=torch.float64)
    there = stochastic_ddim(model.denoiser, x, times, noise, cond, eta=eta)
    assert model.sample(4, steps=5, solver="ddim", eta=eta).equal(ended(model, there, cond, 5))
    none = model.sample(4, steps=5, solver="ddim", eta=0.0)
    assert none.equal(model.sample(4, steps=5, solver="ddim"))


@pytest.mark.parametrize("name", ["heun", "euler"])
def test_churn_is_that_of_edm(name):
    # As in EDM's code: noise before each of the steps, the last one to clean data included.
    model, (x, noise, cond) = model_of(), start()
    times = to_zero(torch.tensor(model.times(5), dtype=torch.float64))
    wanted = ode(
        model.denoiser, x, times, cond, step=STEPS[name], churn=Churn(40.0), noise=noise
    ).float()
    assert model.sample(4, steps=5, solver=name, churn=40.0).equal(wanted)
    none = model.sample(4, steps=5, solver=name, churn=0.0)
    assert none.equal(model.sample(4, steps=5, solver=name))
    assert not none.equal(wanted)


@pytest.mark.parametrize("given", [{"churn": 30.0}, {"solver": "ddim", "eta": 1.0}])
def test_noise_between_steps_belongs_to_the_sample(given):
    model = model_of()
    whole = model.sample(5, steps=4, seed=2, **given)
    torch.testing.assert_close(model.sample(5, steps=4, seed=2, batch=2, **given), whole)
    torch.testing.assert_close(model.sample(2, steps=4, seed=2, first=3, **given), whole[3:])


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_calls_are_counted_as_each_solver_makes_them(name, guidance, monkeypatch):
    model, made = model_of(), []
    own = Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda s, x, *r: made.append(len(x)) or own(s, x, *r))
    given = [{}] + ([{"churn": 9.0}] if name in {"heun", "euler"} else [])
    for further in given + ([{"eta": 0.5}] if name == "ddim" else []):
        for steps in (1, 4):
            made.clear()
            model.sample(3, steps=steps, solver=name, guidance=guidance, **further)
            assert sum(made) == 3 * model.calls(steps, guidance, name)


@pytest.mark.parametrize("kind", ["renoise", "deterministic", "gamma"])
@pytest.mark.parametrize("given", [{"solver": "heun"}, {"eta": 0.0}, {"churn": 0.0}])
def test_few_step_models_have_no_solver(kind, given):
    model = model_of(kind, **({"gamma": 0.5} if kind == "gamma" else {}))
    (name, value), *_ = given.items()
    with pytest.raises(UsageError, match=f"sampled by {kind}.*no ODE.*{name}={value!r}.*leave it"):
        model.sample(2, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "hoin"}, "unknown solver 'hoin'; did you mean 'heun'"),
        ({"solver": "euler", "eta": 0.5}, "eta belongs to the solver ddim, got euler"),
        ({"eta": 0.5}, "eta belongs to the solver ddim, got heun"),
        ({"solver": "ddim", "eta": 1.1}, r"eta must be in \[0, 1\], got 1.1"),
        ({"solver": "ddim", "eta": float("nan")}, "eta must be"),
        ({"solver": "dpm", "churn": 1.0}, "churn belongs to the solvers heun and euler, got dpm"),
        ({"churn": -1.0}, "churn must be finite and at least 0, got -1.0"),
        ({"churn": float("inf")}, "churn must be finite"),
    ],
)
def test_what_does_not_fit_together(given, message):
    with pytest.raises(UsageError, match=message):
        model_of().sample(2, **given)


def test_churn_needs_noise_levels():
    model = model_of(path=Linear())
    with pytest.raises(UsageError, match="this model's path is Linear"):
        model.sample(2, churn=1.0)
    for name in SOLVERS:
        assert model.sample(2, steps=3, solver=name).isfinite().all()
    assert model.sample(2, steps=3, solver="ddim", eta=1.0).isfinite().all()


def test_the_command_line_passes_solvers_on(tmp_path, capsys):
    folder = model_of().save(tmp_path / "m")
    model = load(folder, device="cpu")
    common = ("sample", folder, "-n", 3, "--steps", 3, "--out", tmp_path / "x.npz")
    for words, given, calls in (
        (("--solver", "euler"), {"solver": "euler"}, 3),
        (("--solver", "dpm++2m"), {"solver": "dpm++2m"}, 3),
        (("--solver", "dpm"), {"solver": "dpm"}, 5),
        (("--solver", "ddim", "--eta", 0.7), {"solver": "ddim", "eta": 0.7}, 3),
        (("--churn", 12), {"churn": 12.0}, 5),
    ):
        outcome = fewstep(capsys, *common, *words)
        assert outcome.code == 0, outcome.err
        assert f"of {calls} network call(s) each" in outcome.out
        with np.load(tmp_path / "x.npz") as arrays:
            assert arrays["x"].tolist() == model.sample(3, steps=3, **given).tolist()


# Many steps.


def test_many_steps_of_a_consistency_model_are_explained():
    model = model_of("renoise", times={1: (80.0,), 2: (80.0, 0.8)})
    with pytest.warns(
        UsageWarning, match="made for 1, 2 step.*got steps=12.*adds noise.*re-noising"
    ):
        model.sample(2, steps=12)
    with pytest.warns(UsageWarning, match="re-noising"):
        model_of("gamma", gamma=0.5).sample(2, steps=9)


def test_no_other_steps_are_remarked_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of("renoise").sample(2, steps=8)
        model_of("renoise").sample(2, times=model_of("renoise").times(12))  # asked for on purpose
        model_of("ode").sample(2, steps=20)
        model_of("deterministic").sample(2, steps=20)
        model_of("gamma", gamma=0.5).sample(2, steps=20, gamma=0.0)


def test_models_of_few_steps_alone_refuse_many():
    model = model_of("renoise", times={1: (80.0,)}, any_times=False)
    with pytest.raises(UsageError, match="made for 1 step, got 1000; take what it is made for"):
        model.sample(2, steps=1000)


def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    folder = model_of("renoise", times={1: (80.0,)}).save(tmp_path / "m")
    for _ in range(2):  # each command says it anew
        outcome = fewstep(
            capsys, "sample", folder, "-n", 2, "--steps", 30, "--out", tmp_path / "x.npz"
        )
        assert outcome.code == 0
        notes = [line for line in outcome.err.splitlines() if line.startswith("note: ")]
        assert len(notes) == 1
        assert "steps=30" in notes[0]
        assert "UsageWarning" not in outcome.err


# The bundled models, as version 0.1.0 samples them.


def test_samples_of_the_bundled_models_stay_what_they_were():
    # Rounding of other machines moves them by about 1e-6.
    found = load("digits-cd", device="cpu").sample(2, steps=2, seed=1)[1].flatten()[:6]
    wanted = [-1.0, -0.96645868, -0.72275126, 1.0, 0.89047629, -1.0]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1.5, "2"])
def test_a_number_of_steps_is_whole(steps):
    with pytest.raises(UsageError, match="steps must be a whole number"):
        load("digits-cd", device="cpu").sample(2, steps=steps)
