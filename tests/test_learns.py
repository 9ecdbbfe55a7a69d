"""The methods learn: one-call samples of a two-mode mixture have its moments and its modes."""

from pathlib import Path

import pytest
import torch

import fewstep
from fewstep.data.toys import two_modes
from fewstep.recipes import recipe

N = 4000


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    fewstep.train(recipe("toy-edm"), out)
    return out


def check(model: fewstep.Model, steps: int, moment: float, share: float, inside: float) -> None:
    """Mean and covariance within ``moment``, both modes' shares within ``share`` of the truth."""
    mixture = two_modes()
    x = model.sample(N, steps=steps, seed=7).double()
    mean, cov = mixture.moments()
    print(steps, "mean", x.mean(0).tolist(), "cov", torch.cov(x.T).tolist(), end=" ")
    assert (x.mean(0) - mean).abs().max() < moment
    assert (torch.cov(x.T) - cov).abs().max() < moment
    centres = torch.as_tensor(mixture.means, dtype=torch.float64)
    weights = torch.as_tensor(mixture.weights, dtype=torch.float64)
    distance = torch.cdist(x, centres)
    shares = torch.bincount(distance.argmin(1), minlength=len(centres)) / N
    near = (distance.min(1).values < 3 * float(max(mixture.stds))).double().mean()
    print("shares", shares.tolist(), "within 3 std of a mode", float(near))
    assert (shares - weights / weights.sum()).abs().max() < share
    assert near > inside


@pytest.mark.slow
def test_teacher_has_the_moments_and_modes(teacher):
    check(fewstep.load(teacher), 18, moment=0.05, share=0.03, inside=0.95)


@pytest.mark.slow
def test_distilled_student_has_the_moments_and_modes(teacher, tmp_path):
    model = fewstep.train(recipe("toy-cd", teacher=str(teacher)), tmp_path / "cd")
    for steps in (1, 2):
        check(model, steps, moment=0.05, share=0.03, inside=0.95)


@pytest.mark.slow
def test_student_trained_alone_has_the_moments_and_modes(tmp_path):
    model = fewstep.train(recipe("toy-ct"), tmp_path / "ct")
    for steps in (1, 2):
        check(model, steps, moment=0.05, share=0.03, inside=0.9)
