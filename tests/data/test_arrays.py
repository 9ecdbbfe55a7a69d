import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.core import UsageError
from fewstep.data import Arrays, Dataset, stratified_split

RNG = np.random.default_rng(0)


def test_bytes_become_images_in_range():
    x = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    data: Dataset = Arrays(x)
    assert (len(data), data.shape, data.labels, data.image) == (4, (1, 8, 8), 0, True)
    batch = data.batch([0, 3])
    assert batch.x0.dtype == torch.float32
    assert batch.cond == {}
    assert batch.x0.min() == -1
    assert batch.x0.max() == 1
    expected = x[[0, 3]].astype(np.float64) / 255 * 2 - 1
    np.testing.assert_allclose(batch.x0.numpy(), expected, atol=2e-7)  # float32 rounding


@pytest.mark.parametrize("event", [(2,), (3, 5), (1, 4, 4), (2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_handed_out_as_they_are(event, dtype):
    x = (5 * RNG.standard_normal((6, *event))).astype(dtype)
    label = np.array([0, 2, 1, 0, 2, 1], np.uint8)
    data = Arrays(x, label, labels=4)
    assert (data.shape, data.labels, data.image) == (event, 4, False)
    batch = data.batch(np.array([5, 0, 0]))
    np.testing.assert_array_equal(batch.x0.numpy(), x[[5, 0, 0]].astype(np.float32))
    assert batch.cond["label"].tolist() == [1, 0, 0]
    assert batch.cond["label"].dtype == torch.int64


def test_a_batch_is_a_copy():
    x = np.ones((2, 3), np.float32)
    data = Arrays(x)
    data.batch([0, 1]).x0.zero_()
    assert data.batch([0]).x0.tolist() == [[1, 1, 1]]


def test_classes_without_samples_must_be_counted():
    assert Arrays(np.zeros((3, 2)), [0, 4, 1], labels=5).labels == 5


def test_subset_keeps_the_classes():
    x = RNG.standard_normal((5, 2))
    data = Arrays(x, [0, 1, 2, 1, 0])
    part = data.subset([3, 1])
    assert (len(part), part.labels) == (2, 3)
    assert part.batch([0]).cond["label"].tolist() == [1]
    np.testing.assert_array_equal(part.batch([0, 1]).x0, data.batch([3, 1]).x0)
    masked = data.subset(np.array([False, True, False, True, False]))
    np.testing.assert_array_equal(masked.batch([0, 1]).x0, data.batch([1, 3]).x0)
    pixels = Arrays(np.full((2, 1, 2, 2), 255, np.uint8)).subset([1])
    assert pixels.image
    assert pixels.batch([0]).x0.unique().tolist() == [1]


def broken(value: float) -> np.ndarray:
    x = np.zeros((3, 1, 2, 2))
    x[1, 0, 1, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "given", "message"),
    [
        (np.zeros((0, 2)), {}, r"shape \(0, 2\)"),
        (np.zeros(3), {}, r"shape \(3,\)"),
        (np.zeros((3, 2), np.int64), {}, "int64"),
        (np.zeros((3, 8, 8), np.uint8), {}, r"expected \(n, c, h, w\)"),
        (np.zeros((3, 8, 8)), {"image": True}, r"expected \(n, c, h, w\)"),
        (broken(np.nan), {}, "NaN"),
        (broken(np.inf), {}, "infinite"),
        (broken(-np.inf), {}, "infinite"),
        (broken(1e39), {}, "float32"),
        (broken(1.01), {"image": True}, r"\[0, 1.01\]"),
        (broken(-1.01), {"image": True}, r"\[-1.01, 0\]"),
        (broken(0), {"label": [0, 1]}, r"shape \(2,\) for 3 samples"),
        (broken(0), {"label": [[0], [1], [1]]}, r"shape \(3, 1\)"),
        (broken(0), {"label": [0.0, 1.0, 1.0]}, "float64"),
        (broken(0), {"label": [True, False, True]}, "bool"),
        (broken(0), {"label": [0, -1, 1]}, r"\[-1, 1\]"),
        (broken(0), {"label": [0, 2, 1], "labels": 2}, r"integers in \[0, 2\)"),
        (broken(0), {"labels": 2}, "pass label"),
    ],
)
def test_what_cannot_be_used_is_refused(x, given, message):
    with pytest.raises(UsageError, match=message):
        Arrays(x, **given)


@settings(max_examples=60, deadline=None)
@given(label=st.lists(st.integers(0, 4), min_size=1, max_size=60), share=st.floats(0, 1))
def test_split_is_exact_disjoint_and_proportional(label, share):
    n = len(label)
    size = round(share * n)
    first, second = stratified_split(label, (size, n - size), seed=0)
    assert (len(first), len(second)) == (size, n - size)
    assert sorted([*first, *second]) == list(range(n))
    for k in set(label):
        quota = label.count(k) * size / n
        assert abs(sum(label[i] == k for i in first) - quota) < 1


def test_split_is_seeded_and_shuffled():
    label = np.repeat([0, 1], 100)
    first, _ = stratified_split(label, (100, 100), seed=0)
    np.testing.assert_array_equal(first, stratified_split(label, (100, 100), seed=0)[0])
    assert not np.array_equal(first, stratified_split(label, (100, 100), seed=1)[0])
    # Half of each class from its first half on average: standard deviation of the count is 2.5.
    assert abs((first[:50] < 50).sum() - 25) < 12


@pytest.mark.parametrize("sizes", [(2, 2), (-1, 4), (3, 1)])
def test_split_sizes_must_add_up(sizes):
    with pytest.raises(UsageError, match="add up to 3"):
        stratified_split([0, 1, 1], sizes, seed=0)
