"""Power-function averages are stored on the way, and any other width is made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewstep.errors import UsageError
from fewstep.model import load
from fewstep.training.posthoc import PowerFunction
from fewstep.training.snapshots import reconstruct
from fewstep.training.train import train
from tiny import build, fewstep

TRACKED = 0.15


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two stored widths, and a third that was tracked too."""
    out = tmp_path_factory.mktemp("run") / "run"
    made = build("toy-edm", steps=60, snapshot_every=4, lr=3e-3, save_every=60)
    rules = {"power-0.05": PowerFunction(0.05), "power-0.1": PowerFunction(0.1)}
    train(replace(made, averages={**rules, "tracked": PowerFunction(TRACKED)}), out)
    # What is stored of the third must not help.
    for file in out.glob("snapshots/*/tracked.safetensors"):
        file.unlink()
    return out


def weights(folder) -> torch.Tensor:
    return torch.cat([v.flatten() for v in load(folder).denoiser.state_dict().values()])


def test_a_width_that_was_never_stored(run, tmp_path):
    assert reconstruct(run, TRACKED, tmp_path / "model") == 2 * 15
    made = weights(tmp_path / "model")
    tracked, stored = weights(run / "averages" / "tracked"), weights(run / "model")
    assert (made - tracked).norm() < 0.02 * (stored - tracked).norm()


def test_a_stored_width_is_itself(run, tmp_path):
    reconstruct(run, 0.05, tmp_path / "model")
    torch.testing.assert_close(weights(tmp_path / "model"), weights(run / "model"))


def test_an_earlier_end(run, tmp_path, capsys):
    done = fewstep(capsys, "average", run, "--std", 0.1, "--step", 40, "--out", tmp_path / "m")
    assert done.code == 0
    assert "of 20 snapshots" in done.out
    assert not torch.equal(weights(tmp_path / "m"), weights(run / "averages" / "power-0.1"))


@pytest.mark.parametrize(
    ("std", "step", "says"),
    [(0.1, 41, "no snapshots at step 41"), (0.3, None, "relative width between 0 and 0.2887")],
)
def test_what_cannot_be_had(std, step, says, run, tmp_path):
    with pytest.raises(UsageError, match=says):
        reconstruct(run, std, tmp_path / "model", step)
    assert not (tmp_path / "model").exists()


def test_a_run_without_any(tmp_path, capsys):
    done = fewstep(capsys, "average", tmp_path, "--std", 0.1, "--out", tmp_path / "m")
    assert done.code == 2
    assert "has no snapshots; a run stores them with --average-widths and --train" in done.err
    assert "none" not in done.err
