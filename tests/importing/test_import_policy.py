"""Checkpoints of Consistency Policy, against what its own networks answer."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep
from checkpoint_files import TIGHT, compare, official
from fewstep import ImportOptions, UsageError, import_checkpoint
from fewstep.models import grown

WEIGHTS = {"out_model": "model", "out_model_ema": "model_ema", "out_teacher": "teacher"}
TIMES = 3e-5
"""The network reads times up to 1100, whose sines in float32 are that exact."""


@pytest.fixture
def topic(tmp_path):
    return official("policy_ctm", tmp_path)


def imported(topic, weights):
    return import_checkpoint(topic.file(".ckpt"), ImportOptions(weights=weights))


def test_policies(topic, tmp_path, record_property):
    arrays = topic.arrays
    cond = {"observation": arrays["global_cond"]}
    x, time, stop = arrays["x"].transpose(1, 2), arrays["time"], arrays["stop"]

    def values():
        for output, weights in WEIGHTS.items():
            net = imported(topic, weights).model.denoiser.net
            with torch.no_grad():
                out = net(x, time, stop if net.two_time else None, cond)
            yield output, out.transpose(1, 2), TIMES
        codec = imported(topic, "model").model.frontend.codec
        normalised = codec.encode(arrays["action"].transpose(1, 2)).transpose(1, 2)
        yield "action_normalized", normalised, TIGHT
        warm = grown(imported(topic, "teacher").model.denoiser, two_time=True).net
        for theirs, ours in (("down_modules.0.0", "encoder.0"), ("mid_modules.0", "middle")):
            weight = warm.get_parameter(f"{ours}.first.modulate.weight")
            yield f"warm_start.{theirs}.cond_encoder.1.weight", weight.detach(), 0.0
        with torch.no_grad():
            yield "warm_start_out", warm(x, time, stop, cond).transpose(1, 2), TIMES

    compare(topic, values(), record_property)


def test_how_they_are_sampled(topic, tmp_path):
    scheduler = topic.settings["cfg"]["policy"]["noise_scheduler"]
    student = imported(topic, "model_ema").model
    assert (student.contract.sampling.kind, student.contract.sampling.gamma) == ("gamma", 1.0)
    assert student.contract.sampling.start.std == 1.0
    assert student.contract.sampling.start.t == scheduler["time_max"]
    ramp = [scheduler[k] ** (1 / scheduler["rho"]) for k in ("time_max", "time_min")]
    chain = student.contract.sampling.times[3]
    for bin_, level in zip((0, 27, 54), chain, strict=True):
        part = bin_ / (scheduler["bins"] - 1)
        wanted = (ramp[0] + part * (ramp[1] - ramp[0])) ** scheduler["rho"]
        assert math.isclose(level, wanted, rel_tol=1e-9)
    loaded = fewstep.load(student.save(tmp_path / "m"), device="cpu")
    sample = loaded.sample(2, steps=3)
    assert sample.shape == (2, *student.contract.data.shape)
    assert sample.isfinite().all()
    teacher = imported(topic, "teacher").model
    assert teacher.contract.sampling.kind == "ode"
    assert teacher.sample(1, steps=3).isfinite().all()


def test_every_tensor_is_reported(topic):
    found = imported(topic, "model_ema").report
    assert not {*found.used} & {*found.unused}
    assert all(k.startswith(("model_ema.", "normalizer.")) for k in found.used)
    assert any(k.startswith("teacher.") for k in found.unused)


def test_what_is_refused(topic):
    with pytest.raises(UsageError, match="--weights"):
        import_checkpoint(topic.file(".ckpt"))
    with pytest.raises(UsageError, match="leave out --as edm"):
        import_checkpoint(topic.file(".ckpt"), ImportOptions(reading="edm", weights="model"))
