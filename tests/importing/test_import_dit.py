"""DiT's and SiT's files against a forward pass that is written here from their conventions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep import ImportOptions, UsageError, import_checkpoint, load
from fewstep.models import NoisePrediction, ReversedFlow

WIDTH, HEADS, PATCH, SIDE, CHANNELS, DEPTH, CLASSES = 16, 2, 2, 3, 4, 2, 5
OPTIONS = {"heads": HEADS}


def positions() -> Tensor:
    """Sines, then cosines of a token's column; then those of its row."""
    rows = []
    for row in range(SIDE):
        for column in range(SIDE):
            parts: list[float] = []
            for place in (column, row):
                rates = [1e4 ** -(i / (WIDTH / 4)) for i in range(WIDTH // 4)]
                parts += [math.sin(place * r) for r in rates] + [math.cos(place * r) for r in rates]
            rows.append(parts)
    return torch.tensor(rows)[None]


def state(learn_sigma: bool = True) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {"pos_embed": positions()}

    def layer(name: str, *shape: int) -> None:
        out[f"{name}.weight"] = torch.randn(shape, generator=rng) * 0.2
        out[f"{name}.bias"] = torch.randn(shape[:1], generator=rng) * 0.2

    layer("x_embedder.proj", WIDTH, CHANNELS, PATCH, PATCH)
    layer("t_embedder.mlp.0", WIDTH, 256)
    layer("t_embedder.mlp.2", WIDTH, WIDTH)
    out["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH, generator=rng)
    for i in range(DEPTH):
        layer(f"blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH)
        layer(f"blocks.{i}.attn.proj", WIDTH, WIDTH)
        layer(f"blocks.{i}.mlp.fc1", 4 * WIDTH, WIDTH)
        layer(f"blocks.{i}.mlp.fc2", WIDTH, 4 * WIDTH)
        layer(f"blocks.{i}.adaLN_modulation.1", 6 * WIDTH, WIDTH)
    layer("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    layer("final_layer.linear", PATCH**2 * CHANNELS * (1 + learn_sigma), WIDTH)
    return out


def official(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """All channels of the output, also the second half."""

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        value = F.layer_norm(value, (WIDTH,), eps=1e-6)
        return value * (1 + scale[:, None]) + shift[:, None]

    conv = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    h = F.conv2d(x, *conv, stride=PATCH).flatten(2).transpose(1, 2) + state["pos_embed"]
    angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128)
    c = linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))
    c = linear("t_embedder.mlp.2", F.silu(c)) + state["y_embedder.embedding_table.weight"][y]
    for i in range(DEPTH):
        six = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, 1)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(h, six[0], six[1]))
        q, k, v = qkv.reshape(*h.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(h.shape)
        h = h + six[2][:, None] * linear(f"blocks.{i}.attn.proj", mixed)
        inner = linear(f"blocks.{i}.mlp.fc1", norm(h, six[3], six[4]))
        inner = linear(f"blocks.{i}.mlp.fc2", F.gelu(inner, approximate="tanh"))
        h = h + six[5][:, None] * inner
    two = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, 1)
    out = linear("final_layer.linear", norm(h, *two))
    out = out.reshape(len(x), SIDE, SIDE, PATCH, PATCH, -1)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(len(x), -1, SIDE * PATCH, SIDE * PATCH)


X = torch.randn(3, CHANNELS, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 4, CLASSES])


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_dit(learn_sigma, nested, tmp_path):
    weights = state(learn_sigma)
    torch.save({"ema": weights, "opt": {"lr": 1.0}} if nested else weights, tmp_path / "a.pt")
    imported = import_checkpoint(tmp_path / "a.pt", ImportOptions(reading="ddpm-linear", **OPTIONS))
    model = imported.model
    t = torch.tensor([3.0, 500.0, 999.0])
    want = official(weights, X, t, Y)[:, :CHANNELS]
    assert isinstance(model.denoiser.preconditioning, NoisePrediction)
    with torch.no_grad():
        answer = model.denoiser(X, t.double(), None, {"label": Y})
        raw = model.denoiser.net(X, t, None, {"label": Y})
    # Sines of times up to 999 have four digits after the point in float32.
    error = 1e-4 * float(want.abs().max())
    assert torch.allclose(raw, want, atol=error)
    alpha, sigma, _, _ = model.denoiser.path.coefficients(t.double())
    x0 = (X - sigma[:, None, None, None] * want) / alpha[:, None, None, None]
    bound = error * (sigma / alpha)[:, None, None, None] + 1e-5
    assert bool(((answer - x0).abs() <= bound).all())
    assert any("half" in note for note in imported.report.notes) == learn_sigma
    assert model.contract.data.range is None
    assert model.contract.sampling.guidance is not None


def test_sit_s_time_runs_to_the_data(tmp_path):
    weights = state()
    torch.save(weights, tmp_path / "a.pt")
    model = import_checkpoint(
        tmp_path / "a.pt", ImportOptions(reading="flow-reversed", **OPTIONS)
    ).model
    assert isinstance(model.denoiser.preconditioning, ReversedFlow)
    own = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    theirs = (1 - own).float()
    # x = s x1 + (1 - s) x0 with data x1 and noise x0 has the velocity x1 - x0, so x1 = x + (1-s) v.
    velocity = official(weights, X, theirs, Y)[:, :CHANNELS]
    data = X + (1 - theirs)[:, None, None, None] * velocity
    with torch.no_grad():
        answer = model.denoiser(X, own, None, {"label": Y})
    assert torch.allclose(answer, data, atol=1e-5)
    loaded = load(model.save(tmp_path / "m"), device="cpu")
    assert loaded.sample(2, steps=3, guidance=2.0).isfinite().all()
    assert loaded.denoiser.preconditioning == model.denoiser.preconditioning


def test_what_is_missing_is_asked_for_and_what_differs_is_refused(tmp_path):
    weights = state()
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"--as ddpm-linear .* or --as flow-reversed"):
        import_checkpoint(tmp_path / "a.pt", ImportOptions(**OPTIONS))
    with pytest.raises(UsageError, match="give --heads N"):
        import_checkpoint(tmp_path / "a.pt", ImportOptions(reading="flow-reversed"))
    with pytest.raises(UsageError, match="3 heads cannot share"):
        import_checkpoint(tmp_path / "a.pt", ImportOptions(reading="flow-reversed", heads=3))
    torch.save({**weights, "pos_embed": weights["pos_embed"] + 0.1}, tmp_path / "b.pt")
    with pytest.raises(UsageError, match="not the sines and cosines"):
        import_checkpoint(tmp_path / "b.pt", ImportOptions(reading="flow-reversed", **OPTIONS))
