"""What may come in: an ASGI layer before the application."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from fewstep.serving.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
DRAINED = 8
"""How many times too large a request may be and still be read to its end."""

OPEN = ("/", "/page/")
"""What needs no token: the page itself, which holds nothing of the models."""


class Gate:
    """Checks host, origin, token and size of each request, and reads its body whole.

    Args:
        app: the application behind it.
        limits: of the server.
        token: that each request to the API must show; None asks for none.
        host: that the server was told to listen at.
    """

    def __init__(self, app: App, limits: Limits, token: str | None, host: str) -> None:
        self.app, self.limits, self.token = app, limits, token
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self.open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.patience):
                    await self._body(scope, receive, keep=False)
            await refuse(guarded, *refusal)
        elif self.open >= self.limits.requests:
            more = {"retry-after": "1"}
            await refuse(guarded, 503, "the server has too many open requests", more)
        else:
            self.open += 1
            try:
                await self._answer(scope, receive, guarded)
            finally:
                self.open -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.limits.patience):
                body = await self._body(scope, receive)
        except TimeoutError:
            await refuse(send, 408, f"the request took more than {self.limits.patience} s to come")
            return
        if body is None:
            await refuse(send, 413, f"a request may have at most {self.limits.body} MiB")
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    async def _body(self, scope: Message, receive: Receive, keep: bool = True) -> bytes | None:
        """The whole body; None if it has more than it may.

        What is too much is read and forgotten, up to ``DRAINED`` times the limit: a client that is
        cut off while it sends would not see the answer.
        """
        most, parts, size = self.limits.body * 2**20, [], 0
        length = _header(scope, b"content-length")
        if length.isdigit() and (len(length) > 18 or int(length) > DRAINED * most):
            return None
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size <= most and keep:
                parts.append(part)
            elif size > DRAINED * most:
                return None
            else:
                parts.clear()
            if not message.get("more_body", False):
                return b"".join(parts) if size <= most else None

    def _refusal(self, scope: Message) -> tuple[int, str, dict[str, str]] | None:
        """Status and sentence for a request that may not come in."""
        host = _header(scope, b"host")
        if not self._known(host):
            return 421, "this server does not go by the name that the request calls it", {}
        origin = _header(scope, b"origin")
        if origin and origin.partition("://")[2] != host:
            return 403, "requests from pages of other servers are refused", {}
        path = scope["path"]
        public = path == OPEN[0] or path.startswith(OPEN[1])
        if self.token is not None and not public and not self._shown(scope):
            words = "this needs the server's token, as the header Authorization: Bearer TOKEN"
            return 401, words, {"www-authenticate": "Bearer"}
        if scope["method"] == "POST":
            kind = _header(scope, b"content-type").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "the request must have the content type application/json", {}
        return None

    def _known(self, host: str) -> bool:
        """Whether a Host header is an address or a name of this machine.

        A page that is made to resolve to this machine (DNS rebinding) still sends its own name.
        """
        name = host.rsplit(":", 1)[0] if ":" in host.rpartition("]")[2] else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower().rstrip(".") in self.names
        return True

    def _shown(self, scope: Message) -> bool:
        scheme, _, given = _header(scope, b"authorization").partition(" ")
        wanted = (self.token or "").encode()
        return hmac.compare_digest(given.strip().encode(), wanted) and scheme.lower() == "bearer"


def _header(scope: Message, name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


async def refuse(
    send: Send, status: int, sentence: str, more: dict[str, str] | None = None
) -> None:
    """Answer with one plain sentence."""
    body = json.dumps({"error": sentence}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    # What is left of the request is not read, so the connection cannot be used again.
    headers |= {"connection": "close", **(more or {})}
    start: Message = {"type": "http.response.start", "status": status}
    start["headers"] = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})
