#!/usr/bin/env bash
# uvicorn 0.54.0 with a listening socket that the caller opened (sockets=[...]): Nagle's algorithm
# stays on for every connection, without a message, and so an answer in two writes can wait for the
# client's delayed acknowledgement (about 40 ms on Linux).
#
# Expected: TCP_NODELAY is set on connections, as it is when uvicorn binds host and port itself.
# Seen: it is set there, and not where the socket comes from socket.create_server. asyncio sets it
# only for sockets whose protocol number is IPPROTO_TCP; create_server leaves the number 0, which
# connections inherit.
# The project sets the option on the listening socket.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q uvicorn==0.54.0
cat > "$work/nagle.py" <<'PY'
import asyncio
import contextlib
import socket
import sys

import uvicorn


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def set_on_connections(sockets):
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=sockets))
    while not server.started:
        await asyncio.sleep(0.01)
    listening = sockets[0] if sockets else server.servers[0].sockets[0]
    _, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
    while not server.server_state.connections:
        await asyncio.sleep(0.01)
    (one,) = server.server_state.connections
    accepted = one.transport.get_extra_info("socket")
    value = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    server.should_exit = True
    await running
    return bool(value)


own = asyncio.run(set_on_connections(None))
given = asyncio.run(set_on_connections([socket.create_server(("127.0.0.1", 0))]))
print(f"TCP_NODELAY on connections: {own} where uvicorn binds, {given} with a socket given")
sys.exit(0 if own and not given else 3)
PY
"$work/venv/bin/python" "$work/nagle.py"
echo "as described"
