"""The protocol and its table: what is measured against what, in which features, of which data."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep import data
from fewstep.core import Batch, UsageError
from fewstep.data import toy
from fewstep.data.catalogue import CATALOGUE
from fewstep.evaluation import METRICS, Protocol, chosen, table
from fewstep.metrics import (
    TanhFeatures,
    density_coverage,
    flatten,
    frechet_distance,
    kid,
    moments_of,
    named_features,
    nearest_distance,
    precision_recall,
    sliced_wasserstein,
)
from fewstep.metrics.cifar_resnet import CifarResNet
from fewstep.recipes.records import own_data
from judges import images, scrambled
from tiny import fewstep, pictures, trained

ALL = ",".join(METRICS)
CPU = torch.device("cpu")


@dataclasses.dataclass
class Drawing:
    """A model that draws what it is given."""

    x: torch.Tensor

    def sample(self, n, **_):
        assert n == len(self.x)
        return self.x


def digits(n, seed):
    return images(n, side=8, channels=1, seed=seed) * 1.1 ** (seed % 2)


@pytest.fixture
def protocol():
    """Noise instead of digits; the training data is as much, so each draw is all of it."""
    return Protocol(Batch(digits(30, 0)), Batch(digits(30, 2)), flatten, draws=1)


def test_each_number_is_its_function_of_the_right_sets(protocol):
    train, held_out, x = protocol.train.x0, protocol.held_out.x0, digits(30, 1)
    net = scrambled(TanhFeatures())
    asked = dataclasses.replace(protocol, features=net, metrics=METRICS)
    with torch.no_grad():
        got, floor = asked.judge(Drawing(x), 1), asked.floor()
        t, h, f = net(train), net(held_out), net(x)
        expected = {
            "fd": frechet_distance(moments_of([x], net), moments_of([held_out], net)),
            "fd_train": frechet_distance(moments_of([x], net), moments_of([train], net)),
            "swd": sliced_wasserstein(x, held_out),
            "swd_train": sliced_wasserstein(x, train),
            "nn": float(nearest_distance(x, train).quantile(0.5))
            / float(nearest_distance(held_out, train).quantile(0.5)),
            "kid": kid(f, h),
            **vars(precision_recall(h, f)),
            **vars(density_coverage(h, f)),
        }
    assert got.pop("images_per_second") > 0
    assert got == pytest.approx(expected)
    assert len(set(expected.values())) == len(expected)
    assert floor == pytest.approx(
        {
            "fd": frechet_distance(moments_of([train], net), moments_of([held_out], net)),
            "swd": sliced_wasserstein(train, held_out),
            "kid": kid(t, h),
            **vars(precision_recall(h, t)),
            **vars(density_coverage(h, t)),
        }
    )


@pytest.mark.parametrize(
    ("metrics", "keys"),
    [
        ("fd,swd,nn", {"fd", "fd_train", "swd", "swd_train", "nn"}),
        ("nn", {"nn"}),
        ("swd", {"swd", "swd_train"}),
        ("fd", {"fd", "fd_train"}),
        ("kid,dc", {"kid", "density", "coverage"}),
        ("pr", {"precision", "recall"}),
    ],
)
def test_only_what_was_asked_for_is_measured(protocol, metrics, keys):
    asked = chosen(protocol, metrics, None, CPU)
    assert set(asked.judge(Drawing(digits(30, 1)), 1)) == keys | {"images_per_second"}
    assert set(asked.floor()) == {k for k in keys if not k.endswith("train") and k != "nn"}


def test_the_usual_metrics():
    kinds = {field.name: field.default for field in dataclasses.fields(Protocol)}
    assert tuple(kinds["metrics"]) == ("fd", "swd", "nn")


def test_networks_see_each_set_once(protocol):
    seen = []

    def counting(x):
        seen.append(len(x))
        return flatten(x)

    asked = dataclasses.replace(protocol, features=counting, metrics=METRICS)
    asked.judge(Drawing(digits(30, 1)), 1)
    # The samples, the held-out and the training data.
    assert seen == [30, 30, 30]
    asked.judge(Drawing(digits(30, 3)), 1)
    assert seen == [30] * 5


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A random ResNet-20 as features, and a cache of its own."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    save_file(scrambled(CifarResNet(20)).state_dict(), tmp_path / "w.safetensors")
    return f"resnet20:{tmp_path}/w.safetensors"


def test_statistics_of_data_are_kept_and_those_of_samples_are_not(judge, tmp_path):
    sets = [images(6, seed=seed) for seed in range(3)]
    base = Protocol(Batch(sets[0]), Batch(sets[1]), flatten, draws=1)
    found = []
    for known in (0, 3):
        asked = chosen(base, "fd", judge, CPU)
        found.append((asked.judge(Drawing(sets[2]), 1)["fd"], asked.floor()["fd"]))
        # Held-out data once; training data for the samples, then for the floor.
        cached, computed = (1, 2) if known == 0 else (3, 0)
        note = f"reference: {cached} cached, {computed} computed, in {tmp_path}/cache/references"
        assert asked.notes()[1] == note
    assert found[0] == found[1]
    net = named_features(judge)
    direct = [moments_of([x], net) for x in sets]
    expected = [frechet_distance(direct[i], direct[1]) for i in (2, 0)]
    assert found[0] == pytest.approx(expected, rel=1e-6)
    assert len(list((tmp_path / "cache" / "references").iterdir())) == 2


def test_cheap_features_are_not_kept(protocol):
    asked = chosen(protocol, ALL, "digits", CPU)
    assert asked.references is None
    assert asked.notes()[0].startswith("fd: FD-digits, of features digits, weights ")
    assert len(asked.notes()) == 2
    assert len(chosen(protocol, ALL, None, CPU).notes()) == 1


# Tables.


def test_further_columns_have_a_table_of_their_own():
    row = {"fd": 0.5, "images_per_second": 100.0, "kid": -0.00012, "recall": 0.25}
    text = table([("1 call", row), ("floor", {"fd": 0.1, "kid": 0.0, "recall": 1.0})], 50)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "fd swd fd train swd train nn images/s speed-up"
    assert lines[1] == "1 call 0.500 - - - - 100 2.0x"
    at = lines.index("kid recall")
    assert lines[at + 1 : at + 3] == ["1 call -0.0001 0.2500", "floor 0.0000 1.0000"]
    plain = table([("1 call", {"fd": 0.5, "images_per_second": 1.0})], 1)
    assert "kid" not in plain
    assert len(plain.splitlines()) == 5


# The run's own data.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run of each kind."""
    root = tmp_path_factory.mktemp("runs")
    own = pictures(root / "images")
    at = {kind: trained(root / kind, kind, data=own, steps=2) for kind in ("toy-edm", "digits-edm")}
    return {**at, "images": own, "edm": trained(root / "edm", "edm", data=own, steps=2)}


def test_own_data(runs, monkeypatch):
    assert own_data("digits-cd").data == "digits"
    assert own_data(str(runs["digits-edm"])).data == "digits"
    assert own_data(str(runs["toy-edm"])).data == "two-modes"
    assert own_data(str(runs["toy-edm"] / "model")).data == "two-modes"
    shutil.copytree(runs["toy-edm"] / "model", runs["toy-edm"] / "averages" / "slow")
    assert own_data(str(runs["toy-edm"] / "averages" / "slow")).data == "two-modes"
    assert own_data(str(runs["edm"])).data == str(runs["images"])
    monkeypatch.chdir(runs["toy-edm"] / "model")
    assert own_data(".").data == "two-modes"


def test_a_model_without_a_run(runs, tmp_path, monkeypatch):
    shutil.copytree(runs["toy-edm"] / "model", tmp_path / "a" / "digits-edm")
    with pytest.raises(UsageError, match="is of no run; say with --data"):
        own_data(str(tmp_path / "a" / "digits-edm"))
    # A folder comes before the bundled model of the same name.
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(UsageError, match="is of no run; say with --data"):
        own_data("digits-edm")


@pytest.mark.parametrize("text", ["{", "[]", '{"run": {}}', '{"run": 3}'])
def test_a_damaged_record(text, runs, tmp_path):
    shutil.copytree(runs["toy-edm"] / "model", tmp_path / "model")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json is damaged .* --data"):
        own_data(str(tmp_path))


def test_evaluate_a_toy_on_its_own_data(runs, capsys, monkeypatch):
    few = dataclasses.replace(CATALOGUE["two-modes"], train=lambda: toy("two-modes", 60))
    monkeypatch.setitem(CATALOGUE, "two-modes", few)
    outcome = fewstep(capsys, "evaluate", runs["toy-edm"], "--steps", 2, "-n", 40)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[1].startswith("3 calls")


def test_evaluate_images_in_features_of_a_network(runs, judge, tmp_path, capsys):
    held_out = pictures(tmp_path / "held-out", 8, seed=1)
    args = ("--held-out", held_out, "--steps", 1, "--metrics", "fd,kid,pr", "--features", judge)
    outcome = fewstep(capsys, "evaluate", runs["edm"], *args)
    # Runs of 16 x 16 pixels are none of CIFAR-10's.
    assert outcome.code == 2
    assert "CIFAR-10 networks take images (b, 3, 32, 32)" in outcome.err


def test_evaluate_digits_by_all_metrics(runs, tmp_path, capsys, monkeypatch):
    held_out = data.digits("held_out").subset(np.arange(0, 597, 10))
    short = dataclasses.replace(CATALOGUE["digits"], held_out=lambda n: held_out)
    monkeypatch.setitem(CATALOGUE, "digits", short)
    monkeypatch.setattr("fewstep.evaluation.named.Protocol", partial(Protocol, draws=1))
    out = tmp_path / "m.json"
    args = ("--steps", 1, "--metrics", ALL, "--features", "digits", "--out", out)
    outcome = fewstep(capsys, "evaluate", runs["digits-edm"], *args)
    assert outcome.code == 0, outcome.err
    told = json.loads(out.read_text())
    assert told["features"]["distance"] == "FD-digits"
    assert len(told["features"]["weights"]) == 64
    assert {"kid", "precision", "recall", "density", "coverage"} <= set(told["floor"])
    text = " ".join(outcome.out.split())
    assert f"{told['model']['1']['coverage']:.4f}" in text
    assert "kid precision recall density coverage 1 call" in text
    assert "fd: FD-digits, of features digits, weights" in text
