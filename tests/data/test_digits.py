import numpy as np
import pytest
from sklearn.datasets import load_digits

from fewstep.core import UsageError
from fewstep.data import digits, stratified_split
from fewstep.data.digits import SPLIT_SEED, SPLIT_SIZES


def test_digits_are_those_of_scikit_learn():
    reference = load_digits()
    parts = stratified_split(reference.target, SPLIT_SIZES, SPLIT_SEED)
    for split, index in zip(("train", "held_out"), parts, strict=True):
        data = digits(split)
        assert (data.shape, data.labels, data.image) == ((1, 8, 8), 10, True)
        batch = data.batch(np.arange(len(data)))
        np.testing.assert_array_equal(batch.x0[:, 0], reference.images[index] / 8 - 1)
        np.testing.assert_array_equal(batch.cond["label"], reference.target[index])


def test_both_parts_are_disjoint_and_complete():
    parts = [digits("train"), digits("held_out")]
    assert [len(part) for part in parts] == [1200, 597]
    rows = np.concatenate([part.batch(np.arange(len(part))).x0.flatten(1) for part in parts])
    expected = load_digits().data / 8 - 1
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_classes_keep_their_proportions():
    counts = np.bincount(load_digits().target)
    train = digits("train")
    label = train.batch(np.arange(len(train))).cond["label"].numpy()
    assert np.abs(np.bincount(label) - counts * 1200 / 1797).max() < 1


def test_another_split_is_refused():
    with pytest.raises(UsageError, match="train or held_out"):
        digits("test")  # pyright: ignore[reportArgumentType]
