"""Samples whose values are not finite are named where training meets them.

``torchrun --nproc-per-node 2 tests/training/test_unsound.py OUT`` lets two processes meet some.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep as library
from fewstep.core import Batch, UsageError
from fewstep.data import Arrays, positions, split
from fewstep.data.pairs import Paired
from fewstep.system.processes import joined
from fewstep.training.faults import Unsound, named, unsound
from fewstep.training.feed import Feed
from fewstep.training.train import train
from fewstep.training.trainer import Diverged, Trainer
from own_networks import Net, made, run_of

N = 1200


def points(*bad: int, value: float = math.nan) -> Arrays:
    x = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    x[[*bad], 1] = value
    return Arrays(x, check=False)


def few(data, **settings):
    return run_of(made(Net), data=data, **{"sample_every": 0, "save_every": 99, **settings})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_is_named_once_and_its_updates_are_skipped(value, workers, tmp_path, capsys):
    data = points(1017, value=value)
    data.path = "points.safetensors"
    steps = 2 * N // 100
    train(few(data, batch=100, steps=steps, workers=workers), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("sample 1017 of points.safetensors has values that are not finite") == 1
    assert "this update was skipped, remove them from the data" in said
    assert "lower --train.lr" not in said


def test_data_is_named_instead_of_the_learning_rate(tmp_path):
    data = points(*range(64, N, 2))
    with pytest.raises(UsageError, match=r"^samples 6\d, \d+, .* and [\d,]+ more of the data have"):
        train(few(data, batch=100, steps=20), tmp_path / "run")


def test_a_learning_rate_is_still_blamed_where_data_is_sound(tmp_path):
    class Bad(Net):
        def forward(self, x, c_noise, s_noise=None, cond=None):
            return super().forward(x, c_noise) * math.nan

    run = run_of(made(Bad), data=points(), steps=20, sample_every=0)
    with pytest.raises(Diverged, match=r"lower --train\.lr"):
        train(run, tmp_path / "run")


def test_conditions_and_precomputed_values_are_looked_at():
    good = torch.zeros(3, 2)
    bad = torch.tensor([[0.0], [math.inf], [0.0]])
    index = np.array([7, 5, 3])
    for batch in (
        Batch(good, {"pose": bad, "label": torch.arange(3)}),
        Batch(good, aux={"pair_x": bad}),
        Batch(good + bad),
    ):
        assert unsound([batch], [index]) == [5]
    assert unsound([Batch(good, {"text_mask": torch.ones(3, 4, dtype=torch.bool)})], [index]) == []


def test_parts_name_the_sample_of_the_whole():
    data = points()
    data.path = "x.safetensors"
    part, _ = split(data, 0.5)
    sentence = f"sample {part.index[5]} of x.safetensors has values that are not finite"
    assert named(part, [5]) == sentence
    paired = Paired.__new__(Paired)
    paired.data = part
    assert named(paired, [5 + len(part)]) == sentence
    assert named(data, range(8)) == (
        "samples 0, 1, 2, 3, 4 and 3 more of x.safetensors have values that are not finite"
    )
    assert named(points(), [3]).startswith("sample 3 of the data has")


def test_data_is_blamed_where_all_skipped_updates_met_such_samples():
    met = Unsound(points())
    met.bad("student", [3])
    assert met.news() == named(met.data, [3])
    assert met.news() is None
    assert met.cause("student") == named(met.data, [3])
    met.bad("student", [3, 9])
    assert met.news() == named(met.data, [9])
    assert met.cause("student") == named(met.data, [3, 9])
    met.bad("student", [])
    assert met.cause("student") is None
    met.good("student")
    assert met.cause("student") is None
    met.bad("student", [9])
    assert met.cause("student") == named(met.data, [9])
    assert met.cause("head") is None


def test_good_steps_look_at_nothing(tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError(args)

    monkeypatch.setattr("fewstep.training.trainer.unsound", never)
    monkeypatch.setattr(Feed, "indices", never)
    train(few(points(), steps=3), tmp_path / "run")


# Several processes.


def test_all_processes_know_what_one_of_them_met(tmp_path):
    from test_distribution import torchrun

    path = [Path(__file__).parents[1], Path(__file__).parent, Path(library.__file__).parents[1]]
    env = {"PYTHONPATH": ":".join(map(str, path))}
    done = torchrun(__file__, tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    # Only the second shard of the first step holds the sample.
    assert said[0].endswith("of the data has values that are not finite")


def main(out: Path) -> None:
    with joined() as world:
        index = positions(0, 0, 8, N, 1, 2)[0]
        run = few(points(index), batch=8, accumulation=2)
        trainer = Trainer(
            run.objective, run.data, run.config, run.averages, torch.device("cpu"), world
        )
        trainer.advance()
        (out / f"{world.rank}.txt").write_text(str(trainer.unsound.news()))
        trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
