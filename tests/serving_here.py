"""A server in this process, and models for it whose network calls are counted and can wait."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from torch import Tensor

from fewstep.conditions import Image as ImageCondition
from fewstep.conditions import Mask, Vector
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.model import Model, load
from fewstep.models import AbstractDenoiser
from fewstep.paths import VarianceExploding
from fewstep.serving.app import application
from fewstep.serving.limits import Limits
from fewstep.serving.served import Served
from fewstep.serving.server import config, listening


class Waiting(AbstractDenoiser):
    """Answers zeros, counts its calls, and holds each of them until it may go on."""

    def __init__(self, *keys: str) -> None:
        super().__init__()
        self.path, self.cond_keys, self.two_time = VarianceExploding(), keys, False
        self.count, self.go = 0, threading.Event()
        self.go.set()

    def forward(self, x: Tensor, t: Tensor, s: Any = None, cond: Any = None) -> Tensor:
        self.count += 1
        assert self.go.wait(30)
        return 0 * x


def waiting(shape: tuple[int | None, ...] = (1, 8, 8), **conditions: Any) -> Model:
    """A consistency model of any number of steps."""
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", any_times=True)
    data = DataSpec(shape=shape, conditions=conditions)
    return Model(Waiting(*data.keys), Contract(method="cd", data=data, sampling=sampling))


def kinds() -> dict[str, Served]:
    """Models of several kinds of samples and conditions."""
    low, state = ImageCondition(shape=(3, 8, 8)), Vector(shape=(3,))
    models = {
        "digits-cd": load("digits-cd"),
        "digits-edm": load("digits-edm"),
        "slow": waiting(),
        "policy": waiting((2, 16), state=state),
        "points": waiting((2,)),
        "speech": waiting((1, None), mask=Mask(length=50)),
        "larger": waiting((3, 16, 16), low=low),
        "volume": waiting((1, 4, 4, 4)),
    }
    return {name: Served(name, model, "0" * 64) for name, model in models.items()}


class Client(httpx.Client):
    """A client that knows the server's gate, as only a test can."""

    gate: Any

    def leave(self, path: str, body: dict[str, Any]) -> socket.socket:
        """A connection that has asked something, and can be closed."""
        content = json.dumps(body)
        connection = socket.create_connection((self.base_url.host, self.base_url.port or 80))
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{content}".encode())
        return connection


@contextmanager
def running(
    models: Mapping[str, Served],
    limits: Limits | None = None,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
) -> Iterator[Client]:
    """A client of a server in a thread of its own, at a free port."""
    limits = limits or Limits()
    with listening("127.0.0.1", 0) as sock:
        app = application(models, limits, token=token, host=host)
        server = uvicorn.Server(config(app, limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        until(lambda: server.started)
        try:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with Client(base_url=url, timeout=60, trust_env=False) as client:
                client.gate = app
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def opened(png: str) -> Image.Image:
    """A picture of an answer."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    image.load()
    return image


def pixels(png: str) -> np.ndarray:
    return np.asarray(opened(png))


def made(png: str) -> dict[str, Any]:
    """What a picture's file says of how it was made."""
    return json.loads(opened(png).info["fewstep"])


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
