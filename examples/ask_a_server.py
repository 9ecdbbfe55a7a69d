"""Pictures over HTTP: `fewstep serve digits-cd`, then `python examples/ask_a_server.py URL`."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from torch import Tensor


def sample(url: str, **asked: object) -> dict:
    """One call is a client: see URL/openapi.json for the fields."""
    answer = httpx.post(f"{url}/api/sample", json={"model": "digits-cd", **asked}, timeout=60)
    if answer.is_error:
        raise SystemExit(answer.json()["error"])
    return answer.json()


@contextmanager
def server() -> Iterator[str]:
    """A server of its own, for those who have not started one."""
    command = [sys.executable, "-m", "fewstep", "serve", "digits-cd", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        try:
            yield line.rpartition(" at ")[2].strip().rstrip("/")
        finally:
            process.send_signal(signal.SIGTERM)


def main(steps: int = 1, out: Path = Path("runs/served"), url: str | None = None) -> Tensor:
    if url is None:
        with server() as own:
            return main(steps, out, own)
    answers = [sample(url, n=64, seed=seed, steps=steps, values=True) for seed in (0, 1)]
    out.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(answers[0]["pictures"]):
        (out / f"{i:02d}.png").write_bytes(base64.b64decode(picture["png"]))
    print(f"{answers[0]['seconds']:.4f} s for 64 samples; wrote them to {out}")
    return torch.tensor([one for answer in answers for one in answer["values"]])


if __name__ == "__main__":
    main(url=sys.argv[1] if sys.argv[1:] else None)
