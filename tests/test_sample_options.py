"""What the command line is told to sample with is what samples are made with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.evaluation import chosen, named_protocol
from fewstep.model import Model, load
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from small_nets import shaken
from tiny import fewstep


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A model of labelled digits, jumps with noise between them, which allows everything."""
    net = shaken(ResidualMLP((1, 8, 8), width=16, blocks=1, classes=10), 0)
    sampling = Sampling(
        start=Start(t=80.0, std=80.0),
        kind="gamma",
        gamma=0.5,
        any_times=True,
        times={1: (80.0,), 2: (80.0, 0.6)},
        guidance=Guidance(max=5.0),
    )
    data = DataSpec(shape=(1, 8, 8), labels=10, range=(-1.0, 1.0))
    model = Model(
        Denoiser(net, EDM(sigma_data=0.5)), Contract(method="ctm", data=data, sampling=sampling)
    )
    return model.save(tmp_path_factory.mktemp("digits") / "model")


# What is given, as the command line's words and as arguments; the first is what the others change.
COMMON = ["-n", 5, "--steps", 2], {"n": 5, "steps": 2}
OPTIONS = {
    "gamma": (["--gamma", 0.9], {"gamma": 0.9}),
    "no noise": (["--gamma", 0], {"gamma": 0.0}),
    "guidance": (["--guidance", 3], {"guidance": 3.0}),
    "label": (["--label", 7], {"label": 7}),
    "seed": (["--seed", 4], {"seed": 4}),
    "seeds": (["--seeds", "9,2,4,4,7"], {"seeds": [9, 2, 4, 4, 7]}),
    "steps": (["--steps", 3], {"steps": 3}),
    "times": (["--times", "80,3"], {"times": [80.0, 3.0]}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_sample_passes_on_what_it_is_told(name, digits, tmp_path, capsys):
    words, arguments = OPTIONS[name]
    out = tmp_path / "x.npz"
    done = fewstep(capsys, "sample", digits, *COMMON[0], *words, "--device", "cpu", "--out", out)
    assert done.code == 0, done.err
    with np.load(out) as arrays:
        found = arrays["x"]
    model = load(digits, device="cpu")
    np.testing.assert_allclose(found, model.sample(**(COMMON[1] | arguments)), atol=1e-6)
    assert np.abs(found - model.sample(**COMMON[1]).numpy()).max() > 1e-3


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_evaluate_judges_guided_samples(guidance, digits, tmp_path, capsys):
    words = ["--guidance", guidance] if guidance else []
    given = ["--data", "digits", "--metrics", "swd", "--steps", "1", "--device", "cpu"]
    done = fewstep(capsys, "evaluate", digits, *given, *words, "--out", tmp_path / "m.json")
    assert done.code == 0, done.err
    (calls, row), *rest = json.loads((tmp_path / "m.json").read_text())["model"].items()
    assert not rest
    assert calls == ("2" if guidance else "1")
    model = load(digits, device="cpu")
    protocol = chosen(
        named_protocol("digits", None, model.contract.data, 2000), "swd", None, model.device
    )
    for other in (None, 3.0):
        same = row["swd"] == pytest.approx(protocol.judge(model, 1, other)["swd"], rel=1e-6)
        assert same == (other == guidance)
