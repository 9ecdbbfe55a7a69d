"""The API of ``fewstep serve``: what it says of models, and what it answers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fewstep.image_grid import pixels as pixels_of
from fewstep.model import load
from serving_here import encoded, file, kinds, made, opened, pixels, running


@pytest.fixture(scope="module")
def client():
    with running(kinds()) as client:
        yield client


def sampled(client, model, **given):
    answer = client.post("/api/sample", json={"model": model, **given})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_models_are_described_by_their_contracts(client):
    answer = client.get("/api/models").json()
    models = {one["name"]: one for one in answer["models"]}
    cd, edm = models["digits-cd"], models["digits-edm"]
    assert cd["shape"] == [1, 8, 8]
    assert cd["times"] == {"1": [80.0], "2": [80.0, 2.0]}
    assert cd["steps"] == 1
    assert cd["solvers"] == []
    assert edm["solvers"][0] == "heun"
    assert edm["steps"] == 18
    assert edm["guidance"]["embedded"] is False
    label = cd["conditions"][0]
    assert (label["name"], label["kind"], label["classes"]) == ("label", "label", 10)
    assert models["policy"]["conditions"][0]["shape"] == [3]
    assert (
        models["speech"]["conditions"][0] | {"kind": "mask", "length": 50}
        == (models["speech"]["conditions"][0])
    )
    assert models["larger"]["conditions"][0]["shape"] == [3, 8, 8]
    assert not models["volume"]["drawable"]
    assert answer["limits"]["samples"] == 64


def test_samples_are_those_of_the_model(client):
    answer = sampled(client, "digits-cd", n=3, seed=5, first=2, label=7)
    x = load("digits-cd").sample(3, seed=5, first=2, label=7)
    for one, picture in zip(pixels_of(x)[:, 0], answer["pictures"], strict=True):
        assert np.array_equal(pixels(picture["png"]), one)
    assert answer["calls"] == 1
    assert answer["seconds"] > 0
    assert answer["values"] is None


def test_a_picture_says_what_made_it_and_can_be_made_again(client):
    answer = sampled(client, "digits-edm", n=4, seed=3, steps=4, guidance=1.5, solver="euler")
    picture = answer["pictures"][2]
    facts = made(picture["png"])
    assert facts == picture["made"]
    assert facts["model"] == "digits-edm"
    assert facts["digest"] == "0" * 64
    assert facts["calls"] == 8
    assert facts["index"] == 2
    assert facts["label"] == 2
    assert facts["times"] == load("digits-edm").times(4)
    names = ("model", "steps", "seed", "label", "guidance", "solver")
    again = sampled(client, first=facts["index"], **{name: facts[name] for name in names})
    assert np.array_equal(pixels(again["pictures"][0]["png"]), pixels(picture["png"]))


def test_a_class_among_the_conditions_is_the_class_of_the_picture(client):
    answer = sampled(client, "digits-cd", n=2, cond={"label": 6})
    wanted = sampled(client, "digits-cd", n=2, label=6)
    for one, other in zip(answer["pictures"], wanted["pictures"], strict=True):
        assert np.array_equal(pixels(one["png"]), pixels(other["png"]))
        assert one["made"]["cond.label"] == 6
        assert "label" not in one["made"]


def test_an_answer_has_a_limit_of_numbers(client):
    body = {"model": "speech", "length": 2**20, "n": 2}
    assert client.post("/api/sample", json={**body, "values": True}).status_code == 422


def test_one_picture_of_all_samples(client):
    body = {"model": "digits-cd", "n": 4, "format": "png"}
    answer = client.post("/api/sample", json=body)
    assert answer.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(answer.content))
    assert image.width > 2 * 48
    assert '"seed": 0' in image.info["fewstep"]


@pytest.mark.parametrize(
    ("model", "given", "sizes"),
    [
        ("policy", {"cond": {"state": [0.5, 1, 2]}, "n": 2}, 2),
        ("points", {"n": 64}, 1),
        ("speech", {"length": 30, "n": 2}, 2),
        ("larger", {"n": 2}, 2),
        ("volume", {"n": 2}, 0),
    ],
)
def test_every_kind_of_sample_has_an_answer(client, model, given, sizes):
    answer = sampled(client, model, **given, values=model == "speech")
    assert len(answer["pictures"]) == sizes
    for picture in answer["pictures"]:
        opened(picture["png"])
    if model == "volume":
        assert np.shape(answer["values"]) == (2, 1, 4, 4, 4)
    if model == "speech":
        assert np.shape(answer["values"]) == (2, 1, 30)


def test_a_picture_is_a_condition(client, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "serving_here.Waiting.forward", lambda self, x, t, s, cond: seen.append(cond) or x
    )
    red = encoded(file(Image.new("RGB", (40, 20), (255, 0, 0)), "JPEG"))
    sampled(client, "larger", cond={"low": f"data:image/jpeg;base64,{red}"})
    low = seen[-1]["low"]
    assert low.shape == (1, 3, 8, 8)
    assert torch.allclose(low[0, :, 3, 3], torch.tensor([1.0, -1, -1]), atol=0.05)


def test_more_steps_than_are_meant_are_remarked(client):
    assert "re-noising" in sampled(client, "digits-cd", steps=9)["notes"][0]
    assert sampled(client, "digits-cd", steps=2)["notes"] == []


def test_the_api_describes_itself(client):
    api = client.get("/openapi.json").json()
    assert api["info"]["title"] == "fewstep"
    fields = api["components"]["schemas"]["SampleAsked"]["properties"]
    assert {"model", "steps", "seed", "n", "label", "prompt", "guidance", "gamma"} <= {*fields}
    assert "429" in api["paths"]["/api/sample"]["post"]["responses"]


def test_the_page_needs_no_other_server(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    names = ["style.css", "main.js", "sample.js", "board.js"]
    texts = [page.text, *(client.get(f"/page/{name}").text for name in names)]
    assert not [text for text in texts if "http://" in text or "https://" in text]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert client.get("/docs").status_code == 404
