"""Conditions on the command line: ``sample`` and ``data pairs``."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

from fewstep.conditions import Label, Sequence, Vector
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start, data_spec
from fewstep.core import UsageError
from fewstep.data import Arrays, Paired, Pairs
from fewstep.model import Model, load
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.pairs import make
from tiny import fewstep

DATA = DataSpec(
    shape=(2,),
    range=None,
    conditions={
        "label": Label(classes=3, names=("cat", "dog", "owl")),
        "obs": Vector(shape=(2,)),
        "text": Sequence(shape=(4,), length=3),
    },
)
ODE = Sampling(start=Start(t=80.0, std=80.0), kind="ode", any_times=True, guidance=Guidance())


def model_of(data: DataSpec, sampling: Sampling = ODE) -> Model:
    network = ResidualMLP((2,), width=8, blocks=1, classes=data.labels)
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return Model(
        Denoiser(network, EDM(sigma_data=0.5)), Contract(method="edm", data=data, sampling=sampling)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_of(DATA).save(tmp_path_factory.mktemp("models") / "m")


def test_sample_reads_conditions(folder, tmp_path, capsys):
    np.savez(tmp_path / "text.npz", tokens=np.ones((2, 2, 4)), mask=np.array([[1, 1], [1, 0]]))
    out = tmp_path / "x.npz"
    command = ("sample", folder, "-n", 2, "--steps", 2, "--out", out)
    given = ("--cond", "obs=1,-2", "--cond", f"text={tmp_path}/text.npz", "--label", "dog")
    assert fewstep(capsys, *command, *given).code == 0
    with np.load(out) as archive:
        found = {**archive}
    assert sorted(found) == ["cond.obs", "cond.text", "cond.text_mask", "label", "x"]
    assert found["label"].tolist() == [1, 1]
    assert found["cond.obs"].tolist() == [[1, -2], [1, -2]]
    assert found["cond.text_mask"].tolist() == [[True, True, False], [True, False, False]]
    wanted = load(folder, device="cpu").sample(2, steps=2, label=1)
    assert found["x"].tolist() == wanted.tolist()
    for same in (("--label", 1), ("--cond", "label=dog"), ("--cond", "label=1")):
        assert fewstep(capsys, *command, *same).code == 0
        with np.load(out) as archive:
            assert archive["x"].tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--label", "cow"), "label has no class 'cow'"),
        (("--label", 7), "label must be in [0, 2], or 3 for none; got 7"),
        (("--cond", "abs=1"), "unknown condition 'abs'; did you mean 'obs'?"),
        (("--cond", "obs"), "--cond must look like NAME=VALUE, got 'obs'"),
        (("--cond", "obs=1"), "obs must have the shape (2)"),
        (("--cond", "obs=1,nan"), "obs holds NaN"),
        (("--cond", "obs=no.npy"), "no.npy cannot be read"),
        (("--cond", "obs=1,2", "--cond", "obs=1,2"), "gives obs twice"),
        (("--cond", "label=1", "--label", 1), "gives label twice"),
        (("--lengths", 3), "leave out lengths"),
    ],
)
def test_what_sample_refuses(folder, tmp_path, capsys, given, message):
    outcome = fewstep(capsys, "sample", folder, "-n", 2, "--out", tmp_path / "x.npz", *given)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_models_without_names_or_conditions(tmp_path, capsys):
    bare = model_of(data_spec((2,), 0, False)).save(tmp_path / "bare")
    numbered = model_of(data_spec((2,), 3, False)).save(tmp_path / "numbered")
    for model, given, message in (
        (bare, ("--cond", "obs=1"), "this model has no conditions, got 'obs'"),
        (bare, ("--label", "0"), "this model has no labels, got label=0"),
        (numbered, ("--label", "cat"), "the classes of label have no names"),
    ):
        outcome = fewstep(capsys, "sample", model, "-n", 2, "--out", tmp_path / "x.npz", *given)
        assert outcome.code == 2
        assert message in outcome.err


def test_lengths(tmp_path, capsys, monkeypatch):
    seen = []
    data = data_spec((2, None), 0, False)
    model = model_of(data_spec((2,), 0, False))
    model.contract = model.contract.model_copy(update={"data": data})

    def sample(self, n, **given):
        seen.append(given["lengths"])
        return torch.ones(n, 2, 5)

    monkeypatch.setattr(Model, "sample", sample)
    monkeypatch.setattr("fewstep.model.load", lambda *args, **kwargs: model)
    monkeypatch.setattr("fewstep.model.find", lambda *args, **kwargs: "m")
    for out in ("x.npz", "x.png"):
        command = ("sample", "m", "-n", 2, "--out", tmp_path / out, "--lengths", "5,3")
        assert fewstep(capsys, *command).code == 0
    assert seen == [[5, 3], [5, 3]]
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["mask"].tolist() == [[[1] * 5], [[1, 1, 1, 0, 0]]]
    with Picture.open(tmp_path / "x.png") as image:
        assert image.size[1] == 64


# Pairs.


def test_pairs_have_their_conditions(folder, tmp_path, capsys):
    out = tmp_path / "pairs"
    command = ("data", "pairs", folder, "-n", 5, "--out", out, "--steps", 3, "--shard-size", 2)
    given = ("--cond", "obs=1,2", "--label", "owl")
    assert fewstep(capsys, *command, *given).code == 0
    pairs = Pairs(out, verify=True)
    assert (len(pairs), pairs.about.label) == (5, 2)
    assert pairs.spec == DataSpec(
        shape=(2,), range=None, conditions={**DATA.conditions, "label": Label(classes=3)}
    )
    batch = pairs.batch([4, 0])
    assert batch.cond["obs"].tolist() == [[1, 2], [1, 2]]
    assert batch.cond["label"].tolist() == [2, 2]
    assert not batch.cond["text_mask"].any()
    assert batch.aux["pair_cond_obs"].equal(batch.cond["obs"])
    model = load(folder, device="cpu")
    wanted = model.sample(5, steps=3, label=2, cond={"obs": [1, 2]})
    torch.testing.assert_close(batch.x0, wanted[[4, 0]], rtol=0, atol=1e-5)
    assert fewstep(capsys, *command, *given).code == 0  # nothing is left to do
    outcome = fewstep(capsys, *command, "--cond", "obs=1,3", "--label", "owl")
    assert outcome.code == 2
    assert "given: was" in outcome.err
    with pytest.raises(UsageError, match="depend on obs, text"):
        Paired(Arrays(np.zeros((3, 2))), pairs)


def test_each_pair_may_have_its_own_condition(tmp_path):
    rows = np.arange(10.0).reshape(5, 2)
    found = make(model_of(DATA), tmp_path / "p", 5, steps=2, shard_size=3, cond={"obs": rows}).pairs
    assert found is not None
    assert found.batch(range(5)).cond["obs"].tolist() == rows.tolist()
    with pytest.raises(UsageError, match="obs must have"):
        make(model_of(DATA), tmp_path / "q", 4, steps=2, cond={"obs": rows})


def test_pairs_of_labels_alone_are_recorded_as_before(tmp_path):
    found = make(model_of(data_spec((2,), 3, False)), tmp_path / "p", 4, steps=2).pairs
    assert found is not None
    assert {"conditions", "given"}.isdisjoint(found.about.settings())
    record = json.loads((tmp_path / "p" / "pairs.json").read_text())
    old = {key: value for key, value in record.items() if key not in {"conditions", "given"}}
    (tmp_path / "p" / "pairs.json").write_text(json.dumps(old))
    assert len(Pairs(tmp_path / "p", verify=True)) == 4
