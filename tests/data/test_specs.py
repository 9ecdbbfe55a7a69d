"""Data sets say what they are: declared, shown by arrays, derived from a batch, or stored."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fewstep.conditions import Image, Label, Mask, Sequence, Vector
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data import Arrays, Stored, digits, open_data, open_images, spec_of, toy, write_arrays

RNG = np.random.default_rng(0)
N = 6


def rich() -> dict:
    """Arrays of every kind of condition."""
    return {
        "x": RNG.standard_normal((N, 2, 5)).astype(np.float32),
        "label": np.arange(N) % 3,
        "conditions": {
            "obs": RNG.standard_normal((N, 3)),
            "text": (RNG.standard_normal((N, 4, 2)), RNG.random((N, 4)) < 0.5),
            "low": RNG.integers(0, 256, (N, 1, 2, 2), dtype=np.uint8),
            "style": np.array([0, 1, 0, 1, 0, 1]),
        },
        "mask": np.array([5, 1, 2, 3, 4, 4]),
    }


SPEC = DataSpec(
    shape=(2, None),
    range=None,
    conditions={
        "label": Label(classes=3),
        "obs": Vector(shape=(3,)),
        "text": Sequence(shape=(2,), length=4),
        "low": Image(shape=(1, 2, 2)),
        "style": Label(classes=2),
        "mask": Mask(length=5),
    },
)


def same(one: Batch, other: Batch) -> None:
    assert one.x0.equal(other.x0)
    assert one.cond.keys() == other.cond.keys()
    for key, value in one.cond.items():
        assert value.equal(other.cond[key])
        assert value.dtype == other.cond[key].dtype
    assert (one.mask is None) == (other.mask is None)


def test_arrays_show_what_they_are():
    given = rich()
    data = Arrays(**given)
    assert data.spec == SPEC
    assert (data.labels, data.shape) == (3, (2, 5))
    batch = data.batch([1, 4])
    assert {*batch.cond} == {*SPEC.keys}
    assert batch.cond["style"].tolist() == [1, 0]
    np.testing.assert_allclose(batch.cond["obs"], given["conditions"]["obs"][[1, 4]], rtol=1e-6)
    np.testing.assert_allclose(
        batch.cond["low"], given["conditions"]["low"][[1, 4]] / 127.5 - 1, rtol=0, atol=1e-6
    )
    assert batch.cond["text_mask"].dtype == torch.bool
    assert batch.mask is batch.cond["mask"]
    assert batch.mask.sum((1, 2)).tolist() == [1, 4]
    assert not batch.x0[0, :, 1:].any()  # padding is 0, whatever the array holds there
    # What a batch holds is what sampling accepts.
    converted = SPEC.convert(batch.cond, 2)
    for key, value in batch.cond.items():
        assert converted[key].equal(value)


def test_parts_of_arrays_keep_the_rest():
    data = Arrays(**rich())
    same(data.subset([4, 2]).batch([0, 1]), data.batch([4, 2]))
    assert data.subset([4, 2]).spec == SPEC
    bare = data.unlabelled()
    assert bare.labels == 0
    assert {*bare.spec.conditions} == {*SPEC.conditions} - {"label"}
    assert "label" not in bare.batch([0]).cond


def test_plain_data_declares_itself():
    assert digits("train").spec == DataSpec(shape=(1, 8, 8), labels=10)
    assert toy("moons", 10).spec == DataSpec(shape=(2,), range=None)
    assert Arrays(np.zeros((2, 3)), range=(0, 1)).spec.range == (0, 1)


def test_a_declared_spec_holds():
    names = DataSpec(
        shape=(3,), range=(0, 9), conditions={"label": Label(classes=4, names=("a", "b", "c", "d"))}
    )
    data = Arrays(np.ones((2, 3)), [0, 1], spec=names)
    assert (data.spec, data.labels) == (names, 4)
    for change, message in (
        ({"x": np.full((2, 3), 10.0)}, r"\[0, 9\]"),
        ({"x": np.ones((2, 4))}, "declared as"),
        ({"label": [0, 4]}, r"\[0, 4\)"),
        ({"label": None}, "no values of the condition.*label"),
        ({"conditions": {"labels": [1, 2]}}, "did you mean 'label'"),
    ):
        with pytest.raises(UsageError, match=message):
            Arrays(**{"x": np.ones((2, 3)), "label": [0, 1], "spec": names, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.array([0, 1, 2, 3, 4, 4])}, r"\[1, 5\]"),
        ({"mask": np.array([6] * N)}, r"\[1, 5\]"),
        ({"mask": np.ones((N, 2, 5))}, "mask must be 0 and 1"),
        ({"mask": np.zeros((N, 5), bool)}, "nothing of it is real"),
        ({"conditions": {"obs": np.full((N, 2), np.nan)}}, "'obs' holds NaN"),
        ({"conditions": {"obs": np.ones((N - 1, 2))}}, "'obs'.*shape"),
        ({"conditions": {"obs": np.array(["a"] * N)}}, "numbers"),
        ({"conditions": {"text": (np.ones((N, 2, 2)), np.ones((N, 3)))}}, "mask of 'text'"),
        ({"conditions": {"a b": np.ones((N, 2))}}, "letters"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    with pytest.raises(UsageError, match=message):
        Arrays(**{"x": np.zeros((N, 2, 5)), **change})
    with pytest.raises(UsageError, match="axis after the channels"):
        Arrays(np.zeros((2, 3)), mask=[1, 1])


class Own:
    """A user's data set without a specification."""

    shape, labels, image = (2, 4), 3, False

    def __init__(self, cond: dict, mask=None) -> None:
        self.cond, self.mask = cond, mask

    def __len__(self) -> int:
        return 4

    def batch(self, indices):
        b = len(indices)
        mask = None if self.mask is None else self.mask.expand(b, -1, -1)
        return Batch(
            torch.zeros(b, 2, 4), {k: v.expand(b, *v.shape) for k, v in self.cond.items()}, mask
        )


def test_specs_are_derived():
    label = {"label": torch.tensor(1)}
    assert spec_of(Own(label)) == DataSpec(shape=(2, 4), range=None, labels=3)
    text = {"text": torch.ones(5, 2), "text_mask": torch.ones(5, dtype=torch.bool)}
    found = spec_of(Own({**label, "obs": torch.zeros(3), **text}, torch.ones(1, 4)))
    assert found.conditions == {
        "label": Label(classes=3),
        "obs": Vector(shape=(3,)),
        "text": Sequence(shape=(2,), length=5),
        "mask": Mask(),
    }
    # A mask that differs between channels is for losses alone.
    assert spec_of(Own({}, torch.ones(2, 4))).conditions == {"label": Label(classes=3)}
    with pytest.raises(UsageError, match=r"'style'.*spec"):
        spec_of(Own({"style": torch.tensor(1)}))
    declared = Own({"style": torch.tensor(1)})
    declared.spec = DataSpec(shape=(2, 4), conditions={"style": Label(classes=2)})
    assert spec_of(declared) is declared.spec


# Files.


def test_arrays_are_stored_and_mapped(tmp_path):
    given = rich()
    path = tmp_path / "data.safetensors"
    data = write_arrays(path, **given)
    assert data.spec == SPEC
    assert len(data) == N
    wanted = Arrays(**given)
    for one in (data, Stored(path), open_data(path), pickle.loads(pickle.dumps(data))):
        same(one.batch([5, 0, 3]), wanted.batch([5, 0, 3]))
    assert Stored(path, labels="none").labels == 0
    assert isinstance(data._arrays._x.base, np.memmap)
    assert {*load_file(path)} > {"x", "mask", "cond.text", "cond.text_mask"}


def test_stored_images_open_as_images(tmp_path):
    path = tmp_path / "images.safetensors"
    write_arrays(path, RNG.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8))
    data = open_images(path, 4)
    assert (data.image, data.shape) == (True, (3, 4, 4))
    assert data.batch([0]).x0.abs().max() <= 1
    for wrong in ({"resolution": 8}, {"resolution": 4, "channels": 1}):
        with pytest.raises(UsageError, match="asked for"):
            open_images(path, **wrong)


def header(path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_files_that_are_wrong(tmp_path):
    path = tmp_path / "data.safetensors"
    write_arrays(path, **rich())
    whole = path.read_bytes()
    about = header(path)[0]["__metadata__"]["arrays"]
    arrays = load_file(path)

    def refused(message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Stored(path)

    path.write_bytes(whole[:-1])
    refused("cut short")
    with pytest.raises(UsageError):
        open_data(path)
    path.write_bytes(b"{}")
    refused("cut short")
    save_file(arrays, path, {"other": "1"})
    refused("write_arrays")
    save_file(arrays, path, {"arrays": about.replace('"vector"', '"magic"')})
    refused("magic")
    save_file(arrays, path, {"arrays": "[" * 100_000})
    refused("does not know")
    for change, message in (
        ({"more": np.ones(3)}, "does not describe: more"),
        ({"cond.obs": np.ones((N, 4))}, "'obs'"),
        ({"cond.obs": np.full((N, 3), np.inf)}, "infinite"),
        ({"cond.label": np.full(N, 3)}, "labels lie"),
        ({"x": np.ones((N, 3, 5))}, "declared"),
        ({"x": np.zeros((0, 2, 5))}, "nothing as x"),
        ({"mask": np.zeros((N, 1, 5), bool)}, "nothing of it is real"),
        ({"x": np.ones((N, 2, 5), np.int64)}, "int64"),
    ):
        save_file({**arrays, **change}, path, {"arrays": about})
        refused(message)
    for name, message in (("x", "no array x"), ("cond.obs", "no values"), ("mask", "mask")):
        save_file({k: v for k, v in arrays.items() if k != name}, path, {"arrays": about})
        refused(message)
    with pytest.raises(UsageError, match="end in"):
        write_arrays(tmp_path / "data.npz", np.zeros((2, 2)))
    with pytest.raises(UsageError, match="resolution"):
        open_data(tmp_path)
