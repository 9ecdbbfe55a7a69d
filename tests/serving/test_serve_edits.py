"""Edits and interpolations over the API."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fewstep import editing
from fewstep.engines import EngineDenoiser
from fewstep.image_grid import pixels as pixels_of
from fewstep.model import Model, load
from fewstep.serving.limits import Limits
from fewstep.serving.served import Served
from serving_here import encoded, file, kinds, made, pixels, running, until, waiting


@pytest.fixture(scope="module")
def client():
    with running(kinds(), Limits(pixels=64, samples=16)) as client:
        yield client


@pytest.fixture(scope="module")
def digit() -> np.ndarray:
    return pixels_of(load("digits-cd").sample(1, seed=3, label=8))[0, 0]


def png(values: np.ndarray) -> str:
    return encoded(file(Image.fromarray(values)))


def posted(client, verb, **given):
    answer = client.post(f"/api/{verb}", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def as_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.copy())[None, None].float() / 127.5 - 1


def test_inpainting_keeps_what_is_known_and_is_that_of_the_library(client, digit):
    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    asked = {"model": "digits-cd", "task": "inpaint", "image": png(digit), "mask": png(mask)}
    answer = posted(client, "edit", **asked, n=2, seed=5, label=8, steps=6)
    unknown, y = torch.from_numpy(mask > 0), as_tensor(digit)
    own = editing.restore(
        load("digits-cd"), editing.inpaint(unknown), y, n=2, seed=5, label=8, steps=6
    )
    for picture, wanted in zip(answer["pictures"], pixels_of(own)[:, 0], strict=True):
        assert np.array_equal(pixels(picture["png"]), wanted)
        # 127.5 x + 128 gives back the pixels that x came from, or one more.
        known = pixels(picture["png"])[:4].astype(int) - digit[:4]
        assert known.min() >= 0
        assert known.max() <= 1
    facts = made(answer["pictures"][1]["png"])
    assert (facts["verb"], facts["index"], facts["steps"], facts["calls"]) == ("inpaint", 1, 6, 6)
    assert answer["calls"] == 6
    assert facts["times"] == pytest.approx(load("digits-cd").times(6))


@pytest.mark.parametrize(
    ("task", "given", "size"),
    [
        ("strokes", {}, (8, 8)),
        ("vary", {"sigma": 2.0}, (8, 8)),
        ("denoise", {"sigma": 0.5}, (8, 8)),
        ("denoise", {}, (8, 8)),
        ("upscale", {"factor": 2, "steps": 3}, (16, 16)),
        ("deblur", {"width": 0.7, "steps": 3}, (8, 8)),
        ("vary", {"image": png(np.zeros((4, 11), np.uint8))}, (4, 11)),
    ],
)
@pytest.mark.parametrize("model", ["digits-cd", "digits-edm"])
def test_every_task_answers_with_pictures(client, digit, model, task, given, size):
    asked = {"model": model, "task": task, "image": png(digit), "label": 8}
    answer = posted(client, "edit", **{**asked, **given})
    assert pixels(answer["pictures"][0]["png"]).shape == size
    assert answer["calls"] >= 1


def test_a_search_of_the_noise_keeps_what_is_known(client, digit):
    mask = png(np.tri(8, dtype=np.uint8) * 255)
    asked = {"task": "inpaint", "image": png(digit), "mask": mask, "label": 8, "search": True}
    answer = posted(client, "edit", model="digits-cd", **asked, steps=4)
    known = np.tri(8) == 0
    assert np.abs(pixels(answer["pictures"][0]["png"]).astype(int) - digit)[known].max() <= 1
    assert answer["pictures"][0]["made"]["search"] is True
    body = {"model": "digits-edm", **asked}
    assert "its noise cannot be searched" in client.post("/api/edit", json=body).json()["error"]


def test_an_engine_without_gradients_is_not_searched(digit):
    plain = waiting()
    engine = EngineDenoiser(plain.denoiser, lambda arrays: 0 * arrays["x"])
    served = Served("graph", Model(engine, plain.contract), "0", engine="onnx")
    body = {"model": "graph", "task": "upscale", "factor": 2, "image": png(digit), "steps": 2}
    with running({"graph": served}) as client:
        searched = {k: v for k, v in body.items() if k != "factor"} | {"task": "deblur", "width": 1}
        answer = client.post("/api/edit", json={**searched, "search": True})
        assert answer.status_code == 422
        assert "engine has no gradient" in answer.json()["error"]
        answer = client.post("/api/edit", json={**body, "search": True})
        assert answer.status_code == 422
        assert "search needs a picture of the model's size" in answer.json()["error"]
        assert client.post("/api/edit", json=body).status_code == 200


def test_a_thin_picture_counts_as_large_as_it_becomes(client):
    body = {"model": "larger", "task": "vary"}
    for sides in ((60_000, 1), (1, 60_000)):
        thin = file(Image.new("L", sides), "PNG")
        answer = client.post("/api/edit", json={**body, "image": encoded(thin)})
        assert answer.status_code == 422
        assert "results of this size have more than" in answer.json()["error"]


def test_larger_pictures_and_colour(client):
    photo = file(Image.effect_noise((24, 20), 80).convert("RGB"), "JPEG")
    asked = {"model": "larger", "task": "colourise", "image": encoded(photo), "steps": 2}
    answer = posted(client, "edit", **asked)
    assert pixels(answer["pictures"][0]["png"]).shape == (20, 24, 3)


def test_uploads_are_turned_upright(client, monkeypatch):
    seen = []
    original = editing.strokes
    monkeypatch.setattr(
        editing, "strokes", lambda model, y, **k: seen.append(y) or original(model, y, **k)
    )
    image = Image.new("L", (16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path := io.BytesIO(), "JPEG", exif=exif)
    asked = {"model": "digits-cd", "task": "strokes", "image": encoded(path.getvalue()), "label": 1}
    posted(client, "edit", **asked)
    assert seen[0].shape == (1, 1, 16, 8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "colourise"}, "this model cannot colourise; it can do: inpaint, strokes"),
        ({"task": "inpaint"}, "inpaint needs the field mask"),
        ({"task": "upscale"}, "upscale needs the field factor"),
        ({"task": "vary", "factor": 2}, "vary has no factor; leave it out"),
        ({"task": "denoise", "steps": 3}, "denoise makes one call; leave out steps"),
        ({"task": "paint"}, "task: input should be 'inpaint'"),
        ({"task": "vary", "image": "/etc/passwd"}, "the image is no base64"),
        (
            {"task": "vary", "image": encoded(b"GIF89a")},
            "the image is broken, empty or of a kind",
        ),
        ({"task": "vary", "n": 17}, "at most 16 samples"),
        ({"task": "upscale", "factor": 16, "n": 16}, "results of this size have more than"),
        ({"task": "inpaint", "mask": png(np.zeros((8, 8), np.uint8))}, "missing"),
        ({"task": "inpaint", "mask": png(np.zeros((4, 8), np.uint8))}, "8 x 4"),
        ({"task": "vary", "search": True}, "vary has no search; leave it out"),
        ({"task": "vary", "image": png(np.zeros((300, 300), np.uint8))}, "at most 64,000"),
        ({"task": "vary", "sigma": 1e9}, "the noise level must be above 0"),
    ],
)
def test_a_wrong_edit_is_told_why(client, digit, given, words):
    body = {"model": "digits-cd", "image": png(digit), **given}
    answer = client.post("/api/edit", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_models_of_other_samples_cannot_edit(client, digit):
    for model in ("points", "policy", "volume"):
        body = {"model": model, "task": "vary", "image": png(digit)}
        answer = client.post("/api/edit", json=body)
        assert answer.status_code == 422
        assert "it can do: no edits" in answer.json()["error"]
    answer = client.post("/api/interpolate", json={"model": "points", "seeds": [0, 1]})
    assert answer.status_code == 422


def test_interpolation_begins_and_ends_at_its_seeds(client):
    asked = {"model": "digits-cd", "seeds": [3, 9], "frames": 5, "label": 2}
    answer = posted(client, "interpolate", **asked)
    assert [one["made"]["fraction"] for one in answer["pictures"]] == [0, 0.25, 0.5, 0.75, 1]
    ends = pixels_of(load("digits-cd").sample(seeds=[3, 9], label=2))[:, 0]
    for picture, wanted in zip(answer["pictures"][::4], ends, strict=True):
        assert np.array_equal(pixels(picture["png"]), wanted)
    assert answer["calls"] == 1
    body = {"model": "digits-cd", "seeds": [3, 9], "frames": 17}
    assert client.post("/api/interpolate", json=body).status_code == 422
    assert client.post("/api/interpolate", json={**body, "seeds": [3]}).status_code == 422


@pytest.mark.parametrize("verb", ["edit", "interpolate"])
def test_a_client_that_leaves_stops_an_edit(verb, digit):
    model = waiting()
    with running({"slow": Served("slow", model, "0")}) as client:
        denoiser = model.denoiser
        until(lambda: denoiser.count == 1)
        denoiser.go.clear()
        body: dict = {"model": "slow", "steps": 30}
        if verb == "edit":
            body |= {"image": png(digit), "task": "upscale", "factor": 2}
        else:
            body |= {"seeds": [0, 1]}
        connection = client.leave(f"/api/{verb}", body)
        until(lambda: denoiser.count == 2)
        connection.close()
        until(lambda: client.gate.open == 0)
        denoiser.go.set()
        assert client.post("/api/sample", json={"model": "slow"}).status_code == 200
        assert denoiser.count == 3
