"""A teacher with --log-time-scale 250 has students that diffusers' scheduler can feed."""

from __future__ import annotations

import json

import pytest

import fewstep as library
from fewstep import UsageError, recipe
from fewstep.models import EDM, ConsistencyBoundary, Denoiser
from tiny import pictures, settings

ADM = {"network": "adm", "channels": 128, "multipliers": (1,), "blocks": 1, "attention": ()}


def trained(name, out, **options):
    made = recipe(name, resolution=16, **options, train=settings(steps=1, batch=2))
    return library.train(made, out)


def test_such_a_student_is_exported_to_diffusers(tmp_path):
    data = str(pictures(tmp_path / "images"))
    teacher = trained("edm", tmp_path / "edm", data=data, log_time_scale=250.0, **ADM)
    assert isinstance(teacher.denoiser, Denoiser)
    assert isinstance(teacher.denoiser.preconditioning, EDM)
    assert teacher.denoiser.preconditioning.time_scale == 250.0
    own = {"data": data, "teacher": str(tmp_path / "edm"), "distance": "l2"}
    student = trained("cd", tmp_path / "cd", **own)
    assert isinstance(student.denoiser.preconditioning, ConsistencyBoundary)
    assert student.denoiser.preconditioning.time_scale == 250.0
    folder = tmp_path / "diffusers"
    library.export(student, "diffusers", folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "CMStochasticIterativeScheduler"
    with pytest.raises(UsageError, match="--log-time-scale 1 contradicts the teacher"):
        recipe("cd", resolution=16, **own, log_time_scale=1.0).build()


def test_the_default_is_edm_s(tmp_path):
    data = str(pictures(tmp_path / "images"))
    teacher = trained("edm", tmp_path / "edm", data=data, **ADM)
    assert teacher.denoiser.preconditioning.time_scale == 0.25
    own = {"data": data, "teacher": str(tmp_path / "edm"), "distance": "l2"}
    with pytest.raises(UsageError, match=r"0\.25 ln\(sigma\)"):
        library.export(trained("cd", tmp_path / "cd", **own), "diffusers", tmp_path / "d")
    with pytest.raises(UsageError, match="--log-time-scale must be above 0"):
        recipe("edm", log_time_scale=-1.0)
