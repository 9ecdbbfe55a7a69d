"""One thread computes: its queue, clients that leave, and computations that take too long."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest

pytest.importorskip("fastapi")

from fewstep.serving.limits import Limits
from fewstep.serving.served import Served
from serving_here import Client, Waiting, running, until, waiting


class Held:
    """A server of one model that waits, and what a test does with it."""

    def __init__(self, client: Client, denoiser: Waiting) -> None:
        self.client, self.denoiser = client, denoiser
        self.answers: list[httpx.Response] = []
        self.threads: list[threading.Thread] = []

    def ask(self, **given: object) -> None:
        """Ask in a thread."""

        def post() -> None:
            body = {"model": "slow", **given}
            answer = httpx.post(f"{self.client.base_url}/api/sample", json=body, timeout=60)
            self.answers.append(answer)

        self.threads.append(threading.Thread(target=post))
        self.threads[-1].start()

    def leave(self, steps: int) -> socket.socket:
        """A connection that has asked for a sample, and can be closed."""
        return self.client.leave("/api/sample", {"model": "slow", "steps": steps})

    def open(self, count: int) -> None:
        """Wait until so many requests are open."""
        until(lambda: self.client.gate.open == count)


@pytest.fixture
def held(request: pytest.FixtureRequest):
    limits = getattr(request, "param", Limits(queue=2))
    model = waiting()
    denoiser = model.denoiser
    with running({"slow": Served("slow", model, "0")}, limits) as client:
        until(lambda: denoiser.count == 1)  # the sample that warms up
        denoiser.count = 0
        denoiser.go.clear()
        case = Held(client, denoiser)
        try:
            yield case
        finally:
            denoiser.go.set()
            for thread in case.threads:
                thread.join(30)


def test_a_full_queue_is_answered_with_429_and_when_to_come_again(held):
    held.ask()
    until(lambda: held.denoiser.count == 1)
    held.ask(seed=1)
    held.ask(seed=2)
    held.open(3)
    refused = held.client.post("/api/sample", json={"model": "slow"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "try again in" in refused.json()["error"]
    # A slow request does not block the page.
    assert held.client.get("/", timeout=30).status_code == 200
    assert held.client.get("/api/models", timeout=30).status_code == 200
    held.denoiser.go.set()
    until(lambda: len(held.answers) == 3)
    assert [answer.status_code for answer in held.answers] == [200] * 3
    assert sorted(answer.json()["ahead"] for answer in held.answers) == [0, 1, 2]
    assert held.client.post("/api/sample", json={"model": "slow"}).status_code == 200


def test_a_client_that_leaves_stops_the_computation(held):
    connection = held.leave(steps=50)
    until(lambda: held.denoiser.count == 1)
    connection.close()
    held.open(0)
    held.denoiser.go.set()
    answer = held.client.post("/api/sample", json={"model": "slow", "steps": 2})
    assert answer.status_code == 200
    assert held.denoiser.count == 1 + 2


def test_a_client_that_leaves_the_queue_is_never_computed(held):
    first = held.leave(steps=3)
    until(lambda: held.denoiser.count == 1)
    second = held.leave(steps=40)
    held.open(2)
    second.close()
    held.open(1)
    held.denoiser.go.set()
    assert held.client.post("/api/sample", json={"model": "slow"}).status_code == 200
    assert held.denoiser.count == 3 + 1
    first.close()


@pytest.mark.parametrize("held", [Limits(seconds=1)], indirect=True)
def test_a_computation_has_a_limit_of_time(held):
    held.ask(steps=50)
    until(lambda: held.denoiser.count == 1)
    threading.Event().wait(1.1)
    held.denoiser.go.set()
    until(lambda: held.answers)
    assert held.answers[0].status_code == 503
    assert "more than 1 s" in held.answers[0].json()["error"]
    assert int(held.answers[0].headers["retry-after"]) >= 1
    assert held.denoiser.count == 1


def test_a_failing_network_is_not_described_to_clients(held, monkeypatch):
    def broken(*given: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Waiting, "forward", broken)
    answer = held.client.post("/api/sample", json={"model": "slow"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed at this; its terminal says why"}

    def full(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Waiting, "forward", full)
    assert held.client.post("/api/sample", json={"model": "slow"}).status_code == 503
