"""What ``fewstep serve`` refuses: names, origins, sizes, fields, and 200 malformed requests."""

from __future__ import annotations

import json
import random
import socket
import string
import struct
import zlib

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fewstep.serving.limits import Limits
from serving_here import encoded, file, kinds, running, until

SMALL = Limits(body=1, pixels=16, samples=8, steps=10, patience=3)


@pytest.fixture(scope="module")
def client():
    with running(kinds(), SMALL) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("192.168.1.5:7860", 200),
        ("evil.example", 421),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
def test_only_own_names_are_answered(client, host, status):
    """A page whose name is made to lead here (DNS rebinding) still sends its name as Host."""
    answer = client.get("/api/models", headers={"host": host})
    assert answer.status_code == status, answer.text


def test_pages_of_other_servers_are_refused(client):
    body = json.dumps({"model": "digits-cd"})
    kind = {"content-type": "application/json"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        answer = client.post("/api/sample", content=body, headers={**kind, "origin": origin})
        assert answer.status_code == 403
    own = {**kind, "origin": str(client.base_url).rstrip("/")}
    assert client.post("/api/sample", content=body, headers=own).status_code == 200
    # A form of another page can send these kinds without asking first.
    for other in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/api/sample", content=body, headers={"content-type": other})
        assert answer.status_code == 415


def test_a_token_is_asked_for(client):
    with running(kinds(), token="a-long-token") as guarded:
        for given in (
            "",
            "Bearer",
            "Bearer a-long-toke",
            "Basic a-long-token",
            "Bearer A-LONG-TOKEN",
        ):
            headers = {"authorization": given}
            for path in ("/api/models", "/openapi.json"):
                answer = guarded.get(path, headers=headers)
                assert answer.status_code == 401
                assert "a-long" not in answer.text
        shown = {"authorization": "Bearer a-long-token"}
        assert guarded.get("/api/models", headers=shown).status_code == 200
        assert guarded.get("/").status_code == 200
        assert guarded.get("/page/api.js").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "digits-cd", "n": 9}, "at most 8 samples, got 9"),
        ({"model": "digits-cd", "n": 0}, "n: input should be greater than or equal to 1"),
        ({"model": "digits-cd", "steps": 11}, "at most 10 steps, got 11"),
        ({"model": "larger", "n": 8, "steps": 1, "extra": 1}, "unknown field 'extra'"),
        ({"model": "speech", "length": 10**7}, "ask for fewer"),
        ({"model": "digits-cd", "n": True}, "n: input should be a valid integer"),
        ({"model": "digits-cd", "seed": -1}, "seed: input should be greater"),
        ({"model": "digits-cd", "seed": 2**60}, "seed: input should be less"),
        ({"model": "digits-cd", "label": 11}, "label must be in [0, 9], or 10 for none"),
        ({"model": "digits-cd", "prompt": "a cat"}, "this model reads no texts"),
        ({"model": "digits-cd", "solver": "heun"}, "no ODE to solve"),
        ({"model": "digits-edm", "guidance": 99.0}, "guidance must be in [0.0, 20.0]"),
        ({"model": "policy", "cond": {"state": [1.0]}}, "must have the shape (3)"),
        ({"model": "policy", "cond": {"state": "/etc/passwd"}}, "must be numbers"),
        ({"model": "policy", "cond": {"state": {"a": 1}}}, "must be a number, a text, or a list"),
        ({"model": "larger", "cond": {"low": "/etc/passwd.npy"}}, "is no base64"),
        ({"model": "volume", "format": "png"}, "no picture; ask for the format json"),
        ({}, "lacks the field 'model'"),
    ],
)
def test_a_wrong_request_is_told_why(client, body, words):
    answer = client.post("/api/sample", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_an_unknown_model_and_an_unknown_place(client):
    answer = client.post("/api/sample", json={"model": "digits-ce"})
    assert (answer.status_code, answer.json()["error"][:50]) == (
        404,
        "no model of this name; did you mean 'digits-cd'? k",
    )
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/etc/passwd"):
        assert client.get(path).status_code == 404, path
    assert client.get("/api/sample").status_code == 405


def test_large_and_slow_bodies_are_refused(client):
    large = json.dumps({"model": "digits-cd", "prompt": "x" * 2**20})
    kind = {"content-type": "application/json"}
    assert client.post("/api/sample", content=large, headers=kind).status_code == 413
    parts = [large[i : i + 2**16].encode() for i in range(0, len(large), 2**16)]
    answer = client.post("/api/sample", content=iter(parts), headers=kind)
    assert answer.status_code == 413
    with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
        head = "POST /api/sample HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        slow.sendall((head + "Content-Type: application/json\r\n\r\n{").encode())
        slow.settimeout(30)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def bad_images() -> list[bytes]:
    good = file(Image.effect_noise((60, 60), 60).convert("RGB"))
    jpeg = file(Image.effect_noise((60, 60), 60).convert("RGB"), "JPEG")
    size = b"IHDR" + struct.pack(">II", 30_000, 30_000) + good[24:29]
    bomb = good[:12] + size + struct.pack(">I", zlib.crc32(size)) + good[33:]
    return [
        *(good[:end] for end in (0, 8, 20, 40, 100, len(good) // 2, len(good) - 20)),
        *(good[:i] + b"\0\xff\x13" + good[i + 3 :] for i in range(8, 120, 9)),
        *(jpeg[:end] for end in (2, 30, 200)),
        bomb,
        file(Image.new("RGB", (200, 200))),
        file(Image.new("RGB", (20, 20)), "GIF"),
        file(Image.new("F", (20, 20)), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        b"/etc/passwd",
    ]


def malformed() -> list[bytes]:
    """More than 200 bodies, none of which is a proper request."""
    rng = random.Random(0)
    proper = json.dumps({"model": "digits-cd", "n": 2, "seed": 1, "label": 3, "cond": {}})
    wrong = [None, True, -1, 1.5, 10**400, "x", "\0", "../../etc/passwd", [], {}, [[[]]], "é" * 400]
    fields = ["model", "n", "seed", "first", "label", "prompt", "guidance", "steps", "cond"]
    bodies: list[bytes] = [
        json.dumps({"model": "digits-cd", field: value, "x": 0}).encode()
        for field in fields
        for value in wrong
    ]
    bodies += [
        json.dumps({"model": "larger", "cond": {"low": encoded(content)}}).encode()
        for content in bad_images()
    ]
    good = encoded(file(Image.new("L", (8, 8))))
    edit = {"model": "digits-cd", "task": "inpaint", "image": good, "mask": good}
    bodies += [
        json.dumps({**edit, field: encoded(content)}).encode()
        for content in bad_images()
        for field in ("image", "mask")
    ]
    bodies += [
        json.dumps({**edit, field: value}).encode()
        for field in ("task", "image", "mask", "factor", "width", "sigma")
        for value in wrong[1:]
    ]
    bodies += [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"model":' * 2000,
        b'{"model": "digits-cd", "guidance": NaN}',
        b'{"model": "digits-cd", "guidance": Infinity}',
        b'{"model": "digits-cd", "guidance": 1e999}',
        b'{"model": "policy", "cond": {"state": [1e999, 0, 0]}}',
        b'{"model": "policy", "cond": {"state": [NaN, 0, 0]}}',
        b'{"model": "policy", "cond": {"state": ' + b"[" * 500 + b"]" * 500 + b"}}",
    ]
    while len(bodies) < 200:
        cut = rng.randrange(1, len(proper) - 1)
        noise = "".join(rng.choices(string.printable, k=3))
        bodies.append((proper[:cut] + noise + proper[cut + 1 :] + "}").encode())
    return bodies


def test_hundreds_of_malformed_requests_are_refused_in_a_sentence(client):
    bodies, kind = malformed(), {"content-type": "application/json"}
    assert len(bodies) >= 200
    read = 0
    for body in bodies:
        verb = "edit" if b'"task"' in body else "sample"
        answer = client.post(f"/api/{verb}", content=body, headers=kind)
        if answer.status_code == 200 and b'"low"' in body:
            read += 1  # what is damaged of this picture does not matter to its decoder
            continue
        assert 400 <= answer.status_code < 500, (body[:200], answer.status_code, answer.text)
        sentence = answer.json()["error"]
        assert 5 < len(sentence) < 700, sentence
        for leak in ("/src/", "site-packages", "Traceback", ".py", "/tmp", "/work", "/usr"):
            assert leak not in sentence
    assert read < 5
    assert client.post("/api/sample", json={"model": "digits-cd"}).status_code == 200


def test_what_is_no_http_is_refused(client):
    for line in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"A" * 70_000 + b"\r\n\r\n"):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.settimeout(10)
            try:
                raw.sendall(line)
                assert raw.recv(100)[:12] in (b"HTTP/1.1 400", b"")
            except ConnectionError:
                pass
    assert client.get("/api/models").status_code == 200


def test_too_many_open_requests_are_refused():
    served = kinds()
    gate = served["slow"].model.denoiser.go
    with running(served, Limits(requests=2, queue=8)) as client:
        until(lambda: served["slow"].model.denoiser.count)
        gate.clear()
        host = (client.base_url.host, client.base_url.port)
        head = "POST /api/sample HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n"
        text = (head + 'Content-Type: application/json\r\n\r\n{"model": "slow"}').encode()
        with socket.create_connection(host) as one, socket.create_connection(host) as two:
            one.sendall(text)
            two.sendall(text)
            answers = []
            until(lambda: answers.append(client.get("/")) or answers[-1].status_code == 503)
            assert answers[-1].headers["retry-after"] == "1"
            assert "too many open requests" in answers[-1].json()["error"]
            gate.set()
