"""Training on any condition, with default pictures, and on samples of several lengths."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.conditions import Label, Mask, Vector
from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.data import Arrays, Stored, digits, spec_of, write_arrays
from fewstep.evaluation import METRICS, Protocol
from fewstep.evaluation.search import distance_to
from fewstep.metrics import flatten, named_features
from fewstep.model import load
from fewstep.models import EDM, Denoiser
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.objectives.shared.weights import karras_weight
from fewstep.times import LogNormal
from fewstep.training import drawing
from fewstep.training import train as training
from fewstep.training.conditions import check_conditions, picture_conditions
from fewstep.training.config import Run, TrainConfig
from fewstep.training.train import train
from tiny import tree

RNG = np.random.default_rng(0)


class Reader(nn.Module):
    """A network of all conditions whose answer at each position sees real positions only."""

    two_time = False

    def __init__(self, channels: int, *widths: tuple[str, int]) -> None:
        super().__init__()
        self.cond_keys = tuple(key for key, _ in widths)
        self.read = nn.ModuleDict({k: nn.Linear(w, channels) for k, w in widths if k != "mask"})
        self.mix = nn.Linear(2 * channels + 1, channels)

    def forward(self, x, c_noise, s_noise=None, cond=None):
        flat = x.unsqueeze(-1) if x.ndim == 2 else x
        mask = (cond or {}).get("mask", torch.ones_like(flat[:, :1]))
        flat = flat * mask
        mean = flat.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        for key, layer in self.read.items():
            mean = mean + layer(cond[key].to(x.dtype).reshape(len(x), -1)).unsqueeze(-1)
        time = c_noise.to(x.dtype).reshape(-1, 1, 1)
        seen = torch.cat([flat, mean.expand_as(flat), time.expand_as(flat[:, :1])], 1)
        return torch.tanh(self.mix(seen.transpose(1, 2))).transpose(1, 2).reshape(x.shape)


def run(data, network: nn.Module, drop: bool = True, **changed) -> Run:
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    objective = Denoising(
        Denoiser(network, EDM(sigma_data=0.5)),
        times=LogNormal(-1.2, 1.2),
        weight=karras_weight(0.5),
        drop=ConditionDrop(0.2, spec_of(data).nulls) if drop else None,
    )
    config = {"steps": 4, "batch": 8, "log_every": 1, "lr": 1e-3, "device": "cpu", **changed}
    return Run(
        recipe="own",
        arguments={},
        objective=objective,
        data=data,
        config=TrainConfig(**config),
        averages={"ema": lambda step: 0.9},
    )


def actions() -> Arrays:
    """Action chunks that depend on an observation."""
    obs = RNG.standard_normal((32, 3)).astype(np.float32)
    x = np.tanh(obs[:, :2, None] * np.linspace(0, 1, 6)) + 0.1 * RNG.standard_normal((32, 2, 6))
    return Arrays(x.astype(np.float32), conditions={"obs": obs})


def speech() -> Arrays:
    """Waves of several lengths, with garbage behind their ends."""
    lengths = RNG.integers(2, 9, 32)
    x = RNG.standard_normal((32, 1, 8)).astype(np.float32)
    return Arrays(x, [i % 2 for i in range(32)], mask=lengths)


def test_a_vector_trains_with_default_pictures(tmp_path):
    data = actions()
    model = train(run(data, Reader(2, ("obs", 3)), sample_every=2), tmp_path / "run")
    assert model.contract.data == data.spec
    names = {p.name for p in (tmp_path / "run" / "samples").iterdir()}
    steps = ("000000000", "000000002", "000000004")
    assert names == {f"{step}{kind}.png" for step in steps for kind in ("", "-online")}
    own = Reader(2, ("obs", 3))
    again = load(tmp_path / "run", network=own, device="cpu")
    one, other = (again.sample(2, cond={"obs": value}) for value in ([1, 1, 1], [0, 0, 0]))
    assert again.sample(2).equal(other)  # the null, where nobody says
    assert not one.equal(other)
    assert not again.sample(2, cond={"obs": [1, 1, 1]}, guidance=3.0).equal(one)


def test_pictures_are_of_the_data_s_conditions(tmp_path, monkeypatch):
    data, seen = actions(), []
    made = training.Model.sample

    def sample(self, n, **given):
        seen.append((n, given))
        return made(self, n, **given)

    monkeypatch.setattr(training.Model, "sample", sample)
    train(run(data, Reader(2, ("obs", 3)), sample_every=4), tmp_path / "run")
    at_first, later = seen[:2], seen[2:6]
    assert [n for n, _ in at_first] == [16, 16]  # the average and the student itself
    assert sum(n for n, _ in later) == 64
    wanted = data.batch([i % 32 for i in range(64)]).cond["obs"]
    assert torch.cat([given["cond"]["obs"] for _, given in later]).equal(wanted)
    assert [given["first"] for _, given in later] == [0, 16, 32, 48]


def test_a_signal_is_seen_while_pictures_are_drawn(monkeypatch):
    a_run, caught, sizes = run(actions(), Reader(2, ("obs", 3))), [], []
    model = training.Model(a_run.objective.student, training.contract(a_run))
    made = training.Model.sample

    def sample(self, n, **given):
        sizes.append(n)
        if len(sizes) == 2:
            caught.append(15)
        return made(self, n, **given)

    monkeypatch.setattr(training.Model, "sample", sample)
    cond = picture_conditions(a_run.data, 64)
    assert drawing.drawn(model, 64, None, cond, caught) is None
    assert sizes == [16, 16]


def test_labels_alone_take_turns():
    assert picture_conditions(digits("train"), 5) == {}
    data = Arrays(RNG.standard_normal((3, 2)), [2, 1, 0], conditions={"obs": np.eye(3)})
    found = picture_conditions(data, 4)
    assert found["label"].tolist() == [2, 1, 0, 2]
    assert found["obs"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


# Several lengths.


def test_several_lengths_train_resume_and_are_sampled(tmp_path):
    def speaker(**changed) -> Run:
        network = Reader(1, ("label", 1), ("mask", 1))
        return run(speech_data, network, sample_every=3, save_every=3, **changed)

    speech_data = speech()
    whole = train(speaker(steps=6), tmp_path / "whole")
    train(speaker(steps=3), tmp_path / "parts")
    parts = train(speaker(steps=6), tmp_path / "parts")
    for key, value in whole.denoiser.state_dict().items():
        assert value.equal(parts.denoiser.state_dict()[key])
    one, other = (tree(tmp_path / name / "samples") for name in ("whole", "parts"))
    assert {*one} == {f"{s:09d}{k}.png" for s in (0, 3, 6) for k in ("", "-online")}
    assert one["000000006.png"] == other["000000006.png"]

    found = load(tmp_path / "whole", network=Reader(1, ("label", 1), ("mask", 1)), device="cpu")
    assert found.contract.data.shape == (1, None)
    x = found.sample(3, lengths=[2, 7, 4], steps=3)
    assert x.shape == (3, 1, 7)
    assert [int((row != 0).sum()) for row in x] == [2, 7, 4]
    alone = found.sample(1, first=2, lengths=4, steps=3)
    torch.testing.assert_close(alone[0], x[2, :, :4], rtol=0, atol=1e-6)
    assert found.sample(2, steps=2).shape[-1] == speech_data.spec.conditions["mask"].length


def test_padding_does_not_reach_the_loss():
    data = speech()
    batch = data.batch(range(8))
    assert batch.x0.masked_select(batch.mask == 0).abs().max() == 0
    other = Batch(batch.x0 + 5 * (1 - batch.mask), batch.cond, batch.mask)
    objective = run(data, Reader(1, ("label", 1), ("mask", 1))).objective
    (phase,) = objective.phases()
    draws = phase.draw(batch, 0, Rng(0, 0, "student"))
    losses = [float(phase.loss(one, draws).total().detach()) for one in (batch, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)


def test_it_trains_from_a_file(tmp_path):
    write_arrays(
        tmp_path / "d.safetensors",
        RNG.standard_normal((32, 2, 6)),
        conditions={"obs": RNG.standard_normal((32, 3))},
    )
    data = Stored(tmp_path / "d.safetensors")
    model = train(run(data, Reader(2, ("obs", 3)), workers=1), tmp_path / "run")
    assert model.contract.data.conditions == {"obs": Vector(shape=(3,))}
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["data"]["conditions"] == {"obs": {"kind": "vector", "shape": [3]}}


# What is refused before the first step.


class Own:
    """A user's data set."""

    shape, labels, image = (2, 4), 0, False

    def __init__(self, cond=None, mask=None, spec: DataSpec | None = None, shape=(2, 4)) -> None:
        self.cond, self.mask, self.x0 = cond or {}, mask, torch.zeros(8, *shape)
        if spec is not None:
            self.spec = spec

    def __len__(self) -> int:
        return 8

    def batch(self, indices):
        index = torch.as_tensor(np.asarray(indices))
        mask = None if self.mask is None else self.mask[index]
        return Batch(self.x0[index], {k: v[index] for k, v in self.cond.items()}, mask)


def spec(**conditions) -> DataSpec:
    return DataSpec(shape=(2, 4), range=None, conditions=conditions)


OBS = {"obs": torch.ones(8, 3)}


@pytest.mark.parametrize(
    ("data", "reads", "message"),
    [
        (Own(), ["obs"], r"the student reads the condition\(s\) \['obs'\].*holds none"),
        (Own(OBS), ["label"], r"holds \['obs'\]"),
        (Own(OBS, spec=spec()), [], "'obs', which its spec does not declare"),
        (Own(OBS, spec=spec(ops=Vector(shape=(3,)))), [], "did you mean 'ops'"),
        (Own(spec=spec(obs=Vector(shape=(3,)))), [], r"declares the condition\(s\) \['obs'\]"),
        (Own(OBS, spec=spec(obs=Vector(shape=(4,)))), ["obs"], r"obs must have the shape \(4\)"),
        (Own(OBS, spec=spec(obs=Label(classes=2))), ["obs"], "obs"),
        (
            Own({"label": torch.full((8,), 5)}, spec=spec(label=Label(classes=3))),
            ["label"],
            r"label must be in \[0, 2\]",
        ),
        (Own({"obs": torch.full((8, 3), torch.nan)}), ["obs"], "NaN"),
        (Own(shape=(2, 5)), [], r"shape \(2, 5\); its spec says \(2, 4\)"),
        (Own(spec=spec(mask=Mask())), [], "declares a mask"),
        (Own(mask=torch.ones(8, 1, 4), spec=spec()), [], "does not declare"),
        (Own(mask=torch.ones(8, 1, 4)), ["mask"], r"cond\['mask'\]"),
        (Own({"style": torch.ones(8, dtype=torch.int64)}), ["style"], "Label"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_the_first_step(tmp_path, data, reads, message):
    network = Reader(2, *((key, 3) for key in reads))
    a_run = run(Arrays(np.zeros((8, 2, 4))), network, drop=False)
    with pytest.raises(UsageError, match=message):
        train(dataclasses.replace(a_run, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_undeclared_conditions_are_derived(tmp_path):
    a_run = run(Own(OBS), Reader(2, ("obs", 3)), drop=False)
    model = train(a_run, tmp_path / "run")
    assert model.contract.data == spec(obs=Vector(shape=(3,)))
    masked = Own({"mask": torch.ones(8, 1, 4)}, torch.ones(8, 1, 4))
    check_conditions(run(Own(), Reader(2, ("mask", 1)), drop=False).objective, masked)


# What is judged.


def test_judged_samples_have_the_conditions_of_held_out_data(tmp_path):
    data = actions()
    model = train(run(data, Reader(2, ("obs", 3)), sample_every=0), tmp_path / "run")
    parts = data.batch(range(20)), data.batch(range(20, 32))
    protocol = Protocol(*parts, flatten, draws=1, metrics=METRICS[:4])
    network = model.denoiser.net
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[3]["obs"]))
    row = protocol.judge(model, 2)
    assert seen[0].equal(parts[1].cond["obs"])
    assert {"fd", "swd", "nn", "kid"} < row.keys()
    seen.clear()
    distance_to(data, model, "swd", flatten, 5, 0)
    assert protocol.floor()["fd"] > 0


def test_masks_are_honoured_in_distances(tmp_path):
    data = speech()
    model = train(run(data, Reader(1, ("label", 1), ("mask", 1)), sample_every=0), tmp_path / "run")
    train_part, held_out = data.batch(range(20)), data.batch(range(20, 32))
    garbage = Batch(held_out.x0 + 9 * (1 - held_out.mask), held_out.cond, held_out.mask)
    rows = [
        Protocol(train_part, part, flatten, draws=1).judge(model, 2) for part in (held_out, garbage)
    ]
    for key in ("fd", "swd", "nn", "fd_train", "swd_train"):
        assert rows[0][key] == rows[1][key]
    shorter = Batch(
        held_out.x0[..., :6],
        {**held_out.cond, "mask": held_out.mask[..., :6]},
        held_out.mask[..., :6],
    )
    assert Protocol(train_part, shorter, flatten, draws=1).judge(model, 2)["swd"] > 0
    named = named_features("pixels", torch.device("cpu"))
    with pytest.raises(UsageError, match="mask"):
        Protocol(train_part, held_out, named, draws=1).floor()
    distance = distance_to(data, model, "swd", flatten, 6, 0)
    with pytest.raises(UsageError, match="times must"):
        distance([1.0])
