import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.core import UsageError
from fewstep.data import positions
from fewstep.data.order import _permutation


def stream(seed: int, steps: int, batch: int, n: int, shards: int = 1) -> np.ndarray:
    shard = [positions(seed, k, batch, n, s, shards) for k in range(steps) for s in range(shards)]
    return np.concatenate(shard)


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 40), n=st.integers(1, 17), shards=st.integers(1, 3), seed=st.integers(0, 9)
)
def test_every_epoch_is_a_permutation(batch, n, shards, seed):
    steps = -(-3 * n // (batch * shards))
    order = stream(seed, steps, batch, n, shards)
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_shards_partition_the_stream_in_order():
    np.testing.assert_array_equal(stream(3, 12, 5, 17, shards=4), stream(3, 48, 5, 17))
    np.testing.assert_array_equal(stream(3, 12, 5, 17, shards=4), stream(3, 12, 20, 17))


def test_order_depends_on_nothing_but_its_arguments():
    ahead = positions(1, 1000, 8, 50)
    _permutation.cache_clear()
    for step in (3, 7, 999):
        positions(1, step, 8, 50)
    np.testing.assert_array_equal(positions(1, 1000, 8, 50), ahead)
    assert ahead.dtype == np.int64


def test_epochs_and_seeds_differ():
    first, second = stream(0, 2, 100, 100).reshape(2, 100)
    assert (first != second).mean() > 0.9
    assert (first != positions(1, 0, 100, 100)).mean() > 0.9


def test_what_is_returned_may_be_changed():
    positions(5, 0, 10, 10)[:] = 0
    assert sorted(positions(5, 0, 10, 10)) == list(range(10))


@pytest.mark.parametrize(
    "bad",
    [
        {"seed": -1},
        {"step": -1},
        {"batch": 0},
        {"n": 0},
        {"shard": 2, "shards": 2},
        {"shard": -1},
        {"shards": 0},
    ],
)
def test_arguments_out_of_range_are_refused(bad):
    with pytest.raises(UsageError, match="no batch of"):
        positions(**({"seed": 0, "step": 0, "batch": 4, "n": 10} | bad))
