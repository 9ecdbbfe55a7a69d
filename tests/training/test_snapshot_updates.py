"""Stored averages are counted in updates of the student, which need not be steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from fewstep.model import load
from fewstep.training.posthoc import PowerFunction
from fewstep.training.snapshots import reconstruct
from fewstep.training.train import train
from tiny import build

TRACKED = 0.15


def due(step: int) -> bool:
    """At first always, later seldom: averages forget by the share of what came before."""
    return step < 20 or step % 4 == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    made = build("toy-edm", steps=100, snapshot_every=4, lr=3e-3, save_every=100)
    (phase,) = made.objective.phases()
    made.objective.phases = lambda: [replace(phase, due=due)]
    rules = {"power-0.05": PowerFunction(0.05), "power-0.1": PowerFunction(0.1)}
    train(replace(made, averages={**rules, "tracked": PowerFunction(TRACKED)}), out)
    for file in out.glob("snapshots/*/tracked.safetensors"):
        file.unlink()
    return out


def weights(folder) -> torch.Tensor:
    return torch.cat([v.flatten() for v in load(folder).denoiser.state_dict().values()])


def test_they_say_at_which_update_they_are(run):
    for folder in (run / "snapshots").iterdir():
        step = int(folder.name)
        updates = sum(map(due, range(step)))
        for file in folder.iterdir():
            assert safe_open(file, framework="pt").metadata()["updates"] == str(updates)


def test_another_width_is_made_by_their_updates(run, tmp_path):
    reconstruct(run, TRACKED, tmp_path / "model")
    made, tracked, stored = (
        weights(folder) for folder in (tmp_path / "model", run / "averages" / "tracked", run)
    )
    assert (made - tracked).norm() < 0.05 * (stored - tracked).norm()
