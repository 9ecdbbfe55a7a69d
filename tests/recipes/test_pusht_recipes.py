"""Policies from command to actions: every recipe of Push-T trains, and is a policy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fewstep
from fewstep.cli import main
from fewstep.control import Policy
from fewstep.core import Batch
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets.unet1d import UNet1d
from fewstep.objectives.ctm import ConsistencyTrajectory
from fewstep.recipes import recipe
from made_demonstrations import made_pusht

TRAIN = ["--train.steps", "2", "--train.batch", "4", "--train.warmup", "0"]
STUDENTS = ("pusht-cd", "pusht-ctm", "pusht-meanflow", "pusht-dmd")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    root = tmp_path_factory.mktemp("pusht")
    made_pusht(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(root))
        out = root / "teacher"
        words = ["train", "pusht-edm", *TRAIN, "--widths", "8", "16", "--out", str(out)]
        main(words)
        yield out


def test_the_teacher_is_the_published_kind_of_network(teacher):
    model = fewstep.load(teacher, device="cpu")
    net = model.denoiser.get_submodule("net")
    assert isinstance(net, UNet1d)
    assert net.joined
    assert model.contract.sampling.guidance is None
    chunks = model.sample(2, steps=2, cond={"observation": np.zeros((2, 6))})
    # In the demonstrations' units, from 10 to 500.
    assert chunks.shape == (2, 2, 16)
    assert 9 < chunks.min() <= chunks.max() < 501


@pytest.mark.parametrize("name", STUDENTS)
def test_students(teacher, name, tmp_path):
    main(["train", name, *TRAIN, "--teacher", str(teacher), "--out", str(tmp_path / "run")])
    policy = Policy(fewstep.load(tmp_path / "run", device="cpu"))
    assert policy.calls == 1
    action = policy.select_action(np.zeros(6))
    assert action.shape == (2,)
    assert np.isfinite(action).all()


def test_consistency_policy_s_contract(teacher, tmp_path):
    main(["train", "pusht-ctm", *TRAIN, "--teacher", str(teacher), "--out", str(tmp_path / "run")])
    sampling = json.loads((tmp_path / "run/model/config.json").read_text())["sampling"]
    assert sampling["start"] == {"t": 80.0, "std": 1.0}
    assert sampling["times"] == {"1": [80.0], "3": [80.0, 12.0, 0.885]}
    assert (sampling["kind"], sampling["gamma"]) == ("gamma", 1.0)


def test_the_denoising_term_regresses_the_jump():
    """With a network whose jump and whose estimate differ, by hand."""
    torch.manual_seed(0)
    net = UNet1d((1, 4), widths=(8,), embedding=8, two_time=True).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    student = Denoiser(net, ConsistencyBoundary(sigma_data=0.5))
    path = student.path
    grid = torch.tensor([path.t_max, 1.0, path.t_min], dtype=torch.float64)
    options = {"grid": grid, "solver_steps": 1, "times": lambda b, rng: torch.full((b,), 2.0)}
    options["weight"] = torch.ones_like
    ctm = ConsistencyTrajectory(student, **options, jumps=True, balanced=False)
    batch = Batch(torch.randn(3, 1, 4).double())
    draws = ctm.draw(batch, 0, fewstep.core.Rng(0, 0, "student", 0))
    loss = ctm.loss(batch, draws)
    noisy = path.perturb(batch.x0, draws.noise_denoising, draws.t_denoising)
    ends = torch.full_like(draws.t_denoising, path.t_min)
    jump = student.jump(noisy, draws.t_denoising, ends)
    wanted = ((jump - batch.x0) ** 2).mean()
    torch.testing.assert_close(loss.terms["denoising"], wanted)
    plain = ConsistencyTrajectory(student, **options, balanced=False).loss(batch, draws)
    assert not torch.isclose(plain.terms["denoising"], wanted)
    torch.testing.assert_close(plain.terms["consistency"], loss.terms["consistency"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start-std", "0"], "needs a deviation above 0, got 0"),
        (["--chain", "1.0", "12.0"], "must descend from below 80"),
        (["--chain", "90.0"], "must descend from below 80"),
    ],
)
def test_samples_that_cannot_start(teacher, words, message, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["train", "pusht-ctm", *words, "--teacher", str(teacher), "--out", str(out)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_settings():
    ctm = recipe("pusht-ctm")
    assert ctm.options.own_times()
    assert ctm.start.condition_drop == 0
    assert ctm.start.teacher == "runs/pusht-edm"
    assert recipe("pusht-edm").network.joined
