"""The protocol's choice of ways to a distance, its notes and its bar."""

import contextlib
import dataclasses

import pytest
import torch

from fewstep.core import Batch
from fewstep.evaluation import Protocol, judged, judging
from fewstep.metrics import flatten, frechet_distance, moments_of, named_features


class Drawing:
    """A model that draws what it is given."""

    def __init__(self, x):
        self.x = x

    def sample(self, n, **_):
        assert n == len(self.x)
        return self.x


def images(n, seed, side=8):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, side, side, generator=rng) * 2 - 1


def protocol(n, **options):
    return Protocol(Batch(images(2 * n, 0)), Batch(images(n, 2)), flatten, **options)


def between(a, b):
    return frechet_distance(*(moments_of([x], flatten) for x in (a, b)))


@pytest.mark.parametrize(("n", "few"), [(30, True), (90, False)])
def test_few_samples_are_compared_without_covariances(monkeypatch, n, few):
    asked, x, calls = protocol(n, draws=2, metrics=("fd",)), images(n, 1), []
    usual = judged.frechet_distance_of_samples
    monkeypatch.setattr(
        judged, "frechet_distance_of_samples", lambda *s: calls.append(1) or usual(*s)
    )
    row = asked.judge(Drawing(x), 1)
    assert bool(calls) == few
    assert row["fd"] == pytest.approx(between(x, asked.held_out.x0), rel=1e-7)
    draws = [between(x, asked._train_draw(i)) for i in range(2)]
    assert row["fd_train"] == pytest.approx(sum(draws) / 2, rel=1e-7)
    draws = [between(asked._train_draw(i), asked.held_out.x0) for i in range(2)]
    assert asked.floor()["fd"] == pytest.approx(sum(draws) / 2, rel=1e-7)


def test_notes_say_features_and_numbers():
    line = (
        "distances: 30 samples against 30 held-out and 30 training data, in features pixels, "
        "means of 5; compare rows of equal numbers only"
    )
    assert protocol(30).notes() == [line]
    named = dataclasses.replace(protocol(30), features=named_features("digits"))
    assert "in features digits" in named.notes()[-1]


def test_a_bar_tells_of_every_draw(monkeypatch):
    bars = []

    @contextlib.contextmanager
    def bar(doing, things, total, after):
        done = []
        yield done.append
        bars.append((doing, total, after, sum(done)))

    monkeypatch.setattr(judging, "bar", bar)
    asked = protocol(30, draws=3)
    asked.judge(Drawing(images(30, 1)), 1)
    asked.floor()
    assert bars == [("evaluating", 3, 2.0, 3)] * 2
