"""``fewstep serve``: what it says, what it refuses, and how it stops."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi")

import httpx

from fewstep.errors import UsageError
from fewstep.serving.limits import Limits
from fewstep.serving.served import open_models
from fewstep.serving.server import address, is_loopback, listening, token_for
from serving_here import until
from tiny import fewstep


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_stops_cleanly(capsys, number):
    port, answers = free_port(), []

    def visit() -> None:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 30
        while not answers and time.monotonic() < end:
            try:
                answers.append(httpx.post(f"{url}/api/sample", json={"model": "digits-cd"}))
            except httpx.TransportError:
                time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    visitor = threading.Thread(target=visit)
    visitor.start()
    outcome = fewstep(capsys, "serve", "digits-cd", "--port", port)
    visitor.join()
    assert answers[0].status_code == 200
    assert outcome.code == 0
    assert outcome.out == f"serving digits-cd at http://127.0.0.1:{port}/\n"
    assert outcome.err == "fewstep: the server has stopped\n"
    assert signal.getsignal(number) is before
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("fewstep")])


def test_a_port_in_use_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = fewstep(capsys, "serve", "digits-cd", "--port", port)
    assert outcome.code == 2
    assert outcome.err == (
        f"fewstep: cannot listen at 127.0.0.1, port {port}: Address already in use; "
        "choose another --port or --host\n"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "no model 'nowhere'"),
        (["digits-cd", "--port", "70000"], "--port must be in [0, 65535], got 70000"),
        (["digits-cd", "--host", "203.0.113.7"], "cannot listen at 203.0.113.7"),
        (["digits-cd", "--host", "not a name"], "cannot listen at not a name"),
        (["digits-cd", "--token", "short"], "--token must be 8 or more letters"),
        (["digits-cd", "--limits.queue", "0"], "the limit queue must be at least 1, got 0"),
        ([], "got no model to serve"),
    ],
)
def test_what_cannot_be_served_is_one_message(capsys, args, words):
    if "--port" not in args:
        args = [*args, "--port", "0"]
    outcome = fewstep(capsys, "serve", *args)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("fewstep.cli.serve.find_spec", lambda name: None)
    outcome = fewstep(capsys, "serve", "digits-cd")
    assert outcome.code == 2
    assert "pip install 'fewstep[serve]'" in outcome.err


def test_an_address_of_others_has_a_token():
    assert token_for("127.0.0.1", None) is None
    assert token_for("::1", None) is None
    assert token_for("localhost", None) is None
    made = {token_for("0.0.0.0", None), token_for("192.168.0.2", None), token_for("::", None)}
    assert len(made) == 3
    assert all(len(one) >= 32 for one in made)
    assert token_for("0.0.0.0", "my-own-token") == "my-own-token"
    with pytest.raises(UsageError, match="without spaces"):
        token_for("0.0.0.0", "my own token")
    assert not is_loopback("localhost.evil.example")


def test_the_address_leads_a_browser_to_the_page_with_its_token():
    with listening("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert address(sock, None) == f"http://127.0.0.1:{port}/"
        assert address(sock, "secret-word") == f"http://127.0.0.1:{port}/#token=secret-word"
    with listening("0.0.0.0", 0) as sock:
        assert address(sock, None).startswith(f"http://{socket.gethostname()}:")


def test_the_parts_of_an_answer_are_sent_at_once():
    with listening("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_models_have_names_that_are_no_paths(tmp_path):
    run = tmp_path / "runs" / "mine"
    open_models(["digits-cd"])["digits-cd"].model.save(run / "model", samples=0)
    served = open_models(["digits-cd", str(run), f"{run}/model/", "digits-cd"])
    assert [*served] == ["digits-cd", "mine", "mine-2", "digits-cd-2"]
    assert served["mine"].digest == served["mine-2"].digest != served["digits-cd"].digest
    assert len(served["mine"].digest) == 64


def test_limits_are_at_least_one():
    with pytest.raises(UsageError, match="the limit body must be at least 1, got 0"):
        Limits(body=0)
