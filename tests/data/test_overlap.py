"""Samples that lie in training data and in held-out data as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.core import Batch, UsageError
from fewstep.data import Arrays
from fewstep.data.overlap import compared, overlap_note, shared_samples
from fewstep.evaluation import Protocol
from fewstep.metrics import flatten

X = torch.randn(600, 3, 4, generator=torch.Generator().manual_seed(0))


def test_shared_samples_are_counted():
    assert shared_samples([X[:300], X[300:400]], [X[390:410], X[500:]]) == 10
    assert shared_samples([X[:300]], [X[300:]]) == 0
    # Both copies of a sample count, and so does one that occurs twice in training data.
    assert shared_samples([X[:9], X[:9]], [X[8:12], X[8:9]]) == 2
    # Each value counts.
    near = X[:5] + torch.tensor([0.0, 0, 0, 1e-6])
    assert shared_samples([X], [near]) == 0


def test_half_is_too_much():
    assert overlap_note(0, 10) is None
    assert overlap_note(1, 10) == "1 of the 10 held-out samples lies in the training data as well"
    assert overlap_note(4, 10) == "4 of the 10 held-out samples lie in the training data as well"
    for shared in (5, 10):
        with pytest.raises(UsageError, match=rf"^{shared} of the 10 held-out samples lie"):
            overlap_note(shared, 10)


def test_data_sets_are_read_whole():
    x = X.numpy()
    train, other = Arrays(x[:500], image=False), Arrays(x[490:], image=False)
    assert compared(train, other) == (
        "10 of the 110 held-out samples lie in the training data as well"
    )
    assert compared(Arrays(x[:300]), Arrays(x[300:])) is None


def test_a_protocol_checks_before_anything_is_sampled():
    def never(x):
        raise AssertionError("features before the check")

    half = Protocol(Batch(X[:60]), Batch(X[55:65]), never)
    with pytest.raises(UsageError, match="5 of the 10 held-out samples lie in the training data"):
        half.check()
    some = Protocol(Batch(X[:60]), Batch(X[58:68]), flatten)
    some.check()
    assert some.notes()[-1] == "2 of the 10 held-out samples lie in the training data as well"
    none = Protocol(Batch(X[:60]), Batch(X[60:68]), flatten)
    none.check()
    assert "as well" not in none.notes()[-1]
    assert np.isfinite(some.floor()["fd"])
