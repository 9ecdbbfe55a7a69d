"""Folders for diffusers: the stock pipeline makes the same pictures, and the rest is refused."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch

import tiny_checkpoints
from checkpoint_files import official
from every_net import built
from fewstep import ImportOptions, UsageError, import_checkpoint, load
from fewstep.conditions import Label
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.exporting import export
from fewstep.exporting.schedulers import call_for, finite_sigma_min, points_for
from fewstep.model import Model
from fewstep.models import (
    EDM,
    ConsistencyBoundary,
    DataPrediction,
    Denoiser,
    NearestStep,
    NoisePrediction,
    Switched,
    VPrediction,
)
from fewstep.models.nets import ADM
from fewstep.paths import DiscreteVariancePreserving, VarianceExploding
from fewstep.times import karras
from tiny import fewstep

LEVELS = VarianceExploding()
GRID = karras(40, 0.002, 80.0)
PUBLISHED = float(GRID[22])
"""The second level of published models' samples of two steps, at position 22 of 40."""
SMALL: dict[str, Any] = {
    "shape": (3, 8, 8),
    "channels": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "head_channels": 16,
    "groups": 8,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "scale and shift": {"classes": 4, "blocks": 2},
    "added embedding": {"scale_shift": False, "attention": (8, 4)},
    "no attention": {"attention": (), "middle_attention": False},
    "one head": {"heads": 1, "embedding_multiplier": 2},
    "a head wider than the first width": {"head_channels": 64},
    "DDPM": {
        "convolutions": True,
        "asymmetric": True,
        "sin_first": True,
        "endpoint": True,
        "eps": 1e-6,
        "scale_shift": False,
    },
    "one channel": {"shape": (1, 8, 8), "classes": 3},
}


def network(**options: Any) -> ADM:
    torch.manual_seed(0)
    net = ADM(**{**SMALL, "dropout": 0.1, **options}).float()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15)
    return net


def model(net: Any = None, scalings: Any = None, times: Any = None, **data: Any) -> Model:
    """A consistency model, or a diffusion model where the scalings are those of one."""
    net = net or network()
    scalings = scalings or ConsistencyBoundary(sigma_data=0.5, time_scale=250.0)
    path = scalings.path
    classes = net.options.get("classes", 0)
    own = {"label": Label(classes=classes)} if classes else {}
    spec = DataSpec(**{"shape": tuple(net.options["shape"]), "conditions": own, **data})
    few = isinstance(scalings, ConsistencyBoundary)
    times = {1: (path.t_max,), 2: (path.t_max, PUBLISHED)} if times is None else times
    sampling = Sampling(
        start=Start(t=path.t_max, std=path.start_std()),
        kind="renoise" if few else "ode",
        times=times if few else {},
        any_times=True,
    )
    return Model(Denoiser(net, scalings), Contract(method="cd", data=spec, sampling=sampling))


@pytest.fixture
def diffusers():
    module = pytest.importorskip("diffusers")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return module


def drawn(seed: int, calls: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """The noise that the stock pipeline draws: the start's first, then that of each step."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for _ in range(calls + 1)]


def expected(one: Model, times: list[float], noise: list[torch.Tensor], cond) -> torch.Tensor:
    """The model's own samples at that noise, written out."""
    path, x = one.denoiser.path, noise[0].double() * times[0]
    out = x
    with torch.no_grad():
        for i, time in enumerate(times):
            if i:
                x = out + (time**2 - path.t_min**2) ** 0.5 * noise[i]
            t = torch.full((len(x),), time, dtype=torch.float64)
            out = one.denoiser(x, t, None, cond).clamp(-1, 1)
    return out


def stock(pipeline, n: int, timesteps: list[int], seed: int, labels: int, **more: Any):
    """Samples of the stock pipeline in [-1, 1], and the labels they have."""
    label = torch.arange(n) % labels if labels else None
    images = pipeline(
        batch_size=n,
        class_labels=label,
        num_inference_steps=None,
        timesteps=timesteps,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **more,
    ).images
    return images * 2 - 1, {"label": label} if labels else {}


def opened(diffusers, folder):
    pipeline = diffusers.ConsistencyModelPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stock_pipeline_makes_the_same_pictures(diffusers, name, tmp_path):
    one = model(network(**NETWORKS[name]))
    assert export(one, "diffusers", tmp_path / "out") < 1e-6
    calls = json.loads((tmp_path / "out" / "fewstep.json").read_text())["calls"]
    assert (calls["1"]["timesteps"], calls["2"]["timesteps"]) == ([0], [22, 0])
    pipeline, data = opened(diffusers, tmp_path / "out"), one.contract.data
    for steps in ("1", "2", "4"):
        timesteps = calls[steps]["timesteps"]
        images, cond = stock(pipeline, 3, timesteps, 7, data.labels)
        noise = drawn(7, len(timesteps), (3, *data.shape))
        want = expected(one, calls[steps]["sigmas"], noise, cond)
        torch.testing.assert_close(images, want.float(), atol=1e-4, rtol=0)
        inside = want[want.abs() < 1]
        assert len(inside) > 0.2 * want.numel()
        assert float(inside.std()) > 0.03  # the pictures say something


def test_samples_of_the_model_itself_at_its_own_noise(diffusers, tmp_path, monkeypatch):
    """`Model.sample`, whose noise the pipeline is given in place of what it draws."""
    one = model(network(classes=4))
    export(one, "diffusers", tmp_path / "out")
    pipeline = opened(diffusers, tmp_path / "out")
    from diffusers.schedulers import scheduling_consistency_models as scheduling

    for timesteps, times in (([0], [80.0]), ([22, 0], [80.0, PUBLISHED])):
        noise = one.noise([(5, i) for i in range(3)], calls=2)
        latents = noise(0).float()
        later = iter([noise(1).float(), torch.zeros(3, 3, 8, 8)])
        monkeypatch.setattr(scheduling, "randn_tensor", lambda *a, later=later, **k: next(later))
        images, _ = stock(pipeline, 3, timesteps, 0, 4, latents=latents)
        right = one.sample(3, seed=5, times=times)
        torch.testing.assert_close(images, right, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_import_of_the_folder_is_the_same_model(name, tmp_path):
    one = model(network(**NETWORKS[name]))
    export(one, "diffusers", tmp_path / "out")
    other = import_checkpoint(tmp_path / "out").model
    assert other.denoiser.preconditioning == one.denoiser.preconditioning
    assert other.contract.data == one.contract.data
    state, own = other.denoiser.net.state_dict(), one.denoiser.net.state_dict()
    assert [*state] == [*own]
    assert all(torch.equal(state[key], own[key]) for key in own)
    heads = {"heads": 0, "head_channels": 0}  # one head may be said by its width
    assert {**other.denoiser.net.options, **heads} == {**one.denoiser.net.options, **heads}


@pytest.mark.parametrize("topic", ["openai_classcond", "openai_uncond"])
def test_a_checkpoint_of_openai_s_goes_through(diffusers, topic, tmp_path):
    golden = official(topic, tmp_path)
    flags = golden.settings["flags"]
    heads = flags["num_head_channels"]
    options = ImportOptions(
        reading="consistency",
        resolution=flags["image_size"],
        sigma_min=flags["sigma_min"],
        sigma_max=flags["sigma_max"],
        **({"head_channels": heads} if heads > 0 else {"heads": flags["num_heads"]}),
    )
    one = import_checkpoint(golden.file(".pt"), options).model
    export(one, "diffusers", tmp_path / "out")
    pipeline, data = opened(diffusers, tmp_path / "out"), one.contract.data
    sigmas = karras(40, one.denoiser.path.t_min, one.denoiser.path.t_max)
    for timesteps in ([0], [22, 0]):
        images, cond = stock(pipeline, 2, timesteps, 3, data.labels)
        noise = drawn(3, len(timesteps), (2, *data.shape))
        want = expected(one, [float(sigmas[i]) for i in reversed(timesteps)], noise, cond)
        torch.testing.assert_close(images, want.float(), atol=1e-4, rtol=0)
    again = import_checkpoint(tmp_path / "out").model.denoiser.net.state_dict()
    assert all(torch.equal(again[k], v) for k, v in one.denoiser.net.state_dict().items())


TABLE = DiscreteVariancePreserving(beta_start=1e-4, beta_end=0.02, scaled_linear=False)
TEACHERS = {
    "edm": EDM(sigma_data=0.7, path=VarianceExploding(0.01, 50.0)),
    "noise": NoisePrediction(time_scale=1.0, path=TABLE),
    "data": DataPrediction(time_scale=1.0, path=DiscreteVariancePreserving()),
    "v": VPrediction(time_scale=1.0, path=TABLE),
    "cosine": NearestStep(path=VarianceExploding(0.0065, 80.0)),
}


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("name", TEACHERS)
def test_diffusion_models_mean_the_same_to_their_scheduler(diffusers, name, classes, tmp_path):
    one = model(network(classes=classes), TEACHERS[name])
    assert export(one, "diffusers", tmp_path / "out") < 1e-6
    whole = classes == 0 and name != "edm"
    assert (tmp_path / "out" / "model_index.json").exists() == whole
    place = {"subfolder": "unet"} if whole else {}
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "out", **place)
    kind = diffusers.EDMEulerScheduler if name == "edm" else diffusers.DDPMScheduler
    scheduler = kind.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(10)
    label = torch.arange(2) if classes else None
    cond = {"label": label} if classes else {}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    levels = scheduler.sigmas if name == "edm" else None
    for i, t in enumerate(scheduler.timesteps[:-1]):
        with torch.no_grad():
            if levels is None:
                raw = unet(x, t, class_labels=label).sample
                got = scheduler.step(raw, t, x).pred_original_sample
                power = float(scheduler.alphas_cumprod[int(t)])
                time = (1 / power - 1) ** 0.5 if name == "cosine" else float(t)
                ours = x / power**0.5 if name == "cosine" else x
            else:
                noisy = x * levels[i]
                raw = unet(scheduler.scale_model_input(noisy, t), t, class_labels=label).sample
                got = scheduler.step(raw, t, noisy).pred_original_sample
                time, ours = float(levels[i]), noisy
            times = torch.full((2,), time, dtype=torch.float64)
            if name == "cosine" and not 0.01 < time < 80:
                continue
            want = one.denoiser(ours, times, None, cond).float()
        limit = 2e-4 * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got, want, atol=limit, rtol=0)


def test_the_card_s_code_runs_word_for_word(diffusers, tmp_path, monkeypatch):
    cards = {
        "few": model(network(classes=4)),
        "edm": model(network(classes=4), TEACHERS["edm"]),
        "noise": model(network(), TEACHERS["noise"]),
    }
    for name, one in cards.items():
        export(one, "diffusers", tmp_path / name)
        text = (tmp_path / name / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0].replace("(50)", "(3)")
        monkeypatch.chdir(tmp_path)  # and not in the folder itself
        room: dict[str, Any] = {}
        exec(compile(code, "card", "exec"), room)
        images = room["images"] if name == "few" else room["x"].numpy()
        assert images.shape == ((4, 8, 8, 3) if name == "few" else (4, 3, 8, 8))
        assert np.isfinite(images).all()
    few = (tmp_path / "few" / "README.md").read_text()
    assert "timesteps=[22, 0]" in few
    assert "Without `class_labels`" in few
    assert "For n from 21 to 39" in few
    assert "| 4 | `timesteps=[29, 19, 10, 0]` |" in few
    assert "off by 12%" in few


def test_a_level_whose_last_step_would_be_nan(diffusers, tmp_path):
    low = 0.0011
    assert finite_sigma_min(low) != low
    path = VarianceExploding(low, 80.0)
    one = model(scalings=ConsistencyBoundary(sigma_data=0.5, time_scale=250.0, path=path))
    export(one, "diffusers", tmp_path / "out")
    images, _ = stock(opened(diffusers, tmp_path / "out"), 2, [22, 0], 0, 0)
    assert images.isfinite().all()
    config = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "sigma_min": low}))
    images, _ = stock(opened(diffusers, tmp_path / "out"), 2, [22, 0], 0, 0)
    assert not images.isfinite().all()  # what the rounding is for


def test_grids_hold_the_model_s_times():
    assert points_for([], 0.002, 80.0) == 40
    assert points_for([(80.0, 1.382)], 0.002, 80.0) == 40
    middle = float(karras(3, 0.002, 80.0)[1])
    points = points_for([(80.0, middle)], 0.002, 80.0)
    assert points == 3
    found = call_for((80.0, 2.0), points_for([(80.0, 2.0)], 0.002, 80.0), 0.002, 80.0)
    assert found is not None
    assert found.error < 1e-3
    assert found.timesteps[-1] == 0
    far = call_for((80.0, 2.0), 40, 0.002, 80.0)
    assert far is not None
    assert far.timesteps == (20, 0)
    assert far.error == pytest.approx(0.12, abs=0.01)
    assert call_for((80.0, 79.0, 78.9), 40, 0.002, 80.0) is None


def switched() -> Model:
    one = model()
    both = Switched(one.denoiser, model().denoiser, 1.0)
    return Model(both, one.contract)


BOUNDARY = {"sigma_data": 0.5, "time_scale": 250.0}
REFUSED = {
    "ddpmpp": (lambda: model(built("ddpmpp").float()), r"kind ddpmpp cannot be held"),
    "two times": (lambda: model(network(two_time=True)), "it reads two times"),
    "guidance": (lambda: model(network(guidance=True)), "it reads a guidance scale"),
    "double norm": (lambda: model(network(double_norm=True)), "normalises the scale"),
    "groups": (lambda: model(network(groups=0)), "8 and 16 .*groups"),
    "heads": (lambda: model(network(heads=2, attention=(8, 4))), "2 attention heads at"),
    "wide": (lambda: model(network(shape=(3, 8, 16))), "square pictures"),
    "range": (lambda: model(range=None), "range is None"),
    "time": (
        lambda: model(scalings=ConsistencyBoundary(sigma_data=0.5)),
        r"reads 0\.25 ln\(sigma\); export to onnx",
    ),
    "teacher's time": (lambda: model(scalings=EDM(**BOUNDARY)), r"reads 250 ln\(sigma\)"),
    "two networks": (switched, "Switched"),
    "times of DDPM": (
        lambda: model(scalings=NoisePrediction(path=TABLE)),
        "whose numbers the network reads",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_cannot_hold_is_refused(name, tmp_path):
    make, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as error:
        export(make(), "diffusers", tmp_path / "out")
    assert "export to onnx, openvino or torch instead" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, capsys):
    state = tiny_checkpoints.openai_state()
    torch.save(state, tmp_path / "cd.pt")
    options = ("--as", "consistency", "--resolution", 8, "--head-channels", 16)
    outcome = fewstep(capsys, "import", tmp_path / "cd.pt", *options, "--out", tmp_path / "in")
    assert outcome.code == 0, outcome.err
    code = (tmp_path / "in" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    room: dict[str, Any] = {}
    exec(code, room)  # the card's call, word for word
    assert room["x"].shape == (16, 3, 8, 8)
    to = ("--to", "diffusers", "--out", tmp_path / "out")
    outcome = fewstep(capsys, "export", tmp_path / "in", *to)
    assert outcome.code == 0, outcome.err
    outcome = fewstep(capsys, "import", tmp_path / "out", "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    one, other = (load(tmp_path / name, device="cpu") for name in ("in", "again"))
    assert torch.equal(one.sample(2, steps=1), other.sample(2, steps=1))
    outcome = fewstep(capsys, "export", "digits-cd", "--to", "diffusers", "--out", tmp_path / "no")
    assert outcome.code == 2
    assert "0.25 ln(sigma)" in outcome.err or "kind mlp" in outcome.err
    outcome = fewstep(capsys, "export", tmp_path / "in", *to, "--sampler", 2)
    assert outcome.code == 2
    assert "leave out the steps" in outcome.err
