import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.core import UsageError
from fewstep.model import Model, SampleNoise, load
from fewstep.models import EDM, Clamped, Denoiser, Switched
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.paths import DiscreteVariancePreserving, Linear, VarianceExploding
from fewstep.solvers import deterministic, gamma_sampling, multistep, ode
from fewstep.system.files import sha256
from fewstep.times import karras, to_zero
from oracles import PATHS_AT_REST, Watched, path_id


class Gain(nn.Module):
    """A network of the user's own, which keeps what it sees."""

    two_time = False

    def __init__(self, cond_keys: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.cond_keys = cond_keys
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.seen: list[tuple] = []

    def forward(self, x, c_noise, s_noise=None, cond=None):
        self.seen.append((x, c_noise, s_noise, cond))
        return torch.tanh(self.gain * x)


def shaken(network: nn.Module, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            fan = max(1, p[0].numel() if p.ndim else 1)
            p.copy_(scale * torch.randn(p.shape, generator=generator) / fan**0.5)
    return network


def contract(shape, kind="renoise", labels=0, **sampling) -> Contract:
    given = {"start": Start(t=80.0, std=80.0), "kind": kind, **sampling}
    if kind == "gamma":
        given.setdefault("gamma", 0.5)
    if "times" not in given:
        given["times"] = {1: (given["start"].t,)}
    data = DataSpec(shape=shape, labels=labels)
    return Contract(method="cd", data=data, sampling=Sampling(**given))


def mlp(kind: str = "renoise", classes: int = 3, **sampling) -> Model:
    network = shaken(ResidualMLP((2,), width=32, blocks=2, classes=classes))
    given = {"any_times": True, "times": {1: (80.0,), 2: (80.0, 0.6)}, **sampling}
    return Model(
        Denoiser(network, EDM(sigma_data=0.5)), contract((2,), kind, labels=classes, **given)
    )


def custom(
    cond_keys: tuple[str, ...] = (), path=None, shape=(2,), sigma_data: float = 0.5, **kwargs
) -> tuple[Model, Gain]:
    network = Gain(cond_keys)
    preconditioning = EDM(sigma_data=sigma_data)
    denoiser = Denoiser(network, preconditioning.on(path) if path else preconditioning)
    return Model(denoiser, contract(shape, **kwargs)), network


# Saving and loading.


@pytest.mark.parametrize("kind", ["renoise", "ode", "gamma"])
def test_save_and_load_change_no_bit(tmp_path, kind):
    model = mlp(kind, guidance=Guidance(max=3.0))
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", device="cpu")
    assert again.contract == model.contract
    for key, value in model.denoiser.state_dict().items():
        assert again.denoiser.state_dict()[key].equal(value)
    assert again.sample(5, guidance=2.0).equal(model.sample(5, guidance=2.0))
    assert not again.denoiser.training
    assert not any(p.requires_grad for p in again.denoiser.parameters())
    assert {f.name for f in (tmp_path / "m").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    again.save(tmp_path / "m", card="# Mine")  # in place of the first
    assert (tmp_path / "m" / "README.md").read_text() == "# Mine"
    assert load(str(tmp_path / "m"), device="cpu").sample(2).equal(model.sample(2))


def test_unet_round_trip(tmp_path):
    network = DDPMpp((1, 4, 4), channels=8, multipliers=(1, 2), blocks=1, attention=(2,), classes=2)
    model = Model(
        Denoiser(shaken(network, 0.3), EDM(sigma_data=0.5)), contract((1, 4, 4), labels=2)
    )
    model.save(tmp_path / "m")
    assert load(tmp_path / "m", device="cpu").sample(3).equal(model.sample(3))


def test_half_precision_weights(tmp_path):
    model = mlp()
    model.save(tmp_path / "m", dtype=torch.float16)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    again = load(tmp_path / "m", device="cpu").denoiser.state_dict()
    names = {name for name, _ in model.denoiser.named_parameters()}
    assert names < stored.keys()  # the Fourier frequencies are a buffer
    for key, value in model.denoiser.state_dict().items():
        kept = value.half() if key in names else value
        assert stored[key].dtype == kept.dtype
        assert stored[key].equal(kept)
        assert again[key].dtype == torch.float32
        assert again[key].equal(kept.float())


def rewrite(folder, change) -> None:
    """Replace the weights, with a digest that fits."""
    weights = save(change(load_file(folder / "model.safetensors")))
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sha256": sha256(weights)}))


def test_other_weights_are_reported_key_by_key(tmp_path):
    mlp().save(tmp_path / "m")

    def change(tensors):
        wrong = dict(tensors)
        del wrong["net.first.weight"]
        wrong["net.first.wait"] = torch.zeros(3)
        wrong["net.last.bias"] = torch.zeros(5)
        return wrong

    rewrite(tmp_path / "m", change)
    with pytest.raises(UsageError) as error:
        load(tmp_path / "m", device="cpu")
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "missing net.first.weight (32, 2)",
        "extra net.first.wait (3,)",
        "net.last.bias: expected (2,), found (5,)",
    ]


def test_damaged_weights_are_refused(tmp_path):
    folder = mlp().save(tmp_path / "m")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UsageError, match="sha256"):
        load(folder)
    file.write_bytes(b"nothing")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sha256": sha256(b"nothing")}))
    with pytest.raises(UsageError, match="safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "formats"),
        ({"method": None}, "method"),
        ({"data": {"shape": [], "labels": 0}}, "data.shape"),
        ({"data": {"shape": [2], "labels": -1}}, "labels must be"),
        ({"sampling": {"start": {"t": 1, "std": 1}, "kind": "magic"}}, "sampling.kind"),
        ({"sampling": {"start": {"t": 0, "std": 1}, "kind": "ode"}}, "sampling.start.t"),
        ({"denoiser": None}, "denoiser"),
        ({"denoiser": "mlp"}, "denoiser"),
        ({"denoiser": ["mlp"]}, "denoiser"),
        ({"sha256": None}, "sha256"),
    ],
)
def test_bad_configs_are_explained(tmp_path, change, message):
    folder = mlp().save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_unreadable_configs_are_refused(tmp_path, text):
    folder = mlp().save(tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match="m"):
        load(folder)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'digits-cd'"):
        load("digits-dc")
    with pytest.raises(UsageError, match="neither"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="readable"):
        load(tmp_path)


def test_runs_hold_models_and_averages(tmp_path):
    model, other = mlp(), mlp()
    with torch.no_grad():
        other.denoiser.net.last.bias.add_(0.3)
    model.save(tmp_path / "model")
    other.save(tmp_path / "averages" / "slow")
    assert load(tmp_path, device="cpu").sample().equal(model.sample())
    assert load(tmp_path, device="cpu", average="slow").sample().equal(other.sample())
    with pytest.raises(UsageError, match="slow"):
        load(tmp_path, average="fast")


def test_custom_networks(tmp_path):
    model, network = custom()
    model.save(tmp_path / "m")
    with pytest.raises(UsageError, match="network="):
        load(tmp_path / "m")
    fresh = Gain()
    with torch.no_grad():
        fresh.gain.fill_(-9.0)
    again = load(tmp_path / "m", network=fresh, device="cpu")
    assert float(fresh.gain) == float(network.gain)
    assert again.sample(3).equal(model.sample(3))


def two_networks(low: nn.Module, high: nn.Module) -> Model:
    parts = (Denoiser(net, EDM(sigma_data=0.5)) for net in (low, high))
    sampling = {"any_times": True, "times": {1: (80.0,), 2: (80.0, 0.6)}}
    return Model(Switched(*parts, at=1.0), contract((2,), **sampling))


def test_switched_models(tmp_path):
    low, high = (shaken(ResidualMLP((2,), 16, 1), scale) for scale in (1.0, 0.5))
    model = two_networks(low, high)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", device="cpu")
    assert again.config(b"") == model.config(b"")
    for steps in (1, 2):
        assert again.sample(3, steps=steps).equal(model.sample(3, steps=steps))
    only_high = two_networks(high, high)
    assert only_high.sample(3).equal(model.sample(3))
    assert not only_high.sample(3, steps=2).equal(model.sample(3, steps=2))


def test_switched_models_of_the_user_s_own_networks(tmp_path):
    low, high = Gain(), Gain()
    with torch.no_grad():
        low.gain.fill_(0.2)
    model = two_networks(low, high)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", network=Gain(), device="cpu")
    assert [float(p) for p in again.denoiser.parameters()] == pytest.approx([0.2, 0.7])
    assert again.sample(3, steps=2).equal(model.sample(3, steps=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": "1"}, "at must be a number"),
        ({"at": True}, "at must be a number"),
        ({"at": 100.0}, "at=100"),
        ({"at": float("nan")}, "at=nan"),
        ({"more": 1}, "'switched'"),
        ({"low": None}, "denoiser"),
        ({"low": {"kind": "switched"}}, "denoiser"),
        ({"kind": ["switched"]}, "denoiser"),
    ],
)
def test_bad_switched_configs_are_explained(tmp_path, change, message):
    folder = two_networks(Gain(), Gain()).save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["denoiser"].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        load(folder, network=Gain())


def test_contracts_refuse_nonsense():
    for wrong in (
        {"kind": "magic"},
        {"start": {"t": -1, "std": 1}},
        {"rho": 7},
        {"kind": "gamma", "gamma": None},
        {"kind": "gamma", "gamma": 1.1},
        {"kind": "gamma", "gamma": -0.1},
        {"kind": "renoise", "gamma": 1.0},
    ):
        with pytest.raises(ValidationError):
            contract((2,), **{"times": {1: (80.0,)}, **wrong})


# Sampling.


def test_samples_follow_the_sampler_of_their_kind():
    noise = SampleNoise([(0, i) for i in range(3)], (2,))
    x, further = noise(0).double() * 80, noise
    times = torch.tensor([80.0, 0.6], dtype=torch.float64)
    few = mlp("renoise", classes=0)
    wanted = multistep(Clamped(few.denoiser), x, times, further).clamp(-1, 1).float()
    assert few.sample(3, steps=2).equal(wanted)
    jumps = mlp("deterministic", classes=0)
    wanted = deterministic(jumps.denoiser, x, times).clamp(-1, 1).float()
    assert jumps.sample(3, steps=2).equal(wanted)
    between = mlp("gamma", classes=0, gamma=0.4)
    for gamma in (None, 0.0, 0.4, 0.9):
        given = 0.4 if gamma is None else gamma
        again = SampleNoise([(0, i) for i in range(3)], (2,))
        again(0)
        wanted = gamma_sampling(between.denoiser, x, times, again, gamma=given)
        found = between.sample(3, steps=2, gamma=gamma)
        assert found.equal(wanted.clamp(-1, 1).float())
    diffusion = mlp("ode", classes=0, times={})
    wanted = ode(diffusion.denoiser, x, to_zero(karras(5, 0.002, 80.0))).clamp(-1, 1).float()
    torch.testing.assert_close(diffusion.sample(3, steps=5), wanted, rtol=0, atol=1e-6)
    for out in (few.sample(3), jumps.sample(3), diffusion.sample(3)):
        assert out.dtype == torch.float32
        assert out.shape == (3, 2)
        assert out.abs().max() <= 1


def test_answers_are_clamped_at_every_call():
    # Answers of about 5, the spread that the preconditioning is told.
    model, network = custom(times={2: (80.0, 40.0)}, sigma_data=5.0)
    with torch.no_grad():
        network.gain.fill_(1e3)
    model.denoiser = Watched(model.denoiser)
    out = model.sample(4, steps=2)
    (_, second) = model.denoiser.seen
    first_noise = SampleNoise([(0, i) for i in range(4)], (2,))
    first_noise(0)
    added = (40.0**2 - 0.002**2) ** 0.5 * first_noise(1).double()
    assert ((second[0] - added).abs() <= 1 + 1e-9).all()
    assert out.abs().max() == 1


def test_unbounded_data_is_not_clamped():
    free = Contract(
        method="edm",
        data=DataSpec(shape=(2,), range=None),
        sampling=Sampling(start=Start(t=80.0, std=80.0), kind="renoise", times={1: (80.0,)}),
    )
    network = Gain()
    with torch.no_grad():
        network.gain.fill_(1e3)
    out = Model(Denoiser(network, EDM(sigma_data=5.0)), free).sample(8)
    assert out.abs().max() > 2


@pytest.mark.parametrize("kind", ["renoise", "deterministic", "gamma", "ode"])
def test_samples_do_not_depend_on_the_batch(kind):
    model, _ = custom(("label",), labels=3, kind=kind, any_times=True, times={})
    whole = model.sample(7, steps=2, seed=3)
    for batch in (1, 2, 3, 7):
        assert model.sample(7, steps=2, seed=3, batch=batch).equal(whole)
    assert model.sample(4, steps=2, seed=3).equal(whole[:4])


def test_networks_depend_on_the_batch_by_rounding_only():
    # Matrix products of other sizes add up in another order: measured 5e-7.
    unet = DDPMpp((1, 4, 4), channels=8, multipliers=(1, 2), blocks=1, attention=(2,))
    image = Model(
        Denoiser(shaken(unet, 0.3), EDM(sigma_data=0.5)),
        contract((1, 4, 4), times={2: (80.0, 0.6)}),
    )
    for model in (mlp(), image):
        whole = model.sample(5, steps=2)
        for batch in (1, 2, 5):
            found = model.sample(5, steps=2, batch=batch)
            torch.testing.assert_close(found, whole, rtol=0, atol=5e-6)


def test_seeds():
    model, _ = custom(("label",), labels=3, any_times=True)
    again = model.sample(4, seed=1, label=0)
    assert model.sample(4, seed=1, label=0).equal(again)
    assert not model.sample(4, seed=2, label=0).equal(again)
    assert len({tuple(row.tolist()) for row in again}) == 4
    chosen = model.sample(seeds=[5, 1, 5], label=0, steps=2)
    alone = {s: model.sample(1, seed=s, label=0, steps=2) for s in (1, 5)}
    assert chosen.equal(torch.cat([alone[5], alone[1], alone[5]]))
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert model.sample(4, seed=1, label=0).equal(again)


def test_labels():
    model, network = custom(("label",), labels=3)

    def seen(**kwargs) -> list[int]:
        network.seen.clear()
        model.sample(**kwargs)
        return torch.cat([s[3]["label"] for s in network.seen]).tolist()

    assert seen(n=5) == [0, 1, 2, 0, 1]
    assert seen(n=5, batch=2) == [0, 1, 2, 0, 1]
    # A sample's picture is the same wherever it stands: its place in the call says nothing.
    assert seen(seeds=[7, 2, 9, 5]) == [1, 2, 0, 2]
    assert seen(n=3, first=5) == [2, 0, 1]
    assert seen(n=3, first=5, batch=2) == [2, 0, 1]
    assert seen(n=3, label=2) == [2, 2, 2]
    assert seen(n=2, label=[1, 3]) == [1, 3]  # 3 is "no label"
    assert seen(n=2, label=torch.tensor([2, 0])) == [2, 0]
    assert network.seen[0][3]["label"].dtype == torch.int64
    for wrong in (4, -1, [0, 1], [0, 1, 2, 0], torch.tensor([0.0, 1.0, 2.0]), [0, 1, 4]):
        with pytest.raises(UsageError, match="label"):
            model.sample(3, label=wrong)
    with pytest.raises(UsageError, match="no labels"):
        custom()[0].sample(2, label=0)


def test_further_conditions_are_split_with_the_batch():
    model, network = custom(("text",))
    text = torch.arange(5.0)
    model.sample(5, cond={"text": text}, batch=2)
    assert [s[3]["text"].tolist() for s in network.seen] == [[0, 1], [2, 3], [4]]


def test_guidance():
    model, network = custom(("label",), labels=3, guidance=Guidance(min=0.0, max=4.0))
    model.sample(2, label=1, guidance=3.0)
    assert [s[3]["label"].tolist() for s in network.seen] == [[1, 1, 3, 3]]
    for none in (None, 1.0):
        network.seen.clear()
        model.sample(2, guidance=none)
        assert [len(s[0]) for s in network.seen] == [2]
    for wrong in (-0.1, 4.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"\[0.0, 4.0\]"):
            model.sample(2, guidance=wrong)
    with pytest.raises(UsageError, match="cannot be guided"):
        custom(("label",), labels=3)[0].sample(2, guidance=2.0)
    with pytest.raises(UsageError, match="label"):
        custom(guidance=Guidance())[0].sample(2, guidance=2.0)


# Steps and times.


def test_times_of_the_contract():
    model, network = custom(times={1: (80.0,), 2: (80.0, 0.6)})
    assert model.times() == [80.0]
    assert model.times(2) == [80.0, 0.6]
    assert custom(times={4: (80.0, 5.0, 1.0, 0.5), 2: (80.0, 0.6)})[0].times() == [80.0, 0.6]
    model.sample(1, times=[80.0, 0.6])
    expected = torch.tensor([80.0, 0.6]).log() / 4
    torch.testing.assert_close(torch.cat([s[1] for s in network.seen]), expected)
    for steps in (0, -1, 3):
        with pytest.raises(UsageError, match=str(steps)):
            model.times(steps)
        with pytest.raises(UsageError, match=str(steps)):
            model.sample(1, steps=steps)
    with pytest.raises(UsageError, match="made for"):
        model.sample(1, times=[80.0, 0.7])


def test_any_times():
    model, _ = custom(any_times=True, times={1: (80.0,)})
    # Two of the three points of the grid down to t_min, which a model is not called at.
    assert model.times(2) == pytest.approx(karras(3, 0.002, 80.0).tolist()[:2])
    linear, _ = custom(any_times=True, grid="uniform", path=Linear(), start=Start(t=1.0, std=1.0))
    assert linear.times(4) == pytest.approx([1, 0.75, 0.5, 0.25])
    model.sample(1, times=[80.0, 3.0])
    model.sample(1, times=model.times(3))
    for wrong in ([], [0.6, 80.0], [80.0, 80.0], [80.0, 0.0], [81.0], [80.0, -1.0], [5.0]):
        with pytest.raises(UsageError, match="descend"):
            model.sample(1, times=wrong)


@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
def test_times_of_any_path_can_be_given_back(path):
    start = Start(t=path.t_max, std=path.start_std())
    model, _ = custom(any_times=True, path=path, start=start)
    times = model.times(3)
    assert model.sample(2, times=times).equal(model.sample(2, steps=3))
    assert model.sample(2, times=times).isfinite().all()


def test_times_of_diffusion_models():
    model, _ = custom(kind="ode", times={}, any_times=True)
    assert model.times() == karras(18, 0.002, 80.0).tolist()
    zero, _ = custom(
        kind="ode", times={}, any_times=True, path=Linear(), start=Start(t=1.0, std=1.0)
    )
    assert len(zero.times(4)) == 4
    assert min(zero.times(4)) > 0


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
def test_calls_are_counted_as_they_are_made(path, n):
    shared = {"any_times": True, "labels": 2, "guidance": Guidance(), "path": path}
    start = Start(t=path.t_max, std=path.start_std())
    for kind in ("ode", "renoise", "deterministic", "gamma"):
        model, network = custom(("label",), kind=kind, start=start, times={}, **shared)
        made = 2 * n - 1 if kind == "ode" else n
        for guidance, factor in ((None, 1), (1.0, 1), (2.0, 2)):
            network.seen.clear()
            model.sample(3, steps=n, guidance=guidance)
            assert sum(len(s[0]) for s in network.seen) == 3 * factor * made
            assert model.calls(n, guidance) == factor * made


@pytest.mark.parametrize("path", [DiscreteVariancePreserving(), VarianceExploding()], ids=path_id)
def test_diffusion_samples_end_on_an_answer(path):
    # With one sample for data, any trajectory to clean data ends on it.
    model, _ = custom(
        kind="ode",
        times={},
        any_times=True,
        path=path,
        start=Start(t=path.t_max, std=path.start_std()),
    )

    class Point(Gain):
        def forward(self, x, c_noise, s_noise=None, cond=None):
            c_skip, c_out, c_in, _ = EDM(sigma_data=0.5).coefficients((4 * c_noise).exp())
            back = x / c_in[:, None]
            return (0.25 - c_skip[:, None] * back) / c_out[:, None]

    model.denoiser.net = Point().double()
    out = model.sample(6, steps=4)
    torch.testing.assert_close(out, torch.full((6, 2), 0.25), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 0}, "0 samples"),
        ({"n": -2}, "-2 samples"),
        ({"seeds": []}, "samples"),
        ({"seed": -1}, "seed"),
        ({"seeds": [3, -1]}, "seed"),
        ({"n": 3, "batch": 0}, "batch"),
        ({"n": 3, "batch": -1}, "batch"),
        ({"gamma": 0.5}, "renoise.*gamma=0.5"),
    ],
)
def test_impossible_requests_are_explained(kwargs, message):
    with pytest.raises(UsageError, match=message):
        mlp().sample(**kwargs)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_is_a_share(gamma):
    with pytest.raises(UsageError, match=r"gamma must be in \[0, 1\]"):
        mlp("gamma", classes=0).sample(gamma=gamma)


def test_noise_belongs_to_the_sample():
    both = SampleNoise([(0, 0), (0, 1)], (3,))
    alone = SampleNoise([(0, 1)], (3,))
    drawn: list[Tensor] = [both(i) for i in range(3)]
    for step in drawn:
        assert alone(0)[0].equal(step[1])
    assert not drawn[0].equal(drawn[1])
    assert not drawn[0][0].equal(drawn[0][1])


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(3, 4),
        torch.ones(3, 4, dtype=torch.float64),
        np.ones((3, 4)),
        [[1.0] * 4] * 3,
        torch.ones(1, 4),
        [[1.0] * 4],
    ],
    ids=["float32", "float64", "numpy", "list", "one row", "list of one row"],
)
def test_conditions_that_only_the_network_knows_are_converted(value):
    model, net = custom(("obs",))
    model.sample(3, cond={"obs": value})
    (*_, cond) = net.seen[-1]
    assert cond["obs"].dtype == torch.float32
    assert cond["obs"].tolist() == [[1.0] * 4] * 3


def test_conditions_that_only_the_network_knows_may_be_numbers_of_things():
    model, net = custom(("obs",))
    model.sample(3, cond={"obs": np.array([4, 5, 6])})
    assert net.seen[-1][-1]["obs"].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(2, 4), r"one row, or 3 with one a sample; got the shape \(2, 4\)"),
        (1.0, r"one row, or 3 with one a sample; got the shape \(\)"),
        ("five", "obs must be numbers, got 'five'"),
    ],
)
def test_wrong_conditions_that_only_the_network_knows(value, says):
    model, _ = custom(("obs",))
    with pytest.raises(UsageError, match=says):
        model.sample(3, cond={"obs": value})
