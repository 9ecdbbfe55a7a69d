"""The examination of teachers: every item on a healthy model and on sick ones."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest
import torch
from torch import nn

from fewstep import doctor
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.core import UsageError, expand
from fewstep.data import Arrays, Mixture, digits
from fewstep.doctor import Finding, calls, readings, scales
from fewstep.doctor.conditions import guidance
from fewstep.doctor.forward import derivatives
from fewstep.doctor.probe import prepare, with_answers
from fewstep.doctor.readings import parametrisation
from fewstep.model import Model, find, load
from fewstep.models import (
    EDM,
    ConsistencyBoundary,
    DataPrediction,
    Denoiser,
    Flow,
    NoisePrediction,
    Switched,
    TrigFlow,
    VPrediction,
)
from fewstep.models.nets import ResidualMLP
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Path,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from oracles import Gaussian, path_id
from small_nets import shaken
from tiny import fewstep

D = torch.float64
GAUSSIAN = Gaussian(0.3, 0.7)
MIXTURE = Mixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-0.6, 0.2], [0.5, -0.8]]), torch.tensor([0.1, 0.2])
)
KINDS = {"noise": NoisePrediction, "v": VPrediction, "flow": Flow, "data": DataPrediction}


class Exact(nn.Module):
    """The network that makes an exact denoiser of its preconditioning."""

    cond_keys: tuple[str, ...] = ()
    two_time = False

    def __init__(self, scalings, of=GAUSSIAN):
        super().__init__()
        self.scalings, self.of = scalings, of
        self.one = nn.Parameter(torch.ones(1, dtype=D))
        # Times by c_noise, which is monotonic in all parametrisations.
        path = scalings.path
        low, high = max(path.t_min, 1e-6 * path.t_max), path.t_max
        self.grid = torch.logspace(np.log10(low), np.log10(high), 5_000, dtype=D)
        self.grid[-1] = high
        self.noises = scalings.coefficients(self.grid).c_noise

    def time(self, c_noise):
        high = torch.searchsorted(self.noises, c_noise.contiguous()).clamp(1, len(self.grid) - 1)
        a, b = self.noises[high - 1], self.noises[high]
        return torch.lerp(self.grid[high - 1], self.grid[high], (c_noise - a) / (b - a))

    def x0(self, x, t, cond):
        if isinstance(self.of, Gaussian):
            return self.of.denoised(self.scalings.path, x, t)
        alpha, sigma, _, _ = self.scalings.path.coefficients(t)
        return self.of.denoiser(x, alpha, sigma)

    def forward(self, x, c_noise, s_noise=None, cond=None):
        t = self.time(c_noise)
        c_skip, c_out, c_in, _ = (expand(c, x) for c in self.scalings.coefficients(t))
        x = x / c_in
        return self.one * (self.x0(x, t, cond) - c_skip * x) / c_out


def contract(path: Path, shape=(2,), kind="ode", std=None, t=None, method="edm", **of):
    allowed = of.pop("guidance", None)
    start = Start(t=t or path.t_max, std=std or path.start_std(0.5))
    sampling = Sampling(start=start, kind=kind, any_times=True, guidance=allowed)
    data = DataSpec(shape=shape, **{"range": None, **of})
    return Contract(method=method, data=data, sampling=sampling)


def exact(written, declared=None, of=GAUSSIAN, net=Exact, **contracted) -> Model:
    """A model whose network was written in one parametrisation and is declared in another."""
    denoiser = Denoiser(net(written, of), declared or written)
    return Model(denoiser, contract(written.path, **contracted))


def data(of=GAUSSIAN, n=2000, labels=0) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    if isinstance(of, Gaussian):
        x = of.mean + of.std * torch.randn(n, 2, generator=generator)
    else:
        x = of.sample(n, generator)
    label = np.arange(n) % labels if labels else None
    return Arrays(x.numpy(), label)


def ask(check, model: Model, samples=None, n=256, **options) -> Finding:
    with torch.no_grad():
        return check(with_answers(prepare(model, samples, n)), **options)


def said(finding: Finding) -> tuple[str, str]:
    return finding.severity, finding.advice


# 1. The parametrisation against the weights.

VP, COSINE = VariancePreserving(), CosineVariancePreserving()


@pytest.mark.parametrize("of", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("path", [VP, COSINE, Linear()], ids=path_id)
@pytest.mark.parametrize("declared", KINDS)
@pytest.mark.parametrize("written", KINDS)
def test_a_network_that_is_read_as_another_kind_shows_at_once(written, declared, path, of):
    makes = {kind: cls(path=path, time_scale=1.0) for kind, cls in KINDS.items()}
    model = exact(makes[written], makes[declared], of)
    # Of nearly normalised data v is nearly 0, and so is what a factor of it changes.
    close = isinstance(of, Gaussian) or isinstance(path, CosineVariancePreserving)
    close = close and {written, declared} == {"v", "flow"} and not isinstance(path, Linear)
    for options in ({}, {"levels": doctor.QUICK_LEVELS, "deep": False}):
        n = 64 if options else 1000 if close else 128
        finding = ask(parametrisation, model, data(of), n=n, **options)
        errors = finding.numbers["errors"]
        # The chord of the time's table costs 1e-5; on this path velocity is v times pi / 2.
        assert errors[written] < 1.03
        assert errors[written] > 0.97 or of is MIXTURE
        if written == declared:
            assert finding.severity in {"fine", "note"}
            assert errors[written] == min(errors.values())
            continue
        assert finding.numbers["best"] == written
        if close:
            assert finding.severity in {"warn", "stop"} or options, finding
        else:
            assert finding.severity == "stop"
            assert f"reads as {written}, not {declared}" in finding.advice


@pytest.mark.parametrize(
    "scalings",
    [EDM(sigma_data=0.7), ConsistencyBoundary(sigma_data=0.7), TrigFlow(path=Trig(sigma_data=0.7))],
    ids=lambda s: type(s).__name__,
)
def test_scalings_with_sigma_data_are_right_as_declared(scalings):
    finding = ask(parametrisation, exact(scalings, of=MIXTURE), data(MIXTURE))
    assert said(finding) == ("fine", "fine")


def test_a_network_is_judged_on_the_path_it_was_made_for():
    written = EDM(sigma_data=0.5)
    model = exact(written, of=MIXTURE)
    model.denoiser = model.denoiser.on(Linear())
    finding = ask(parametrisation, model, data(MIXTURE))
    assert finding.numbers["declared"] == "edm"
    assert said(finding) == ("fine", "fine")


class Turned(Exact):
    def forward(self, x, c_noise, s_noise=None, cond=None):
        return -super().forward(x, c_noise, s_noise, cond)


@pytest.mark.parametrize(
    ("scalings", "best"),
    [
        (EDM(sigma_data=0.5), "trigflow"),
        (Flow(path=Linear()), "flow with its sign turned"),
        (NoisePrediction(path=VP), "score"),
        (VPrediction(path=VP), "v with its sign turned"),
    ],
)
def test_a_turned_sign_is_named(scalings, best):
    finding = ask(parametrisation, exact(scalings, of=MIXTURE, net=Turned), data(MIXTURE))
    assert (finding.severity, finding.numbers["best"]) == ("stop", best)


@pytest.mark.parametrize("scale", [999.0, 1000.0])
def test_a_network_that_sees_other_times_is_named_with_them(scale):
    written = VPrediction(path=VP, time_scale=scale)
    model = exact(written, VPrediction(path=VP, time_scale=1.0), of=MIXTURE)
    finding = ask(parametrisation, model, data(MIXTURE))
    assert finding.severity == "stop"
    assert "x and 999 t as its input, read as v" in finding.advice


def test_an_edm_network_for_data_of_another_scale_is_named_with_it():
    of = Mixture(MIXTURE.weights, 4 * MIXTURE.means, 4 * MIXTURE.stds)
    model = exact(EDM(sigma_data=2.5), EDM(sigma_data=0.5), of=of)
    finding = ask(parametrisation, model, data(of))
    assert finding.severity == "stop"
    assert "EDM's input (sigma_data 2." in finding.advice
    assert "time_scale 0.25) as its input, read as edm (" in finding.advice


def test_a_network_of_other_data_fits_in_no_reading():
    far = Mixture(torch.ones(1), torch.tensor([[9.0, -9.0]]), torch.tensor([0.1]))
    model = exact(VPrediction(path=VP), of=far)
    finding = ask(parametrisation, model, data(MIXTURE))
    assert said(finding)[0] == "stop"
    assert "no reading fits" in finding.advice


def test_a_fresh_network_is_no_better_than_a_line():
    net = ResidualMLP((2,), 8, 1)
    model = Model(Denoiser(net, EDM(sigma_data=0.7)), contract(VarianceExploding()))
    finding = ask(parametrisation, model, data())
    assert finding.severity in {"note", "warn"}
    assert "train it longer" in finding.advice


@pytest.mark.parametrize(
    ("own", "best", "word"),
    [
        (1.12, 1.06, "neither as noise nor as v does its output fit: both are worse than a linear"),
        (1.05, 0.95, "perhaps its output reads as v, not noise"),
        (1.03, 1.0, "perhaps its output reads as v, not noise"),  # as of exact Gaussian networks
    ],
)
def test_two_readings_that_are_worse_than_a_line_do_not_fit(own, best, word, monkeypatch):
    spread = 1e-3 * torch.randn(10, 256, generator=torch.Generator().manual_seed(0))
    errors = {"as declared": own + spread, "v": best + spread.flip(0)}
    errors |= {
        name: 3 + spread for name in readings.readings(VP, 0.5) if name not in {"v", "noise"}
    }
    monkeypatch.setattr(readings, "_errors", lambda *_: errors)
    finding = ask(parametrisation, exact(NoisePrediction(path=VP)), data(), deep=False)
    assert finding.severity == "warn"
    assert finding.advice.startswith(word)


@pytest.mark.parametrize("declared", [Flow, VPrediction, NoisePrediction])
def test_a_network_that_has_hardly_begun_is_to_be_trained_longer(declared):
    """Its output is almost 0, which reads as EDM's as well as a line does."""
    net = ResidualMLP((2,), 8, 1)
    nn.init.normal_(net.last.weight, std=1e-3)
    scalings = declared(path=Linear() if declared is Flow else VP)
    finding = ask(parametrisation, Model(Denoiser(net, scalings), contract(scalings.path)), data())
    assert finding.severity in {"note", "warn"}, finding
    assert "train it longer" in finding.advice


@pytest.mark.parametrize(("declared", "severity"), [("noise", "warn"), ("v", "note")])
def test_without_data_only_the_size_of_answers_is_looked_at(declared, severity):
    model = exact(
        VPrediction(path=VP, time_scale=1.0), KINDS[declared](path=VP, time_scale=1.0), of=MIXTURE
    )
    finding = ask(parametrisation, model)
    assert finding.severity == severity
    assert "not compared without data" in finding.value
    assert "give --data" in finding.advice


def test_a_denoiser_of_two_networks_is_judged_by_its_answers():
    right, wrong = (
        Denoiser(Exact(VPrediction(path=VP), MIXTURE), kind(path=VP))
        for kind in (VPrediction, NoisePrediction)
    )
    for high, severity in ((right, "fine"), (wrong, "stop")):
        model = Model(Switched(right, high, 0.5), contract(VP))
        finding = ask(parametrisation, model, data(MIXTURE))
        assert finding.severity == severity, finding


# 2. Where the path ends.


@pytest.mark.parametrize(
    "path",
    [VP, COSINE, Linear(), Trig(), VarianceExploding(), DiscreteVariancePreserving()],
    ids=path_id,
)
def test_the_discrete_schedule_alone_ends_before_pure_noise(path):
    finding = ask(scales.terminal, exact(VPrediction(path=path), std=path.start_std()), data())
    alpha, sigma = (float(c) for c in path.coefficients(torch.tensor([path.t_max], dtype=D))[:2])
    assert finding.numbers["snr"] == pytest.approx((alpha / sigma) ** 2)
    if isinstance(path, DiscreteVariancePreserving):
        assert finding.severity == "warn"
        assert "zero-terminal-SNR" in finding.advice
        assert finding.numbers["snr"] == pytest.approx(0.00466, rel=0.01)
    else:
        assert said(finding) == ("fine", "fine")


def test_a_start_of_another_spread_is_reported():
    finding = ask(scales.terminal, exact(VPrediction(path=VP), std=1.2), data())
    assert finding.severity == "warn"
    assert f"sampling.start.std to {finding.numbers['noisy_std']:.4g}" in finding.advice


def test_a_start_inside_the_path_is_noted():
    inside = exact(EDM(sigma_data=0.5), t=70.0, std=70.0)
    assert ask(scales.terminal, inside, data()).severity == "note"


# 3. The scale of the data.


@pytest.mark.parametrize(
    ("sigma_data", "severity"), [(0.7, "fine"), (0.6, "fine"), (0.5, "warn"), (1.4, "warn")]
)
def test_the_datas_scale_is_compared_with_sigma_data(sigma_data, severity):
    finding = ask(scales.scale, exact(EDM(sigma_data=sigma_data)), data())
    assert finding.severity == severity
    assert finding.numbers["std"] == pytest.approx(0.7, rel=0.1)
    if severity == "warn":
        assert finding.numbers["ratio"] == pytest.approx(finding.numbers["std"] / sigma_data)
        assert f"sigma_data={finding.numbers['std']:.3g}" in finding.advice


def test_scales_of_channels_are_told_apart():
    x = np.random.default_rng(0).normal(size=(256, 2, 4, 4)).astype(np.float32)
    x[:, 1] *= 3
    model = exact(EDM(sigma_data=0.5), shape=(2, 4, 4))
    finding = ask(scales.scale, model, Arrays(x))
    assert finding.numbers["channels"] == pytest.approx([1, 3], rel=0.05)
    assert "(by channel " in finding.value


def test_the_trigonometric_path_has_a_sigma_data():
    model = exact(TrigFlow(path=Trig(sigma_data=2.0)))
    assert ask(scales.scale, model, data()).severity == "warn"


def test_constant_data_and_no_data_have_no_scale():
    model = exact(EDM(sigma_data=0.5))
    assert ask(scales.scale, model, Arrays(np.ones((9, 2), np.float32))).severity == "stop"
    assert ask(scales.scale, model).severity == "note"


def test_a_path_without_sigma_data_says_which_methods_need():
    finding = ask(scales.scale, exact(VPrediction(path=VP)), data())
    assert finding.severity == "fine"
    assert finding.advice.startswith("fine; methods that ask for sigma_data need 0.")


# 4. The range of values.


def pixels(low: float, high: float) -> Arrays:
    x = np.random.default_rng(0).uniform(low, high, (128, 1, 4, 4))
    return Arrays(x.astype(np.float32), image=False)


@pytest.mark.parametrize(
    ("limits", "low", "high", "severity", "word"),
    [
        ((-1, 1), -1, 1, "fine", "fine"),
        ((-1, 1), 0, 1, "warn", "not [0, 1]"),
        ((-1, 1), 0, 255, "stop", "scale pixels"),
        ((-1, 1), -4, 4, "stop", "null for latents"),
        (None, -4, 4, "fine", "fine"),
        (None, -1, 1, "note", "set data.range"),
    ],
)
def test_data_is_compared_with_the_contracts_range(limits, low, high, severity, word):
    of = Gaussian(0.0, 0.3)
    model = exact(VPrediction(path=VP), of=of, shape=(1, 4, 4), range=limits)
    finding = ask(scales.values, model, pixels(low, high))
    assert finding.severity == severity
    assert word in finding.advice


def test_answers_outside_the_range_are_reported():
    for std, severity in ((0.3, "fine"), (3.0, "warn")):
        net = exact(VPrediction(path=VP), of=Gaussian(0.0, std), shape=(1, 4, 4), range=(-1, 1))
        # Noisy samples of small data tell the network of large data that they are large.
        assert ask(scales.values, net, pixels(-1, 1)).severity == severity


# 5. Guidance.

CLASSES = 2


class Labelled(Exact):
    """Class k is N(k - 1, 0.4^2); no label is their mixture."""

    cond_keys = ("label",)

    def x0(self, x, t, cond):
        label = cond["label"]
        alpha, sigma, _, _ = self.scalings.path.coefficients(t)
        means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=D)
        stds = torch.full((2,), 0.4)
        null = Mixture(torch.ones(2), means, stds).denoiser(x, alpha, sigma)
        gain = expand(alpha * 0.16 / (alpha**2 * 0.16 + sigma**2), x)
        mean = means[label.clamp(max=1)]
        own = mean + gain * (x - expand(alpha, x) * mean)
        return torch.where(expand(label == CLASSES, x), self.nothing(null, own), own)

    def nothing(self, null, own):
        return null


class NullUntrained(Labelled):
    def nothing(self, null, own):
        return null + 3


class LabelIgnored(Labelled):
    def x0(self, x, t, cond):
        return super().x0(x, t, {"label": torch.full_like(cond["label"], CLASSES)})


class NoNull(Labelled):
    def x0(self, x, t, cond):
        return super().x0(x, t, {"label": torch.arange(CLASSES)[cond["label"]]})


class OwnScale(Labelled):
    cond_keys = ("label", "guidance")


def classes(n=400) -> Arrays:
    rng = np.random.default_rng(0)
    label = np.arange(n) % CLASSES
    x = rng.normal(size=(n, 2)) * 0.4 + (2 * label - 1)[:, None]
    return Arrays(x.astype(np.float32), label)


def labelled(net=Labelled, allowed=True, labels=CLASSES) -> Model:
    limits = Guidance() if allowed else None
    scalings = VPrediction(path=VP)
    return exact(scalings, net=net, labels=labels, guidance=limits)


@pytest.mark.parametrize(
    ("net", "allowed", "severity", "word"),
    [
        (Labelled, True, "fine", "fine"),
        (Labelled, False, "note", "without a null label"),
        (NullUntrained, True, "warn", "never trained"),
        (LabelIgnored, True, "warn", "ignores its labels"),
        (LabelIgnored, False, "warn", "ignores its labels"),
        (NoNull, True, "warn", "set sampling.guidance to null"),
        (OwnScale, False, "note", "leave --guidance out"),
    ],
)
def test_guidance(net, allowed, severity, word):
    finding = ask(guidance, labelled(net, allowed), classes())
    assert finding.severity == severity, finding
    assert word in finding.advice


def test_a_range_of_scales_that_the_network_reads():
    limits = Guidance(kind="embedded", min=2.0, max=6.0)
    model = exact(VPrediction(path=VP), net=OwnScale, labels=CLASSES, guidance=limits)
    finding = ask(guidance, model, classes())
    assert said(finding) == ("fine", "fine")
    assert "from 2 to 6" in finding.value


def test_a_null_label_that_changes_nothing():
    one = Arrays(classes().batch(range(400)).x0.numpy(), np.zeros(400, np.int64))
    finding = ask(guidance, labelled(LabelIgnored, labels=1), one)
    assert finding.severity == "warn"
    assert "no effect" in finding.advice


def test_guidance_without_labels():
    assert said(ask(guidance, exact(VPrediction(path=VP)), data())) == ("fine", "fine")
    allowed = exact(VPrediction(path=VP), guidance=Guidance())
    assert ask(guidance, allowed, data()).severity == "warn"


def test_guidance_without_data_says_what_it_did_not_see():
    finding = ask(guidance, labelled())
    assert finding.severity == "note"
    assert "give --data" in finding.advice


# 6. Derivatives.


class Plain(nn.Module):
    """A smooth network of x and time, changed by what tests break."""

    cond_keys = ()
    two_time = False

    def __init__(self, time=lambda c: c, last=lambda x: x):
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.time, self.last = time, last

    def forward(self, x, c_noise, s_noise=None, cond=None):
        wave = torch.sin(expand(self.time(c_noise), x) / 100)
        return self.last(torch.tanh(self.line(x)) * wave + wave)


class NoRule(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


class WrongRule(NoRule):
    @staticmethod
    def jvp(ctx, *tangents):
        return 2 * tangents[0]


def plain(**changed) -> Model:
    torch.manual_seed(0)
    return Model(Denoiser(Plain(**changed), VPrediction(path=VP)), contract(VP))


@pytest.mark.parametrize(
    ("changed", "severity", "word"),
    [
        ({}, "fine", "fine"),
        ({"last": NoRule.apply}, "warn", "--train.derivative difference"),
        ({"last": WrongRule.apply}, "warn", "wrong rule"),
        ({"last": lambda x: x.half().to(x.dtype)}, "warn", "rounded"),
        ({"time": lambda c: c.round().long().float()}, "warn", "rounds its time"),
        ({"time": lambda c: 0 * c + 50}, "warn", "reads its time"),
        ({"time": lambda c: c / 0}, "warn", "--train.derivative difference"),
    ],
)
def test_derivatives(changed, severity, word):
    finding = ask(derivatives, plain(**changed), data())
    assert finding.severity == severity, finding
    assert word in finding.advice


def test_derivatives_of_half_weights_and_of_two_times():
    half = plain()
    half.denoiser.to(torch.bfloat16)
    assert ask(derivatives, half, data()).severity == "fine"
    net = shaken(ResidualMLP((2,), 16, 1, two_time=True))
    two = Model(Denoiser(net, VPrediction(path=VP)), contract(VP))
    assert ask(derivatives, two, data()).severity == "fine"


def test_derivatives_of_a_denoiser_of_two_networks():
    denoiser = plain().denoiser
    model = Model(Switched(denoiser, copy.deepcopy(denoiser), 0.5), contract(VP))
    assert ask(derivatives, model, data()).severity == "fine"


# 7. What a call costs.


def test_cost_counts_calls_weights_and_memory():
    finding = ask(calls.cost, plain(), data())
    assert finding.severity == "fine"
    assert finding.numbers["calls"] == 35
    assert finding.numbers["weights_bytes"] == 4 * 6
    assert 0 < finding.numbers["seconds_1"] < 1
    assert finding.numbers["peak_bytes_16"] > finding.numbers["peak_bytes_1"] > 24


def test_cost_stops_at_its_limit():
    finding = ask(calls.cost, plain(), data(), limit=-1.0)
    assert "seconds_16" not in finding.numbers
    assert "1 call timed" in finding.value


def test_cost_says_what_does_not_fit():
    def full(x):
        raise torch.OutOfMemoryError

    finding = ask(calls.cost, plain(last=full), data())
    assert (finding.severity, finding.numbers["calls"]) == ("stop", 35)
    assert "batch 1 does not fit" in finding.value


# 8. Numbers that are not finite.


def test_answers_are_finite_at_both_ends():
    assert ask(calls.answers, exact(EDM(sigma_data=0.5)), data()).severity == "fine"
    linear = exact(Flow(path=Linear()), of=MIXTURE)
    assert ask(calls.answers, linear, data()).severity == "fine"


def test_noise_prediction_cannot_start_from_pure_noise():
    finding = ask(calls.answers, exact(NoisePrediction(path=Linear())), data())
    assert finding.severity == "stop"
    assert finding.numbers["bad_at_start"] > 0.9
    assert finding.numbers["bad_at_end"] == 0
    assert "divides by alpha" in finding.advice


def test_weights_are_counted_and_checked():
    model = plain()
    assert said(ask(calls.weights, model, data())) == ("fine", "fine")
    model.denoiser.to(torch.float16)
    finding = ask(calls.weights, model)
    assert (finding.severity, finding.numbers["dtypes"]) == ("warn", ["float16"])
    model.denoiser.float().net.line.bias[0] = float("nan")
    finding = ask(calls.weights, model)
    assert (finding.severity, finding.numbers["not_finite"]) == ("stop", 1)


# All of it.


def test_the_bundled_teacher_is_healthy_and_the_student_no_teacher():
    examination = doctor.examine(load("digits-edm", device="cpu"), digits("train"))
    assert {f.severity for f in examination.findings} == {"fine"}, examination.text()
    assert examination.text().endswith("\n\nthis model may be distilled")
    student = doctor.quick(load("digits-cd", device="cpu"), digits("train"))
    assert student["model"].severity == "stop"
    assert not student.distillable


def test_every_line_ends_in_what_to_do():
    for samples in (digits("train"), None):
        for finding in doctor.examine(load("digits-edm", device="cpu"), samples).findings:
            assert str(finding).endswith(f"; {finding.advice}")
            assert finding.advice
            assert "\n" not in str(finding)


def test_quick_leaves_the_model_and_the_generators_as_they_are():
    model = load("digits-edm", device="cpu")
    before, state = copy.deepcopy(model.denoiser.state_dict()), torch.get_rng_state()
    np.random.seed(3)  # noqa: NPY002 (the legacy generator is what must not move)
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002
    first = doctor.quick(model, digits("train"))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002
    after = model.denoiser.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert first == doctor.quick(model, digits("train"))


def test_a_network_that_draws_leaves_the_generators_too():
    state = torch.get_rng_state()
    doctor.examine(plain(last=lambda x: x + 1e-9 * torch.rand_like(x)), data(), n=8)
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_cannot_be_called_is_one_finding():
    for broken in (plain(last=lambda x: x[:, :1]), plain(last=lambda x: x @ torch.ones(3, 3))):
        examination = doctor.examine(broken, data())
        assert examination["network"].severity == "stop"
        assert not examination.distillable
        assert len(examination.findings) == 2


@pytest.mark.parametrize(
    ("model", "samples", "n", "word"),
    [
        (plain(), pixels(-1, 1), 256, "the data has (1, 4, 4)"),
        (labelled(), data(), 256, "needs the condition(s) ['label']"),
        (plain(), data(), 1, "n must be at least 2"),
    ],
)
def test_bad_input_is_a_usage_error(model, samples, n, word):
    with pytest.raises(UsageError) as caught:
        doctor.examine(model, samples, n=n)
    assert word in str(caught.value)


def test_json_has_no_numbers_that_are_not_finite():
    model = exact(NoisePrediction(path=Linear()))
    text = json.dumps(doctor.quick(model, data()).as_json(), allow_nan=False)
    assert json.loads(text)["distillable"] is False
    finding = Finding(name="a", value="b", numbers={"c": float("nan"), "d": [1.0, float("inf")]})
    numbers = doctor.Examination((finding,)).as_json()["findings"][0]["numbers"]
    assert numbers == {"c": None, "d": [1.0, None]}


# The command.


def test_the_command_prints_and_exits_with_0(capsys):
    outcome = fewstep(capsys, "doctor", "digits-edm", "--device", "cpu", "-n", 64)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "this model may be distilled"
    outcome = fewstep(capsys, "doctor", "digits-edm", "--device", "cpu", "-n", 64, "--json")
    assert json.loads(outcome.out)["distillable"] is True


def test_the_command_exits_with_1_where_distilling_is_pointless(tmp_path, capsys):
    model = load("digits-edm", device="cpu")
    scalings = NoisePrediction(path=VarianceExploding(), time_scale=1.0)
    sick = Model(Denoiser(model.denoiser.net, scalings), model.contract)
    sick.save(tmp_path / "sick")
    outcome = fewstep(capsys, "doctor", tmp_path / "sick", "--data", "digits", "-n", 64)
    assert outcome.code == 1
    assert "do not distil" in outcome.out.splitlines()[-1]
    assert "parametrisation" in outcome.out.splitlines()[-1]


def test_the_command_goes_on_without_data_unless_it_was_named(tmp_path, capsys):
    model = plain()
    net = ResidualMLP((2,), 8, 1)
    nn.init.normal_(net.last.weight)
    Model(Denoiser(net, EDM(sigma_data=0.5)), replace_shape(model)).save(tmp_path / "points")
    outcome = fewstep(capsys, "doctor", tmp_path / "points", "--device", "cpu")
    assert outcome.err.startswith("without data: ")
    assert "not compared without data" in outcome.out
    outcome = fewstep(capsys, "doctor", tmp_path / "points", "--data", "digits")
    assert outcome.code == 2
    assert "--data" in outcome.err


def replace_shape(model: Model) -> Contract:
    path = VarianceExploding()
    start = Start(t=path.t_max, std=path.t_max)
    sampling = model.contract.sampling.model_copy(update={"start": start})
    return model.contract.model_copy(update={"sampling": sampling})


@pytest.mark.parametrize("args", [("-n", 1), ("--device", "no-such")])
def test_the_command_refuses_bad_options(args, capsys):
    assert fewstep(capsys, "doctor", "digits-edm", *args).code == 2


def test_findings_are_looked_up_by_name():
    one = Finding(name="a", value="b")
    assert doctor.Examination((one, replace(one, name="c")))["c"].name == "c"


def test_the_page_shows_what_the_command_prints_and_its_python_runs():
    page = (File(__file__).parents[1] / "docs" / "doctor.md").read_text()
    examination = doctor.examine(load("digits-edm", device="cpu"), digits("train"))
    for finding in examination.findings:
        assert f"\n| {finding.name} | " in page
        if finding.name not in {"cost", "derivatives", "parametrisation"}:  # machine and rounding
            assert f"\n{finding}\n" in page
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(compile(code, "doctor", "exec"), {})


def test_training_says_what_is_wrong_with_its_teacher(tmp_path, capsys):
    """The quick look comes before the first step; a healthy teacher is not worth a line."""
    few = ("--train.steps", 1, "--train.batch", 8, "--train.sample-every", 0)
    config = find("digits-edm") / "config.json"
    sick = tmp_path / "sick"
    shutil.copytree(config.parent, sick)
    content = json.loads(config.read_text())
    content["denoiser"]["preconditioning"]["sigma_data"] = 0.1
    (sick / "config.json").write_text(json.dumps(content))
    for teacher, wrong in (("digits-edm", False), (sick, True)):
        out = tmp_path / f"run-{wrong}"
        args = ("digits-ect", "--teacher", teacher, *few, "--out", out)
        outcome = fewstep(capsys, "train", *args)
        assert outcome.code == 0, outcome.err
        assert ("teacher: stop" in outcome.err or "teacher: warn" in outcome.err) == wrong
