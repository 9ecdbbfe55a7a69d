import json
import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import Batch, UsageError, expand
from fewstep.models import (
    EDM,
    Clamped,
    ConsistencyBoundary,
    DataAndNoisePrediction,
    DataPrediction,
    Denoiser,
    Flow,
    Guided,
    NoisePrediction,
    ScoreMatching,
    TrigFlow,
    VPrediction,
)
from fewstep.models.nets import ResidualMLP
from fewstep.models.nets.blocks import LabelEmbedding
from fewstep.models.preconditioning import Reparametrised
from fewstep.models.spec import build_denoiser, denoiser_spec
from fewstep.objectives.denoising import Denoising, Draws
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.times import LogNormal
from oracles import PATHS_AT_REST, D, Gaussian, four_points, full, normal, path_id
from small_nets import NETWORKS, ask, shaken

PRECONDITIONINGS = [
    EDM(sigma_data=0.5),
    EDM(sigma_data=0.7, time_scale=250.0),
    ConsistencyBoundary(sigma_data=0.5, path=VarianceExploding(0.01, 80.0)),
    NoisePrediction(),
    NoisePrediction(time_scale=1.0, path=DiscreteVariancePreserving()),
    DataPrediction(path=CosineVariancePreserving()),
    VPrediction(path=CosineVariancePreserving()),
    DataAndNoisePrediction(path=CosineVariancePreserving()),
    DataAndNoisePrediction(path=VarianceExploding()),
    Flow(path=Linear()),
    TrigFlow(path=Trig(sigma_data=0.4)),
    ScoreMatching(),
]
each_path = pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
each_preconditioning = pytest.mark.parametrize(
    "preconditioning", PRECONDITIONINGS, ids=lambda p: f"{type(p).__name__}-{path_id(p.path)}"
)
RATIOS = torch.tensor([0.05, 0.3, 1.0, 5.0], dtype=D)


class Recorder(nn.Module):
    """``answer(x, c_noise, cond)`` as a network, which keeps what it sees."""

    two_time = False

    def __init__(
        self, answer, cond_keys: tuple[str, ...] = (), optional_keys: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.answer, self.cond_keys = answer, cond_keys
        if optional_keys:
            self.optional_keys = optional_keys
        self.seen: list[tuple] = []

    def forward(self, x, c_noise, s_noise=None, cond=None):
        self.seen.append((x, c_noise, s_noise, cond))
        return self.answer(x, c_noise, cond)


def smooth(x: Tensor, c_noise: Tensor, cond) -> Tensor:
    return torch.tanh(x + torch.sin(expand(c_noise, x)))


def two_heads(x: Tensor, c_noise: Tensor, cond) -> Tensor:
    return torch.cat([smooth(x, c_noise, cond), smooth(1 - x, c_noise, cond)], 1)


# Preconditionings.


@each_path
@each_preconditioning
def test_a_network_answers_alike_on_every_path(preconditioning, path):
    old = preconditioning.path
    both = isinstance(preconditioning, DataAndNoisePrediction)
    network = Recorder(two_heads if both else smooth)
    denoiser = Denoiser(network, preconditioning)
    moved = denoiser.on(path)
    assert moved.path == path
    assert moved.net is network
    x0, noise = normal(2, 4, 2, 3)
    x_old = old.perturb(x0, noise, old.time(RATIOS))
    x_new = path.perturb(x0, noise, path.time(RATIOS))
    answers = denoiser(x_old, old.time(RATIOS)), moved(x_new, path.time(RATIOS))
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-9, atol=1e-9)
    (x_there, t_there, *_), (x_here, t_here, *_) = network.seen
    torch.testing.assert_close(x_here, x_there, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(t_here, t_there, rtol=1e-9, atol=1e-9)


def test_on_its_own_path_nothing_is_wrapped():
    edm = EDM(sigma_data=0.5)
    assert edm.on(VarianceExploding()) is edm
    assert isinstance(edm.on(VarianceExploding(0.01)), Reparametrised)


def test_pure_noise_is_read_at_the_noisiest_level():
    edm = Denoiser(Recorder(smooth), EDM(sigma_data=0.5))
    x = normal(3, 2)
    answer = edm.on(Linear())(x, full(1.0, x))
    # At sigma = 80 a linear path has x_t = x / (1 + 80).
    torch.testing.assert_close(answer, edm(81 * x, full(80.0, x)), rtol=1e-12, atol=1e-12)


TRUTHS = {
    NoisePrediction: lambda x0, noise, c: noise,
    DataPrediction: lambda x0, noise, c: x0,
    VPrediction: lambda x0, noise, c: c.alpha * noise - c.sigma * x0,
    DataAndNoisePrediction: lambda x0, noise, c: torch.cat([x0, noise], 1),
    Flow: lambda x0, noise, c: c.d_alpha * x0 + c.d_sigma * noise,
    TrigFlow: lambda x0, noise, c: (c.d_alpha * x0 + c.d_sigma * noise) / 0.4,
    ScoreMatching: lambda x0, noise, c: -noise,
}


@pytest.mark.parametrize(
    "preconditioning",
    [p for p in PRECONDITIONINGS if type(p) in TRUTHS] + [Flow(path=p) for p in PATHS_AT_REST],
    ids=lambda p: f"{type(p).__name__}-{path_id(p.path)}",
)
def test_the_true_output_gives_the_clean_sample(preconditioning):
    path = preconditioning.path
    t = path.time(RATIOS)
    x0, noise = normal(2, 4, 1)
    coefficients = type(path.coefficients(t))(*(expand(c, x0) for c in path.coefficients(t)))
    truth = TRUTHS[type(preconditioning)](x0, noise, coefficients)
    denoiser = Denoiser(Recorder(lambda x, c, cond: truth), preconditioning)
    found = denoiser(path.perturb(x0, noise, t), t)
    torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9)


@each_path
def test_two_heads_are_averaged_by_the_noise(path):
    # Salimans & Ho's weight is sigmoid(-log-SNR); where only one head is right, the other counts.
    denoiser = Denoiser(Recorder(two_heads), DataAndNoisePrediction(path=path))
    t, x = path.time(RATIOS), normal(4, 2, 3)
    clean, noise = two_heads(x, denoiser.preconditioning.coefficients(t).c_noise, None).chunk(2, 1)
    w = expand(torch.sigmoid(-path.logsnr(t)), x)
    found = denoiser(x, t)
    wanted = w * clean + (1 - w) * path.x0_from_noise(x, noise, t)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert found.shape == x.shape


@pytest.mark.parametrize(
    ("preconditioning", "c_in", "c_noise"),
    [
        (EDM(sigma_data=0.5), 1 / math.sqrt(0.74), 0.25 * math.log(0.7)),
        (EDM(sigma_data=0.5, time_scale=250.0), 1 / math.sqrt(0.74), 250 * math.log(0.7)),
        (ConsistencyBoundary(sigma_data=0.5), 1 / math.sqrt(0.74), 0.25 * math.log(0.7)),
        (NoisePrediction(), 1, 999 * 0.7),
        (DataPrediction(), 1, 999 * 0.7),
        (VPrediction(), 1, 999 * 0.7),
        (Flow(path=Linear()), 1, 0.7),
        (Flow(path=Linear(), time_scale=1000.0), 1, 700),
        (TrigFlow(path=Trig(sigma_data=0.5)), 2, 0.7),
        (ScoreMatching(), 1, math.log(0.35)),
    ],
)
def test_what_the_network_sees(preconditioning, c_in, c_noise):
    network, x = Recorder(smooth), normal(2, 3)
    Denoiser(network, preconditioning)(x, full(0.7, x))
    torch.testing.assert_close(network.seen[0][0], c_in * x, rtol=1e-12, atol=0)
    torch.testing.assert_close(network.seen[0][1], full(c_noise, x), rtol=1e-12, atol=0)


def test_scalars_of_edm_and_of_consistency_models():
    t = torch.tensor([1.2], dtype=D)
    c_skip, c_out, _, _ = EDM(sigma_data=0.5).coefficients(t)
    assert float(c_skip) == pytest.approx(0.25 / 1.69)
    assert float(c_out) == pytest.approx(0.6 / 1.3)
    # The boundary is at 0.2; the root has t, not t - t_min.
    boundary = ConsistencyBoundary(sigma_data=0.5, path=VarianceExploding(0.2, 80.0))
    c_skip, c_out, _, _ = boundary.coefficients(t)
    assert float(c_skip) == pytest.approx(0.25 / 1.25)
    assert float(c_out) == pytest.approx(0.5 / 1.3)


@pytest.mark.parametrize("t_min", [0.002, 0.1])
def test_the_boundary_is_the_identity(t_min):
    preconditioning = ConsistencyBoundary(sigma_data=0.5, path=VarianceExploding(t_min, 80.0))
    denoiser = Denoiser(Recorder(lambda x, c, cond: 1e6 * x + 1e6), preconditioning)
    for dtype in (D, torch.float32):
        x = normal(3, 2).to(dtype)
        assert denoiser(x, full(t_min, x)).equal(x)


@pytest.mark.parametrize("t", [0.002, 0.3, 1.0, 80.0])
def test_without_a_network_edm_has_unit_loss_and_is_optimal(t):
    # Data of mean 0 and the standard deviation that the preconditioning assumes.
    x0, noise = four_points(Gaussian(0.0, 0.5), 2)
    gain = nn.Parameter(torch.zeros(2, dtype=D))
    network = Recorder(lambda x, c, cond: gain[0] * x + gain[1])
    network.register_parameter("gain", gain)
    objective = Denoising(
        Denoiser(network, EDM(sigma_data=0.5)), times=LogNormal(), weight=karras_weight(0.5)
    )
    loss = objective.loss(Batch(x0), Draws(full(t, x0), noise)).total()
    assert float(loss.detach()) == pytest.approx(1, abs=1e-12)
    (slope,) = torch.autograd.grad(loss, gain, create_graph=True)
    # Weighted errors are of the order of 1/t, so rounding leaves a few 1e-12.
    assert slope.detach().abs().max() < 1e-10
    (curvature,) = torch.autograd.grad(slope[0], gain)
    assert float(curvature[0]) == pytest.approx(2, abs=1e-9)


# Denoisers and their wrappers.


def test_a_denoiser_passes_on_what_is_declared_and_no_more():
    network = Recorder(smooth, ("label", "text"))
    x = normal(2, 3)
    cond = {"label": torch.arange(2), "text": normal(2, 4), "guidance": full(2.0, x)}
    Denoiser(network, EDM(sigma_data=0.5))(x, full(1.0, x), None, cond)
    assert network.seen[0][3].keys() == {"label", "text"}
    assert network.seen[0][2] is None


def test_an_optional_condition_is_passed_on_where_it_is_given():
    network = Recorder(smooth, ("label",), ("augment", "crop"))
    denoiser, x = Denoiser(network, EDM(sigma_data=0.5)), normal(2, 3)
    label, augment = {"label": torch.arange(2)}, {"augment": normal(2, 9), "text": x}
    denoiser(x, full(1.0, x), None, label)
    denoiser.on(Linear())(x, full(0.5, x), None, {**label, **augment})
    Guided(denoiser, {"label": 7})(x, full(1.0, x), None, {**label, **augment})
    alone, both, guided = (seen[3] for seen in network.seen)
    assert alone.keys() == {"label"}
    assert both.keys() == {"label", "augment"}
    assert guided.keys() == {"label", "augment"}
    assert guided["augment"].equal(augment["augment"].repeat(2, 1))


@pytest.mark.parametrize("cond", [None, {}, {"label": torch.arange(2)}])
def test_a_missing_condition_is_named(cond):
    denoiser = Denoiser(Recorder(smooth, ("label", "text")), EDM(sigma_data=0.5))
    x = normal(2, 3)
    with pytest.raises(UsageError, match="text"):
        denoiser(x, full(1.0, x), None, cond)


def test_a_module_that_is_no_network_is_refused():
    with pytest.raises(UsageError, match="cond_keys"):
        Denoiser(nn.Linear(2, 2), EDM(sigma_data=0.5))


def test_two_time_networks_see_the_end_like_the_start():
    network = Recorder(smooth)
    network.two_time = True
    denoiser, x = Denoiser(network, EDM(sigma_data=0.5)), normal(2, 3)
    denoiser(x, full(2.0, x), full(0.5, x))
    denoiser(x, full(2.0, x))
    assert network.seen[0][2].tolist() == pytest.approx([0.25 * math.log(0.5)] * 2)
    assert network.seen[1][2].equal(network.seen[1][1])


def test_a_jump_is_the_transport_of_the_answer():
    denoiser, x = Denoiser(Recorder(smooth), Flow(path=Linear())), normal(2, 3)
    t, s = full(0.8, x), full(0.3, x)
    wanted = 0.7 * denoiser(x, t) + 0.3 * (x - 0.2 * denoiser(x, t)) / 0.8
    torch.testing.assert_close(denoiser.jump(x, t, s), wanted)


def labelled(x: Tensor, c_noise: Tensor, cond) -> Tensor:
    return x * (1 + expand(cond["label"], x)) + cond["text"]


def test_guidance_extrapolates_from_unconditional_to_conditional():
    network = Recorder(labelled, ("label", "text"))
    plain = Denoiser(network, EDM(sigma_data=0.5))
    guided = Guided(plain, {"label": 7}, 2.5)
    assert (guided.calls, plain.calls) == (2, 1)
    x, text = normal(3, 2), normal(3, 2, seed=1)
    t = full(1.5, x)
    cond = {"label": torch.tensor([0, 1, 2]), "text": text}
    null = {**cond, "label": torch.full((3,), 7)}
    with_label, without = plain(x, t, None, cond), plain(x, t, None, null)
    network.seen.clear()
    found = guided(x, t, None, cond)
    torch.testing.assert_close(found, without + 2.5 * (with_label - without))
    assert [len(seen[0]) for seen in network.seen] == [6]
    each = torch.tensor([0.0, 1.0, 4.0], dtype=D)
    found = guided(x, t, None, {**cond, "guidance": each})
    torch.testing.assert_close(found, without + each[:, None] * (with_label - without))
    torch.testing.assert_close(found[0], without[0])
    torch.testing.assert_close(found[1], with_label[1])


def test_guidance_is_not_guided_twice():
    with pytest.raises(UsageError, match="guidance"):
        Guided(Denoiser(Recorder(smooth, ("guidance",)), EDM(sigma_data=0.5)), {"label": 7})


def test_clamped_answers():
    x = 3 * normal(8, 2)
    plain = Denoiser(Recorder(lambda x, c, cond: x), EDM(sigma_data=0.5))
    clamped = Clamped(Guided(plain, {}), -0.5, 0.8)
    torch.testing.assert_close(
        clamped(x, full(1.0, x)), plain(x, full(1.0, x)).clamp(-0.5, 0.8), rtol=0, atol=1e-15
    )
    assert clamped.calls == 2


# Networks.


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_the_shape_and_read_their_inputs(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    assert ask(network).shape == (3, *network.options["shape"])
    assert ask(network).abs().max() < 1e-2  # F is about 0 at first
    shaken(network)
    first = ask(network)
    assert first.dtype == torch.float32
    assert ask(network).equal(first)
    assert (ask(network, time=0.4) - first).abs().amax(dim=(*range(1, first.ndim),)).min() > 1e-4
    assert (ask(network, seed=1) - first).abs().max() > 1e-2
    if network.cond_keys:
        other = (ask(network, labels=(1, 1, 3)) - first).abs().flatten(1).amax(1)
        assert (other > 1e-4).tolist() == [True, False, True]
        with pytest.raises(UsageError, match="label"):
            network(torch.zeros(3, *network.options["shape"]), torch.zeros(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_for_training(name):
    network = shaken(NETWORKS[name](dropout=0.5))
    torch.manual_seed(0)
    assert not ask(network.train()).equal(ask(network))
    assert ask(network.eval()).equal(ask(network))
    assert not ask(NETWORKS[name](dropout=0.0).train()).isnan().any()


def test_the_null_label_adds_nothing():
    torch.manual_seed(0)
    embedding = LabelEmbedding(3, 5)
    with torch.no_grad():
        embedding.linear.bias.copy_(torch.arange(5.0))
    rows = embedding(torch.tensor([3, 0, 2]))
    assert rows[0].tolist() == [0, 1, 2, 3, 4]
    scaled = math.sqrt(3) * embedding.linear.weight.T + torch.arange(5.0)
    torch.testing.assert_close(rows[1:], scaled[[0, 2]])
    network = shaken(NETWORKS["ddpmpp"]()).eval()
    null = ask(network, labels=(3, 3, 3))
    with torch.no_grad():
        network.map_label.linear.weight.zero_()
    torch.testing.assert_close(ask(network, labels=(0, 1, 2)), null)


# Specs.


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_survive_their_spec(name):
    torch.manual_seed(0)
    denoiser = Denoiser(shaken(NETWORKS[name](dropout=0.25)), EDM(sigma_data=0.5)).eval()
    spec = json.loads(json.dumps(denoiser_spec(denoiser)))
    again = build_denoiser(spec).eval()
    assert denoiser_spec(again) == spec
    again.load_state_dict(denoiser.state_dict())
    assert ask(again.net).equal(ask(denoiser.net))
    assert again.preconditioning == denoiser.preconditioning


@each_path
@each_preconditioning
def test_preconditionings_survive_their_spec(preconditioning, path):
    network = ResidualMLP((2,), width=4, blocks=1)
    denoiser = Denoiser(network, preconditioning.on(path))
    spec = json.loads(json.dumps(denoiser_spec(denoiser)))
    again = build_denoiser(spec)
    assert again.preconditioning == denoiser.preconditioning
    assert again.path == path
    found, wanted = (d.preconditioning.coefficients(path.time(RATIOS)) for d in (again, denoiser))
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def good_spec() -> dict:
    return {
        "kind": "denoiser",
        "network": denoiser_spec(Denoiser(NETWORKS["mlp"](), EDM(sigma_data=0.5)))["network"],
        "preconditioning": {
            "kind": "edm",
            "sigma_data": 0.5,
            "time_scale": 0.25,
            "path": {"kind": "ve", "t_min": 0.002, "t_max": 80.0},
        },
    }


BROKEN = object()
VP_DISCRETE = denoiser_spec(
    Denoiser(
        ResidualMLP((2,), width=4, blocks=1), NoisePrediction(path=DiscreteVariancePreserving())
    )
)["preconditioning"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["kind"], "model", "model"),
        (["network"], BROKEN, "network"),
        (["extra"], 1, "extra"),
        (["network", "kind"], "mpl", "did you mean 'mlp'"),
        (["network", "kind"], BROKEN, "None"),
        (["network", "kind"], ["mlp"], "mlp"),
        (["network"], "mlp-net", "mlp-net"),
        (["network", "width"], "wide", "width"),
        (["network", "width"], 16.5, "width"),
        (["network", "width"], 10**9, "width=1000000000 is out of range"),
        (["network", "width"], -(10**9), "out of range"),
        (["network", "shape"], [2, 10**12], "shape"),
        (["network", "shape"], 2, "shape"),
        (["network", "shape"], BROKEN, "shape"),
        (["network", "depth"], 3, "depth"),
        (["network", "fourier_scale"], math.inf, "fourier_scale"),
        (["network", "fourier_scale"], math.nan, "fourier_scale"),
        (["preconditioning", "kind"], "edn", "did you mean 'edm'"),
        (["preconditioning", "kind"], ["edm"], "edm"),
        (["preconditioning"], None, "preconditioning"),
        (["preconditioning", "sigma_data"], BROKEN, "sigma_data"),
        (["preconditioning", "sigma_data"], "half", "sigma_data"),
        (["preconditioning", "sigma_data"], math.nan, "sigma_data"),
        (["preconditioning", "rho"], 7.0, "rho"),
        (["preconditioning", "path"], BROKEN, "path"),
        (["preconditioning", "path"], "ve", "path"),
        (["preconditioning", "path", "kind"], "vee", "did you mean 've'"),
        (["preconditioning", "path", "t_min"], BROKEN, "t_min"),
        (["preconditioning", "path", "t_min"], 81.0, "t_min=81"),
        (["preconditioning", "path", "t_max"], [80.0], "t_max"),
        (
            ["preconditioning"],
            {"kind": "trigflow", "path": {"kind": "ve", "t_min": 0.0, "t_max": 1.0}},
            "(?i)trig",
        ),
        (
            ["preconditioning"],
            {**VP_DISCRETE, "path": {**VP_DISCRETE["path"], "steps": 10**12}},
            "steps",
        ),
        (
            ["preconditioning"],
            {**VP_DISCRETE, "path": {**VP_DISCRETE["path"], "steps": 1000.5}},
            "steps",
        ),
    ],
)
def test_bad_specs_are_explained(keys, value, message):
    spec = good_spec()
    build_denoiser(spec)
    *way, last = keys
    inner = spec
    for key in way:
        inner = inner[key]
    if value is BROKEN:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises(UsageError, match=message):
        build_denoiser(spec)


def test_only_the_library_s_own_parts_have_a_spec():
    inner = Denoiser(NETWORKS["mlp"](), EDM(sigma_data=0.5))
    with pytest.raises(UsageError, match="Clamped"):
        denoiser_spec(Clamped(inner))

    class Own(VariancePreserving):
        pass

    with pytest.raises(UsageError, match="Own"):
        denoiser_spec(Denoiser(NETWORKS["mlp"](), VPrediction(path=Own())))


def test_custom_networks_come_with_the_call():
    network = Recorder(smooth)
    spec = denoiser_spec(Denoiser(network, EDM(sigma_data=0.5)))
    assert spec["network"] == {"kind": "custom", "name": "Recorder"}
    assert build_denoiser(spec, network).net is network
    with pytest.raises(UsageError, match="network="):
        build_denoiser(spec)
    with pytest.raises(UsageError, match="pass no network"):
        build_denoiser(good_spec(), network)
