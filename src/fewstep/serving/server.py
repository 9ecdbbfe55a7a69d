"""Running the server: its address, its token, and a clean stop."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import uvicorn

from fewstep.errors import UsageError
from fewstep.serving.app import application
from fewstep.serving.limits import Limits
from fewstep.serving.served import Served

GRACE = 3
"""Seconds that open requests have when the server stops."""


def listening(host: str, port: int) -> socket.socket:
    """A socket at that address.

    Raises:
        UsageError: the port is in use, or the address is none of this machine.
    """
    if not 0 <= port < 65536:
        raise UsageError(f"--port must be in [0, 65535], got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=128)
        # asyncio does so only where a socket's protocol is named; without it, each answer's second
        # part waits 40 ms for the client to acknowledge the first. Connections inherit it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        said = os.strerror(number) if number and number > 0 else str(error)
        raise UsageError(
            f"cannot listen at {host}, port {port}: {said}; choose another --port or --host"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_for(host: str, given: str | None) -> str | None:
    """The token that requests must show; an address that others reach always has one.

    Raises:
        UsageError: the given one could be guessed, or cannot stand in a header.
    """
    if given is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if len(given) < 8 or not given.isascii() or not given.isprintable() or " " in given:
        raise UsageError("--token must be 8 or more letters, digits or signs without spaces")
    return given


def address(sock: socket.socket, token: str | None) -> str:
    """Where a browser finds the page; what follows # never leaves the browser."""
    host, port = sock.getsockname()[:2]
    shown = socket.gethostname() if host in {"0.0.0.0", "::"} else str(host)
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"#token={token}" if token else "")


def serve(
    sock: socket.socket, models: Mapping[str, Served], limits: Limits, token: str | None, host: str
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        sock: that listens.
        models: by name.
        limits: of requests.
        token: that requests must show; None asks for none.
        host: that the server was told to listen at.
    """
    app = application(models, limits, token=token, host=host)
    server = uvicorn.Server(config(app, limits))
    with _quiet_signals():
        server.run(sockets=[sock])
    print("fewstep: the server has stopped", file=sys.stderr)


def config(app: object, limits: Limits) -> uvicorn.Config:
    """How uvicorn runs the application: one process, plain HTTP, no log of requests."""
    return uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        loop="asyncio",
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=8 * limits.requests,
    )


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn stops at these signals, then raises them again for the handlers before its own."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
