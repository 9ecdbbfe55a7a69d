"""torch's map-style data sets as data."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fewstep.conditions import Label
from fewstep.core import UsageError
from fewstep.data import Dataset, check_batch, first_batch, from_torch, spec_of
from image_files import as_bytes, pixels

X = pixels(6, 8, 8, 3)
FIRST = X.transpose(0, 3, 1, 2)


class Items:
    """A map-style data set of the given items."""

    def __init__(self, items, **attributes) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        return self.items[i]


def pairs(samples, labels=(0, 1, 2, 0, 1, 2), **attributes) -> Items:
    return Items([*zip(samples, labels, strict=True)], **attributes)


def same_images(data: Dataset) -> None:
    assert (data.shape, data.image, data.spec.range) == ((3, 8, 8), True, (-1, 1))
    np.testing.assert_array_equal(as_bytes(data), FIRST)
    check_batch(first_batch(data), spec_of(data))


def test_pictures_and_names_as_torchvision_has_them():
    samples = [Image.fromarray(x) for x in X]
    data = from_torch(pairs(samples, classes=["cat", "dog", "elk"]))
    dataset: Dataset = data
    same_images(dataset)
    assert data.spec.conditions == {"label": Label(classes=3, names=("cat", "dog", "elk"))}
    assert data.batch([1, 5]).cond["label"].tolist() == [1, 2]
    assert data.notes == ()
    same_images(pickle.loads(pickle.dumps(data)))


def test_tensors():
    uint8 = torch.from_numpy(np.ascontiguousarray(FIRST))
    same_images(from_torch(Items(uint8)))
    same_images(from_torch(Items(uint8.float() / 127.5 - 1)))
    same_images(from_torch(Items(uint8.float() / 255), range=(0, 1)))
    same_images(from_torch(Items(FIRST)))
    labelled = from_torch(TensorDataset(uint8, torch.arange(6) % 3), labels=3)
    same_images(labelled)
    assert labelled.batch([4]).cond["label"].tolist() == [1]
    bare = from_torch(TensorDataset(uint8, torch.arange(6) % 3), labels="none")
    assert bare.notes == ("the labels of the data set are not read",)
    assert bare.batch([0]).cond == {}
    points = from_torch(Items(torch.randn(6, 2, generator=torch.Generator().manual_seed(0))))
    assert (points.shape, points.image, points.spec.range) == ((2,), False, None)


def test_pictures_of_other_sizes_need_a_resolution():
    samples = [Image.fromarray(pixels(8, 12, 3)), Image.fromarray(X[0]), Image.fromarray(X[1][:6])]
    with pytest.raises(UsageError, match=r"12 x 8 pixels and is not square.*resolution=N"):
        from_torch(Items(samples))
    assert from_torch(Items(samples), resolution=4).batch([0, 1, 2]).x0.shape == (3, 3, 4, 4)
    data = from_torch(Items(samples[1:]))
    with pytest.raises(UsageError, match="sample 1 has 8 x 6 pixels, sample 0 8 x 8"):
        data.batch([0, 1])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    "data", [Stream(), iter(X), (x for x in X), type("Empty", (), {"__len__": lambda self: 3})()]
)
def test_what_has_no_random_access(data):
    with pytest.raises(UsageError, match=r"cannot be read in any order.*fewstep data prepare SOU"):
        from_torch(data)


def turned(i: int) -> np.ndarray:
    return X[i].astype(np.float32)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (DataLoader(Items(FIRST)), {}, r"from_torch\(loader\.dataset\)"),
        (Items([]), {}, "holds no samples"),
        (Items([{"image": X[0]}]), {}, "item 0 of the data set is a dict"),
        (Items([(X[0], 1, 2)]), {}, "a tuple of 3"),
        (Items(["cat.png"]), {}, "sample 0 is a str; expected a tensor or a PIL image"),
        (Items(X), {}, r"uint8 of shape \(8, 8, 3\).*x\.transpose\(2, 0, 1\)"),
        (Items(torch.from_numpy(X) / 127.5 - 1), {}, r"\(8, 8, 3\); expected \(c, h, w\)"),
        (Items(torch.from_numpy(FIRST.copy()) / 255), {}, r"in \[0, 1\]; give range=\(0, 1\)"),
        (Items(torch.from_numpy(FIRST.copy()).float()), {}, r"give range=\(0, 255\)"),
        (Items(FIRST.astype(np.int64)), {}, "sample 0 is of torch.int64"),
        (Items(FIRST / 255), {"range": (0, 0.5)}, r"range=\(0, 0\.5\) was given"),
        (Items(FIRST), {"labels": 3}, "items are no pairs"),
        (Items(FIRST), {"resolution": 8}, "resolution= is for PIL images"),
        (pairs(FIRST), {}, r"nothing says of how many classes; give labels=K"),
        (pairs(FIRST), {"labels": "cat"}, r"nothing says of how many classes"),
    ],
)
def test_what_is_refused_at_once(dataset, options, message):
    with pytest.raises(UsageError, match=message):
        from_torch(dataset, **options)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (pairs(FIRST, [0, 3, 0, 0, 0, 0]), r"sample 1 has the label 3; expected .* \[0, 3\)"),
        (pairs(FIRST, [0, "cat", 0, 0, 0, 0]), "sample 1 has the label 'cat'"),
        (pairs([FIRST[0], FIRST[1][:, :4]], [0, 1]), r"sample 1 has the shape \(3, 4, 8\)"),
        (pairs([FIRST[0] / 200 - 1, FIRST[1] / 200 * np.nan], [0, 1]), "sample 1 .* holds NaN"),
    ],
)
def test_what_is_refused_when_it_is_read(dataset, message):
    data = from_torch(dataset, labels=3)
    with pytest.raises(UsageError, match=message):
        data.batch(range(len(data)))


def test_random_transforms_are_told():
    class Random(Items):
        def __getitem__(self, i: int):
            return torch.rand(3, 8, 8) * 2 - 1

    assert "at random" in from_torch(Random(FIRST)).notes[0]
