"""32 clients for a minute on loopback: only answers, 429 and 503, and memory that stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi")

CLIENTS = 32
SECONDS = float(os.environ.get("FEWSTEP_LOAD_SECONDS", "60"))


def resident(process: subprocess.Popen) -> float:
    """MiB of memory that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def client(url: str, seed: int, end: float, seen: list[tuple[int, float, int, float]]) -> None:
    """Ask for one sample after another; each answer's status, seconds, place and model seconds."""
    with httpx.Client(base_url=url, timeout=60) as session:
        while time.monotonic() < end:
            began = time.monotonic()
            body = {"model": "digits-cd", "seed": seed}
            answer = session.post("/api/sample", json=body)
            took, seed = time.monotonic() - began, seed + CLIENTS
            if answer.status_code == 200:
                facts = answer.json()
                seen.append((200, took, facts["ahead"], facts["seconds"]))
            else:
                seen.append((answer.status_code, took, 0, 0.0))
                assert answer.json()["error"]
                time.sleep(
                    min(float(answer.headers["retry-after"]), max(0, end - time.monotonic()))
                )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_many_clients_get_answers_or_are_told_to_wait(capsys):
    command = [sys.executable, "-m", "fewstep", "serve", "digits-cd", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().rpartition(" at ")[2].strip()
        alone: list[tuple[int, float, int, float]] = []
        client(url, 0, time.monotonic() + 3, alone)
        before, seen, end = resident(process), [], time.monotonic() + SECONDS
        threads = [
            threading.Thread(target=client, args=(url, i, end, seen)) for i in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = resident(process) - before
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    statuses = {status: sum(one[0] == status for one in seen) for status, *_ in seen}
    answered = [one for one in seen if one[0] == 200]
    bare = median(one[3] for one in answered)
    ratios = [took / (bare * (ahead + 1)) for _, took, ahead, _ in answered]
    p95 = float(np.percentile([one[1] for one in answered], 95))
    with capsys.disabled():
        print(
            f"\nalone: {1000 * median(one[1] for one in alone):.1f} ms, of which model "
            f"{1000 * median(one[3] for one in alone):.1f} ms; {CLIENTS} clients, {SECONDS:g} s: "
            f"statuses {statuses}, p95 {1000 * p95:.0f} ms, model {1000 * bare:.1f} ms, "
            f"p95 over model time and place {np.percentile(ratios, 95):.2f}, "
            f"memory {before:.0f} MiB, grown by {grown:.0f} MiB"
        )
    assert {*statuses} <= {200, 429, 503}
    assert statuses[200] > 10 * SECONDS / 2
    assert grown < 100
    assert p95 < 5
