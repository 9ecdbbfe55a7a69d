"""Pictures of other sizes than the model's, models of latents, and classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewstep
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.editing import canvas, inpaint, optimise, restore, vary
from fewstep.editing.tiles import Tiled, starts
from fewstep.errors import UsageError, UsageWarning
from fewstep.frontends import Codec, Frontend
from fewstep.model import Model
from fewstep.paths import VarianceExploding
from oracles import Gaussian, GaussianConsistency, normal

PATH = VarianceExploding()


def model(shape=(1, 8, 8), codec=None, **sampling) -> Model:
    """Independent Gaussian pixels: what a tile says of a pixel is what every tile says."""
    given = {"kind": "renoise", "any_times": True, **sampling}
    how = Sampling(start=Start(t=80.0, std=80.0), **given)
    spec = DataSpec(shape=shape, range=(-1.0, 1.0))
    contract = Contract(method="exact", data=spec, sampling=how)
    denoiser = GaussianConsistency(PATH, Gaussian(0.1, 0.2))
    return Model(denoiser, contract, frontend=Frontend(codec=codec))


MODEL = model()


def test_tiles_cover_a_picture_to_its_ends():
    assert starts(8, 8) == [0]
    assert starts(20, 8) == [0, 4, 8, 12]
    assert starts(21, 8) == [0, 4, 8, 12, 13]


def test_blended_tiles_of_a_local_model_are_the_model_itself():
    x = normal(2, 1, 21, 13, seed=1)
    t = torch.tensor([2.0, 5.0], dtype=torch.float64)
    whole = MODEL.denoiser(x, t)
    assert (Tiled(MODEL.denoiser, 8, 8)(x, t) - whole).abs().max() < 1e-12


class Coloured(GaussianConsistency):
    """Answers with its condition."""

    def forward(self, x, t, s=None, cond=None):
        return torch.zeros_like(x) + cond["label"].to(x).reshape(-1, 1, 1, 1)


def test_every_tile_has_its_samples_conditions():
    cond = {"label": torch.tensor([1, 2, 3])}
    out = Tiled(Coloured(PATH), 8, 8)(
        normal(3, 1, 40, 40, seed=1), torch.ones(3).double(), None, cond
    )
    assert out.mean((1, 2, 3)).tolist() == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (20, 5), (21, 30)])
def test_known_pixels_of_a_picture_of_any_size_have_no_seam(size):
    x = normal(1, 1, *size, seed=2).float().clamp(-1, 1)
    unknown = torch.zeros(size, dtype=torch.bool)
    unknown[1:3, 2:4] = True
    for search in (False, True):
        out = canvas.inpaint_picture(MODEL, x, unknown, n=2, steps=3, search=search)
        assert out.shape == (2, 1, *size)
        assert torch.equal(out[:, 0][:, ~unknown], x[0, 0][~unknown].expand(2, -1))
        assert not torch.equal(out[:, 0][:, unknown], x[0, 0][unknown].expand(2, -1))


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (8, 10)])
def test_a_picture_of_any_size_is_enlarged_and_blurs_back_to_itself(size):
    small = normal(1, 1, *size, seed=3)
    out = canvas.upscale_picture(MODEL, small, 3, steps=3)
    assert out.shape == (1, 1, 3 * size[0], 3 * size[1])
    assert (torch.nn.functional.avg_pool2d(out, 3) - small).abs().max() < 1e-12


def test_what_is_padded_is_cut_again():
    x = normal(1, 1, 3, 20, seed=4)
    wide, sides = canvas.padded(MODEL, x)
    assert wide.shape == (1, 1, 8, 20)
    assert torch.equal(canvas.cut(wide, sides), x)
    assert canvas.any_size(vary, MODEL, x, sigma=0.5, n=2).shape == (2, 1, 3, 20)
    assert canvas.deblur_picture(MODEL, x, 1.0, steps=2).shape == x.shape


class Halved(nn.Module):
    """An autoencoder that averages 2 x 2 pixels."""

    options: dict = {}  # noqa: RUF012
    image_channels, channels, factor = 1, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode(self, x):
        return nn.functional.avg_pool2d(x, 2) * self.scale

    def decode(self, z):
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3) * self.scale


def test_a_model_of_latents_inpaints_and_keeps_the_known_pixels():
    latents = model(codec=Codec(Halved()))
    x = torch.rand(1, 1, 16, 21, generator=torch.Generator().manual_seed(0))
    unknown = torch.zeros(16, 21, dtype=torch.bool)
    unknown[3:8, 4:9] = True
    out = canvas.inpaint_picture(latents, x, unknown, steps=3)
    assert torch.equal(out[0, 0][~unknown], x[0, 0][~unknown])
    assert float((out - x)[0, 0][unknown].abs().min()) > 0
    assert canvas.any_size(vary, latents, x, sigma=0.5).shape == x.shape
    with pytest.raises(UsageError, match="no linear operator"):
        canvas.upscale_picture(latents, x, 2)
    with pytest.raises(UsageError, match="no linear operator"):
        restore(latents, inpaint(unknown), x)
    with pytest.raises(UsageError, match="models of pixels"):
        canvas.inpaint_picture(latents, x, unknown, search=True)


def test_classes_are_none_where_the_model_knows_that_and_else_take_turns():
    y, mask = torch.zeros(1, 1, 8, 8), torch.arange(8).expand(8, 8) < 4
    teacher = fewstep.load("digits-edm", device="cpu")
    free = restore(teacher, inpaint(mask), y, steps=2)
    assert torch.equal(free, restore(teacher, inpaint(mask), y, steps=2, label=10))
    student = fewstep.load("digits-cd", device="cpu")
    with pytest.warns(UsageWarning, match="give the picture's label"):
        turns = restore(student, inpaint(mask), y, steps=1, n=2)
    assert torch.equal(turns, restore(student, inpaint(mask), y, steps=1, n=2, label=[0, 1]))
    assert torch.equal(turns[..., 4:], y[..., 4:].expand(2, 1, 8, 4))


def test_a_search_of_noise_has_a_gradient_through_a_trained_network():
    student = fewstep.load("digits-cd", device="cpu")
    x = fewstep.load("digits-edm", device="cpu").sample(4, label=3, seed=1)
    mask = torch.arange(8).expand(8, 8) < 4
    one, many = (
        optimise(student, inpaint(mask), x, steps=k, label=3, sigma=0.1, rate=r)
        for k, r in ((1, 1e-9), (30, 0.1))
    )

    def misfit(noise_steps: int, rate: float) -> float:
        seen = optimise(
            student, inpaint(torch.ones(8, 8)), x, steps=noise_steps, label=3, rate=rate
        )
        return float((seen - x).square().mean())

    assert torch.equal(one[..., 4:], x[..., 4:])
    assert float((many - x).square().mean()) < float((one - x).square().mean())
    assert misfit(1, 1e-9) == pytest.approx(misfit(30, 0.1))  # nothing known: the prior is kept


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x, m: canvas.inpaint_picture(MODEL, x, m[:5]), "10 x 5 pixels and the picture 10"),
        (lambda x, m: canvas.inpaint_picture(MODEL, x, ~m), "the mask is empty"),
        (lambda x, m: canvas.inpaint_picture(MODEL, x, m), "covers the whole picture"),
        (lambda x, m: canvas.colourise_picture(MODEL, x), "cannot colourise"),
        (lambda x, m: canvas.upscale_picture(MODEL, x, 1), "from 2"),
        (lambda x, m: canvas.any_size(vary, MODEL, x.expand(1, 3, 9, 10)), "of 1 channel"),
        (lambda x, m: canvas.padded(model((2,)), x), "models of images only"),
        (lambda x, m: canvas.binary(torch.tensor([0, 3, 255])), "1 of its pixels are neither"),
    ],
)
def test_pictures_that_cannot_be_edited_are_refused(act, words):
    with pytest.raises(UsageError) as caught:
        act(torch.zeros(1, 1, 9, 10), torch.ones(9, 10, dtype=torch.bool))
    assert words in str(caught.value)
