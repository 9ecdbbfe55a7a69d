"""--init: a new training that begins with the weights of an earlier one."""

from __future__ import annotations

import pytest
import torch

import fewstep
from fewstep.errors import UsageError
from fewstep.recipes import rebuild, recipe

FEW = {"steps": 2, "batch": 16, "warmup": 0, "sample_every": 0}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "cd"
    fewstep.train(recipe("digits-cd", train=FEW), run)
    return run


def first_weights(**options) -> dict[str, torch.Tensor]:
    return recipe("digits-cd", **options).build().objective.student.net.state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_student_begins_with_the_weights_of_another(student, tmp_path, capsys):
    own = fewstep.load(student).denoiser.net.state_dict()
    assert equal(first_weights(init=str(student), points=12), own)
    assert not equal(first_weights(points=12), own)
    out = tmp_path / "more"
    fewstep.train(recipe("digits-cd", init=str(student), lr=1e-5, train=FEW), out)
    assert f"first weights: {student / 'model'}" in capsys.readouterr().err
    assert rebuild(out).start.init == str(student)
    assert not equal(fewstep.load(out).denoiser.net.state_dict(), own)


def test_the_teacher_of_such_a_student_is_the_teacher(student):
    run = recipe("digits-cd", init=str(student)).build()
    assert equal(
        run.teacher.denoiser.net.state_dict(), fewstep.load("digits-edm").denoiser.net.state_dict()
    )


def test_a_diffusion_model_goes_on_from_another(capsys):
    run = recipe("digits-edm", init="digits-edm").build()
    own = fewstep.load("digits-edm").denoiser.net.state_dict()
    assert equal(run.objective.student.net.state_dict(), own)
    with pytest.raises(UsageError, match="holds another network's weights"):
        recipe("digits-edm", init="digits-edm", width=8).build()


@pytest.mark.parametrize("name", ["digits-ect", "digits-meanflow"])
def test_the_model_of_a_method_begins_the_same_method(name, tmp_path):
    fewstep.train(recipe(name, steps=1, train={**FEW, "steps": 1}), tmp_path / "run")
    student = recipe(name, init=str(tmp_path / "run")).build().objective.student
    assert equal(student.net.state_dict(), fewstep.load(tmp_path / "run").denoiser.net.state_dict())


def test_adapters_do_not_go_with_other_first_weights(student):
    with pytest.raises(UsageError, match="leave one of them out"):
        recipe("digits-cd", init=str(student), lora=2).check()


def test_a_model_that_reads_its_network_otherwise_is_refused(student):
    with pytest.raises(UsageError, match="read in another way than this method reads it"):
        recipe("digits-edm", init=str(student)).build()
    with pytest.raises(UsageError, match="holds another network's weights"):
        recipe("digits-ctm", init=str(student)).build()
    with pytest.raises(UsageError, match=r"no model 'nope'.*name one with --init"):
        recipe("digits-cd", init="nope").check()


def test_settings_of_the_trainer_are_options_too():
    made = recipe("digits-ect", steps=5, lr="1e-3")
    assert (made.train.steps, made.train.lr) == (5, 1e-3)
    assert recipe("digits-ect", train={"steps": "5"}).train.steps == 5
    # What the method has under this name is the method's.
    made = recipe("digits-dmd2", steps=2, train={"steps": 7})
    assert (made.options.steps, made.train.steps) == (2, 7)
    with pytest.raises(UsageError, match="has no option stepps; did you mean 'steps'"):
        recipe("digits-ect", stepps=5)
