"""``fewstep serve``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Annotated, Literal

import tyro

from fewstep.errors import UsageError
from fewstep.option_kinds import Text
from fewstep.serving.limits import Limits


def serve(
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL ...")],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: Text = None,
    engine: Literal["eager", "compile", "onnx", "openvino"] = "eager",
    device: Text = None,
    limits: Limits = Limits(),
) -> None:
    """Serve a page and an HTTP API of one or several models, without any outside network.

    Args:
        models: model folders, run folders, bundled names or hub:OWNER/NAME[@REVISION].
        host: the address to listen at; only this machine reaches the default one.
        port: the port to listen at; 0 takes a free one.
        token: a secret that every request to the API must show. Where other machines can reach the
            address, one is made and printed unless you give one.
        engine: what runs the networks; see fewstep sample --help.
        device: where to run; an accelerator if there is one.
        limits: what one request may cost.
    """
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UsageError(f"serving needs {' and '.join(missing)}: pip install 'fewstep[serve]'")

    from fewstep.serving import server

    secret = server.token_for(host, token)
    with server.listening(host, port) as sock:
        from fewstep.serving.served import open_models

        opened = open_models(models, engine=engine, device=device)
        print(f"serving {', '.join(opened)} at {server.address(sock, secret)}", flush=True)
        if secret is not None:
            print("the address holds the token; give it to nobody else", file=sys.stderr)
        server.serve(sock, opened, limits, secret, host)
