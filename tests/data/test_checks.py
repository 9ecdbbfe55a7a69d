"""Data that cannot be learnt from is refused by a sentence, at its first batch or before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fewstep.conditions import Label
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data import Arrays, check_batch, first_batch, spec_of
from fewstep.training.conditions import check_conditions
from image_files import pixels

IMAGE = DataSpec(shape=(3, 8, 8), labels=4)


class Own:
    """A user's data set of images with labels."""

    shape, labels, image = (3, 8, 8), 4, True

    def __init__(self, n: int = 40, **changed) -> None:
        self.x0 = torch.linspace(-1, 1, n * 192).reshape(n, 3, 8, 8).float()
        self.label = torch.arange(n) % 4
        self.__dict__.update(changed)

    def __len__(self) -> int:
        return len(self.x0)

    def batch(self, indices) -> Batch:
        index = torch.as_tensor(np.asarray(indices))
        return Batch(self.x0[index], {"label": self.label[index]})


def with_value(at: int, value: float) -> torch.Tensor:
    x0 = Own().x0.clone()
    x0[at, 1, 2, 3] = value
    return x0


def with_label(at: int, value: int) -> torch.Tensor:
    label = Own().label.clone()
    label[at] = value
    return label


UNIT = torch.linspace(0, 1, 40 * 192).reshape(40, 3, 8, 8)
CASES = [
    (Own(x0=with_value(17, float("nan"))), "sample 17 of the data holds NaN or infinite"),
    (Own(x0=with_value(17, float("inf"))), "sample 17 of the data holds NaN or infinite"),
    (Own(x0=with_value(5, 1.5)), r"\[-1, 1\.5\], first in sample 5; its spec says \[-1, 1\]"),
    (Own(x0=UNIT * 255), r"its spec says \[-1, 1\]: return x0 / 127\.5 - 1"),
    (Own(x0=UNIT), r"\[0, 1\] and its spec says \[-1, 1\].*return 2 \* x0 - 1"),
    (Own(x0=(UNIT * 255).to(torch.uint8)), r"torch\.uint8; expected float32.*127\.5 - 1"),
    (Own(x0=Own().x0.double()), r"torch\.float64; expected float32: return x0\.float\(\)"),
    (Own(x0=Own().x0.half()), r"torch\.float16; expected float32"),
    (Own(x0=Own().x0.permute(0, 2, 3, 1)), r"shape \(8, 8, 3\).*x\.permute\(0, 3, 1, 2\)"),
    (Own(x0=Own().x0[:, :1]), r"samples of shape \(1, 8, 8\); its spec says \(3, 8, 8\)"),
    (Own(label=with_label(9, 4)), r"sample 9 of the data has the label 4; label must be in \[0, 3"),
    (Own(label=with_label(9, -1)), "sample 9 of the data has the label -1"),
    (Own(label=Own().label.int()), r"labels as torch\.int32 of shape \(40,\); expected torch"),
    (Own(label=Own().label.float()), r"labels as torch\.float32"),
    (Own(label=Own().label[:, None]), r"shape \(40, 1\); expected"),
    (Own(label=torch.eye(4)[Own().label]), r"one-hot rows become label\.argmax\(1\)"),
]


@pytest.mark.parametrize(("data", "message"), CASES)
def test_a_bad_first_batch(data, message):
    with pytest.raises(UsageError, match=message):
        check_batch(first_batch(data), spec_of(data))


def test_training_asks(tmp_path):
    from fewstep.recipes import recipe

    run = recipe("toy-edm").build()
    x = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)

    class Points(Own):
        shape, labels, image = (2,), 0, False

        def batch(self, indices) -> Batch:
            return Batch(self.x0[torch.as_tensor(np.asarray(indices))], {})

    good = Points(x0=torch.from_numpy(x))
    check_conditions(run.objective, good)
    x[17, 1] = np.nan
    bad = dataclasses.replace(run, data=Points(x0=torch.from_numpy(x)))
    with pytest.raises(UsageError, match="sample 17 of the data holds NaN"):
        check_conditions(bad.objective, bad.data)


def test_samples_are_named_by_their_own_numbers():
    batch = Own(x0=with_value(17, float("nan"))).batch([3, 17, 8])
    with pytest.raises(UsageError, match="sample 17"):
        check_batch(batch, IMAGE, [3, 17, 8])
    check_batch(Own().batch([3, 17, 8]), IMAGE)
    edge = Own(x0=with_value(1, 1 + 1e-4)).batch([1])
    check_batch(edge, IMAGE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2, 3], r"a list is no data set, as it has no batch, shape.*Arrays\(x, label\)"),
        (torch.utils.data.TensorDataset(torch.zeros(3, 2)), r"from_torch\(dataset\)"),
        (Own(0), "holds no samples"),
    ],
)
def test_what_is_no_data_set(data, message):
    with pytest.raises(UsageError, match=message):
        spec_of(data)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(2, 3), "returns a Tensor; it must return"),
        ((torch.zeros(2, 3), None), "returns a tuple"),
        (Batch(torch.zeros(3, 3), {}), r"batch of 2 indices holds x0 .* \(3, 3\)"),
        (Batch(np.zeros((2, 3)), {}), "x0 as a ndarray"),
    ],
)
def test_what_is_no_batch(returned, message):
    class Odd(Own):
        def batch(self, indices):
            return returned

    with pytest.raises(UsageError, match=message):
        spec_of(Odd())


# Arrays.


@pytest.mark.parametrize("last", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_that_come_last(last, kind):
    x = pixels(5, 8, 8, last).astype(kind)
    x = x / np.float32(127.5) - 1 if kind == np.float32 else x
    with pytest.raises(UsageError, match=r"\(n, c, h, w\); put channels first: x\.transpose\(0, 3"):
        Arrays(x)
    if last != 4:
        assert Arrays(x.transpose(0, 3, 1, 2)).shape == (last, 8, 8)
    if kind == np.float32:
        assert Arrays(x, image=False).shape == (8, 8, last)


def test_arrays_name_what_is_wrong():
    x = np.zeros((20, 1, 8, 8), np.float32)
    x[17, 0, 3, 3] = np.nan
    with pytest.raises(UsageError, match="sample 17 of the array holds NaN"):
        Arrays(x)
    with pytest.raises(UsageError, match=r"\(20, 8, 8\).*grey images become x\[:, None\]"):
        Arrays(np.zeros((20, 8, 8), np.uint8))
    levels = pixels(20, 3, 8, 8).astype(np.float32)
    levels[0, 0, 0, 0] = 255
    with pytest.raises(UsageError, match=r"look like pixels: pass them as uint8, or say range"):
        Arrays(levels)
    assert Arrays(levels, range=(0, 255)).spec.range == (0, 255)


@pytest.mark.parametrize("label", [[1, 2, 3, 1], [0, 2, 2, 0]])
def test_labels_of_arrays_count_from_zero_without_gaps(label):
    x = np.zeros((4, 2))
    with pytest.raises(UsageError, match=r"without gaps; pass numpy\.unique\(label, return_inv"):
        Arrays(x, label)
    assert Arrays(x, label, labels=4).labels == 4
    mapped = np.unique(label, return_inverse=True)[1]
    assert Arrays(x, mapped).labels == len(set(label))


def test_labels_of_arrays_may_be_names():
    data = Arrays(np.zeros((4, 2)), ["dog", "cat", "dog", "elk"])
    assert data.spec.conditions["label"] == Label(classes=3, names=("cat", "dog", "elk"))
    assert data.batch(range(4)).cond["label"].tolist() == [1, 0, 1, 2]
    assert data.subset([3]).spec == data.spec
    assert data.subset([3]).batch([0]).cond["label"].tolist() == [2]
    with pytest.raises(UsageError, match="labels=2 and 3 names"):
        Arrays(np.zeros((3, 2)), ["a", "b", "c"], labels=2)
