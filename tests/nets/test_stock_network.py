"""Networks of diffusers under the library's protocol."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch

import tiny_pipelines
from fewstep import UsageError
from fewstep.core import Batch
from fewstep.models import Denoiser, Flow, Judge, NoisePrediction, grown
from fewstep.models.discriminator import features_of
from fewstep.models.nets import StockNetwork
from fewstep.models.nets.blocks import latent_guidance_embedding
from fewstep.models.spec import build_denoiser, build_network, denoiser_spec, network_spec
from fewstep.paths import Linear
from fewstep.training.distribution import checkpoint_blocks
from tiny_pipelines import SIZE, shaken

D = torch.float64
ALL = {
    "sd": lambda: tiny_pipelines.sd().unet,
    "sdxl": lambda: tiny_pipelines.sdxl().unet,
    "sd3": lambda: tiny_pipelines.sd3().transformer,
    "flux": lambda: tiny_pipelines.flux().transformer,
}
WIDTHS = {"sd": (8, 0), "sdxl": (20, 10), "sd3": (24, 20), "flux": (16, 8)}


def network(name: str, **options) -> StockNetwork:
    stock = ALL[name]()
    net = StockNetwork(type(stock).__name__, stock.config, factor=2, **options)
    net.net.load_state_dict(stock.state_dict(), strict=not options)
    return net


def denoiser(name: str) -> Denoiser:
    scalings = NoisePrediction if name in {"sd", "sdxl"} else partial(Flow, path=Linear())
    return Denoiser(network(name), scalings(time_scale=1000.0))


def inputs(name: str, n: int = 2):
    g = torch.Generator().manual_seed(0)
    words, pooled = WIDTHS[name]
    cond = {"text": torch.randn(n, 5, words, generator=g)}
    cond |= {"pooled": torch.randn(n, pooled, generator=g)} if pooled else {}
    x = torch.randn(n, 4, SIZE, SIZE, generator=g)
    return x, torch.linspace(0.3, 0.9, n, dtype=D), cond


@pytest.mark.parametrize("name", ALL)
def test_its_spec_is_all_that_builds_it(name):
    first = denoiser(name)
    x, t, cond = inputs(name)
    with torch.device("meta"):
        again = build_denoiser(denoiser_spec(first))
    again.load_state_dict(first.state_dict(), assign=True)
    assert not [b for b in again.buffers() if b.is_meta]
    with torch.no_grad():
        assert torch.equal(again.eval()(x, t, None, cond), first.eval()(x, t, None, cond))


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_it_grows_an_input_for_guidance(name):
    first = denoiser(name)
    bigger = grown(first, guidance=True)
    assert bigger.cond_keys[-1] == "guidance"
    x, t, cond = inputs(name)
    scale = torch.tensor([1.0, 7.5])
    with torch.no_grad():
        want = first(x, t, None, cond | ({"guidance": scale} if name == "flux" else {}))
        assert torch.equal(bigger(x, t, None, {**cond, "guidance": scale}), want)
        shaken(bigger)
        one, other = (bigger(x, t, None, {**cond, "guidance": s}) for s in (scale, scale + 1))
    assert not torch.allclose(one, other, atol=1e-4)
    with pytest.raises(UsageError, match=r"needs the condition\(s\) \['guidance'\]"):
        bigger(x, t, None, cond)
    # A model that was grown is stored and built again.
    again = build_network(network_spec(bigger.net))
    again.load_state_dict(bigger.net.state_dict())


def test_what_it_cannot_grow():
    with pytest.raises(UsageError, match=r"SD3Transformer2DModel has no input for a guidance"):
        grown(denoiser("sd3"), guidance=True)
    with pytest.raises(UsageError, match=r"StockNetwork has no input for a second time; Res"):
        grown(denoiser("sd"), two_time=True)


def test_no_guidance_is_the_embedding_of_nothing():
    got = latent_guidance_embedding(torch.tensor([1.0, 1.002]), 8)
    assert torch.equal(got[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    ladder = 2 * torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    assert torch.allclose(got[1], torch.cat([ladder.sin(), ladder.cos()]), atol=1e-4)


def test_sizes_that_sdxl_reads():
    first = denoiser("sdxl")
    x, t, cond = inputs("sdxl")
    side = 2.0 * SIZE
    whole = torch.tensor([[side, side, 0.0, 0.0, side, side]]).expand(2, 6)
    with torch.no_grad():
        want = first(x, t, None, cond)
        assert torch.equal(first(x, t, None, {**cond, "time_ids": whole}), want)
        cropped = whole + torch.tensor([0.0, 0, 4, 8, 0, 0])
        assert not torch.allclose(first(x, t, None, {**cond, "time_ids": cropped}), want, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_still_tells_all_times_apart(name):
    first = denoiser(name).bfloat16()
    asked = []
    first.net.net.register_forward_pre_hook(
        lambda _, args, named: asked.append(named.get("timestep", args[-1] if args else None)),
        with_kwargs=True,
    )
    x, _, cond = inputs(name)
    with torch.no_grad():
        out = first(x, torch.full((2,), 0.999, dtype=D), None, cond)
    assert out.dtype == torch.float32
    want = 0.999 if name == "flux" else 999.0
    assert torch.allclose(asked[0].double(), torch.full((2,), want, dtype=D), rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_its_blocks_are_units(name):
    first = denoiser(name)
    x, t, cond = inputs(name)
    found = features_of(first, x, t, cond)
    assert len(found) > 2 if name in {"sd", "sdxl"} else len(found) == 2
    assert all(f.isfinite().all() and len(f) == 2 for f in found)
    logits = Judge(first, Batch(x, cond), at=(0,))(first, x, t, cond)
    assert len(logits) == 1


@pytest.mark.parametrize("name", ALL)
def test_blocks_that_are_computed_again(name):
    first, forgetful = denoiser(name).train(), denoiser(name).train()
    assert checkpoint_blocks(forgetful.net)
    x, t, cond = inputs(name)
    for one in (first, forgetful):
        one(x, t, None, cond).square().sum().backward()
    for (key, p), q in zip(first.named_parameters(), forgetful.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        assert p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-5), key
    assert first.net.last_weight.grad is not None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"architecture": "AutoencoderKL", "config": {}}, "'AutoencoderKL' is no class"),
        ({"architecture": "os.system", "config": {}}, "'os.system' is no class"),
        ({"architecture": "UNet2DConditionModel", "config": 3}, "config"),
        ({"architecture": "UNet2DConditionModel", "config": {"new": 1}}, "has no new"),
        ({"architecture": "UNet2DConditionModel", "config": {"sample_size": 2**40}}, "range"),
        ({"architecture": "UNet2DConditionModel", "config": {}, "factor": "x"}, "factor"),
    ],
)
def test_a_spec_that_is_refused(spec, says):
    tiny_pipelines.library()
    with pytest.raises(UsageError, match=says):
        build_network({"kind": "diffusers", **spec})


def test_odd_latents_of_flux():
    first = denoiser("flux")
    x, t, cond = inputs("flux")
    with pytest.raises(UsageError, match=r"squares of 2 x 2, got 7 x 8"):
        first(x[:, :, 1:], t, None, cond)


def test_without_diffusers(monkeypatch):
    config = dict(tiny_pipelines.sd().unet.config)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[diffusers\]'"):
        StockNetwork("UNet2DConditionModel", config)
