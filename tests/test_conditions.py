"""What data says of itself: conditions, their nulls and defaults, and how values are read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fewstep.conditions import Image, Label, Mask, Sequence, Vector
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start, data_spec
from fewstep.core import UsageError
from fewstep.model import BUNDLED, Model, load
from fewstep.models import EDM, Denoiser, Guided
from fewstep.objectives.shared.drop import ConditionDrop, guidance_of
from fewstep.paths import Linear
from oracles import GaussianDenoiser

RICH = DataSpec(
    shape=(2, None),
    range=None,
    conditions={
        "label": Label(classes=3, names=("cat", "dog", "owl")),
        "obs": Vector(shape=(2,)),
        "text": Sequence(shape=(4,), length=3),
        "low": Image(shape=(1, 2, 2)),
        "mask": Mask(length=5),
    },
)


# The declaration.


def test_it_survives_json():
    assert DataSpec.model_validate_json(RICH.model_dump_json()) == RICH
    assert RICH.model_dump(mode="json")["conditions"]["text"] == {
        "kind": "sequence",
        "shape": [4],
        "length": 3,
    }


def test_labels_are_short_for_a_condition():
    short = DataSpec(shape=(2,), labels=3)
    assert short == DataSpec(shape=(2,), conditions={"label": Label(classes=3)})
    assert short == data_spec((2,), 3, True)
    assert (short.labels, short.class_names) == (3, ())
    assert (RICH.labels, RICH.class_names) == (3, ("cat", "dog", "owl"))
    assert data_spec((2,), 0, False).conditions == {}
    assert data_spec((2,), 0, False).labels == 0
    assert data_spec((1, None), 0, False).masked


def test_nulls_have_the_keys_that_networks_read():
    nulls = RICH.nulls
    assert {*nulls} == {"label", "obs", "text", "text_mask", "low"}
    assert nulls["label"].item() == 3
    assert not nulls["text_mask"].any()
    assert nulls["text_mask"].dtype == torch.bool
    assert nulls["text"].shape == (3, 4)
    assert RICH.keys == ("label", "obs", "text", "text_mask", "low", "mask")


def test_defaults():
    found = RICH.defaults([4, 7])
    assert found["label"].tolist() == [1, 1]
    assert found["obs"].tolist() == [[0, 0], [0, 0]]
    assert found["mask"].equal(torch.ones(2, 1, 5))
    assert {*found} == {*RICH.keys}
    assert "text_mask" not in RICH.defaults([0], given=["text"])
    with pytest.raises(UsageError, match="lengths="):
        data_spec((1, None), 0, False).defaults([0])
    whole = DataSpec(shape=(1, 4), conditions={"mask": Mask()})
    assert whole.defaults([0])["mask"].equal(torch.ones(1, 1, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"label": Vector(shape=(2,))}}, "cannot be a vector"),
        ({"conditions": {"there": Mask()}}, "cannot be a mask"),
        ({"conditions": {"mask": Label(classes=2)}}, "cannot be a label"),
        ({"conditions": {"a b": Vector(shape=(2,))}}, "letters"),
        (
            {
                "conditions": {
                    "text": Sequence(shape=(2,), length=2),
                    "text_mask": Vector(shape=(2,)),
                }
            },
            "share a key",
        ),
        ({"shape": (None, 3)}, "last axis"),
        ({"shape": (1, None)}, "condition mask"),
        ({"shape": (3,), "conditions": {"mask": Mask()}}, "axis after the channels"),
        ({"labels": 2, "conditions": {"label": Label(classes=2)}}, "one condition label"),
        ({"labels": True}, "labels must be"),
        ({"conditions": {"x": {"kind": "vector", "shape": [2**20, 2**20]}}}, "values"),
        ({"conditions": {"x": {"kind": "magic"}}}, "magic"),
        ({"conditions": {"x": {"kind": "label", "classes": 2, "names": ["a"]}}}, "names"),
    ],
)
def test_it_contradicts_itself_never(change, message):
    with pytest.raises(ValidationError, match=message):
        DataSpec(**{"shape": (2, 3), **change})


# Values.


@pytest.mark.parametrize(
    ("given", "key", "wanted"),
    [
        ({"label": 2}, "label", [2, 2]),
        ({"label": "dog"}, "label", [1, 1]),
        ({"label": ["owl", 3]}, "label", [2, 3]),
        ({"label": np.array([0, 1], np.uint8)}, "label", [0, 1]),
        ({"obs": [1, 2]}, "obs", [[1, 2], [1, 2]]),
        ({"obs": np.array([[1.0, 2], [3, 4]])}, "obs", [[1, 2], [3, 4]]),
        ({"obs": torch.tensor([[1, 2]])}, "obs", [[1, 2], [1, 2]]),
        ({"text": np.ones((2, 4))}, "text_mask", [[True, True, False]] * 2),
        ({"text": torch.ones(2, 3, 4)}, "text_mask", [[True] * 3] * 2),
        (
            {"text": torch.ones(3, 4), "text_mask": [1, 0, 1]},
            "text_mask",
            [[True, False, True]] * 2,
        ),
        ({"text": (torch.ones(1, 4), torch.tensor([1]))}, "text_mask", [[True, False, False]] * 2),
        ({"low": np.full((1, 2, 2), 255, np.uint8)}, "low", [[[[1, 1], [1, 1]]]] * 2),
        ({"mask": [2, 3]}, "mask", [[[1, 1, 0]], [[1, 1, 1]]]),
        ({"mask": 2}, "mask", [[[1, 1]], [[1, 1]]]),
        ({"mask": torch.tensor([[[True, False]]])}, "mask", [[[1, 0]], [[1, 0]]]),
    ],
)
def test_values_are_converted(given, key, wanted):
    found = RICH.convert(given, 2)
    assert found[key].tolist() == wanted
    kind = {"label": torch.int64, "text_mask": torch.bool}.get(key, torch.float32)
    assert found[key].dtype == kind
    assert all(len(value) == 2 for value in found.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labell": 2}, "did you mean 'label'"),
        ({"text_mask": [1]}, "did you mean 'text'"),
        ({"label": 4}, r"\[0, 2\]"),
        ({"label": "cow"}, "no class 'cow'.*cat, dog, owl"),
        (
            {"label": [0, 1, 2]},
            "expected one label, .* for all samples or 2 of them",
        ),
        ({"label": 0.5}, "a whole number, for all samples"),
        ({"obs": [1, 2, 3]}, r"obs must have the shape \(2\)"),
        ({"obs": torch.ones(3, 2)}, r"got \(3, 2\)"),
        ({"obs": [1, float("nan")]}, "NaN"),
        ({"obs": [1e39, 0]}, "float32"),
        ({"obs": "far"}, "numbers"),
        ({"obs": [1j, 2]}, "complex"),
        ({"text": torch.ones(4, 4)}, "1 to 3 tokens"),
        ({"text": torch.ones(3)}, "text must have"),
        ({"low": torch.ones(2, 2)}, "low must have"),
        ({"mask": [0, 1]}, "lengths must be"),
        ({"mask": torch.zeros(2, 1, 3)}, "nothing of it is real"),
        ({"mask": torch.full((2, 1, 3), 0.5)}, "1 where"),
        ({"mask": torch.ones(2, 2, 3)}, "mask must have"),
    ],
)
def test_values_that_do_not_fit(given, message):
    with pytest.raises(UsageError, match=message):
        RICH.convert(given, 2)


def test_masks_fit_a_fixed_shape():
    fixed = DataSpec(shape=(1, 4), conditions={"mask": Mask()})
    assert fixed.convert({"mask": [2]}, 1)["mask"].tolist() == [[[1, 1, 0, 0]]]
    for wrong in (5, torch.ones(1, 1, 3)):
        with pytest.raises(UsageError):
            fixed.convert({"mask": wrong}, 1)


def test_values_from_the_command_line(tmp_path):
    np.save(tmp_path / "low.npy", np.ones((1, 2, 2)))
    np.savez(tmp_path / "text.npz", tokens=np.ones((2, 4)), mask=np.array([1, 0]))
    texts = ["label=dog", "obs=1,-2.5", f"low={tmp_path}/low.npy", f"text={tmp_path}/text.npz"]
    given = RICH.parse([*texts, "mask=4"])
    found = RICH.convert(given, 2)
    assert found["label"].tolist() == [1, 1]
    assert found["obs"].tolist() == [[1, -2.5]] * 2
    assert found["low"].shape == (2, 1, 2, 2)
    assert found["text_mask"].tolist() == [[True, False, False]] * 2
    assert found["mask"].shape == (2, 1, 4)
    np.save(tmp_path / "bad.npy", np.array([{}]), allow_pickle=True)
    for wrong, message in (
        ("obs", "NAME=VALUE"),
        ("obs=", "NAME=VALUE"),
        ("abs=1", "did you mean 'obs'"),
        ("obs=1,x", "numbers"),
        ("text=hello", ".npz"),
        ("low=0", ".npy"),
        ("label=cow", "cat"),
        ("mask=x", "length"),
        (f"obs={tmp_path}/none.npy", "none.npy"),
        (f"obs={tmp_path}/bad.npy", "bad.npy"),
        (f"obs={tmp_path}/text.npz", "tokens, mask"),
    ):
        with pytest.raises(UsageError, match=message):
            RICH.parse([wrong])
    with pytest.raises(UsageError, match="twice"):
        RICH.parse(["obs=1,2", "obs=3,4"])


# Nulls in dropping and guidance.


def test_a_null_may_be_a_tensor():
    null = {
        "text": torch.arange(6.0).reshape(3, 2),
        "text_mask": torch.tensor([True, False, False]),
    }
    cond = {
        "text": torch.ones(2, 3, 2),
        "text_mask": torch.ones(2, 3, dtype=torch.bool),
        "obs": torch.ones(2, 4),
    }
    found = ConditionDrop(0.5, null).apply(cond, torch.tensor([True, False]))
    assert found["text"][0].equal(null["text"])
    assert found["text_mask"][0].equal(null["text_mask"])
    for key, value in cond.items():
        assert found[key][1].equal(value[1])
    assert found["obs"].equal(cond["obs"])

    seen = []

    class Seen(GaussianDenoiser):
        def forward(self, x, t, s=None, cond=None):
            seen.append(cond)
            return super().forward(x, t, s, cond)

    Guided(Seen(Linear()), null, 2.0)(torch.ones(2, 2), torch.full((2,), 0.5), None, cond)
    (both,) = seen
    for i in (2, 3):
        assert both["text"][i].equal(null["text"])
        assert both["text_mask"][i].equal(null["text_mask"])
    assert both["text"][:2].equal(cond["text"])
    assert both["obs"].equal(torch.ones(4, 4))


def test_guidance_leaves_out_what_training_left_out():
    data = DataSpec(shape=(2,), conditions={"label": Label(classes=3), "obs": Vector(shape=(2,))})
    assert guidance_of(None, data) is None
    assert guidance_of(ConditionDrop(0.0, data.nulls), data) is None
    assert guidance_of(ConditionDrop(0.1, data.nulls), data) == Guidance()
    assert guidance_of(ConditionDrop(0.1, {"label": 3}), DataSpec(shape=(2,), labels=3)) == (
        Guidance()
    )
    some = guidance_of(ConditionDrop(0.1, {"label": 3}), data)
    assert some == Guidance(keys=("label",))
    model = model_of(data, guidance=some)
    model.sample(1, cond={"label": 1, "obs": [5, 6]}, guidance=2.0)
    (both,) = model.denoiser.net.seen
    assert both["label"].tolist() == [1, 3]
    assert both["obs"].tolist() == [[5, 6], [5, 6]]


# Models.


class Pointwise(nn.Module):
    """A network that reads all conditions; each position's answer is its own."""

    two_time = False

    def __init__(self, *cond_keys: str) -> None:
        super().__init__()
        self.cond_keys = cond_keys
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.seen: list[dict] = []

    def forward(self, x, c_noise, s_noise=None, cond=None):
        self.seen.append(dict(cond or {}))
        shift = sum(
            value.float().reshape(len(value), -1).mean(1)
            for key, value in self.seen[-1].items()
            if key != "mask"
        )
        shift = torch.as_tensor(shift, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return torch.tanh(self.gain * x + shift)


def model_of(data: DataSpec, **sampling) -> Model:
    given = {"times": {1: (80.0,), 2: (80.0, 1.0)}, "guidance": Guidance(), **sampling}
    given = {"start": Start(t=80.0, std=80.0), "kind": "renoise", **given}
    network = Pointwise(*data.keys)
    denoiser = Denoiser(network, EDM(sigma_data=0.5))
    return Model(denoiser, Contract(method="cd", data=data, sampling=Sampling(**given)))


def test_given_labels_are_not_overwritten():
    model = model_of(DataSpec(shape=(2,), labels=5))
    assert model.sample(4, cond={"label": 3}).equal(model.sample(4, label=3))
    assert not model.sample(4, cond={"label": 3}).equal(model.sample(4))
    assert model.denoiser.net.seen[0]["label"].tolist() == [3] * 4
    with pytest.raises(UsageError, match="give one of them"):
        model.sample(4, cond={"label": 3}, label=3)
    with pytest.raises(UsageError, match="did you mean 'label'"):
        model.sample(4, cond={"labels": 3})


def test_labels_by_name():
    model = model_of(DataSpec(shape=(2,), conditions={"label": Label(classes=2, names=("a", "b"))}))
    assert model.sample(2, label="b").equal(model.sample(2, label=1))
    assert model.sample(2, label=["a", "b"]).equal(model.sample(2))


def test_all_conditions_reach_the_network():
    model = model_of(RICH)
    x = model.sample(3, cond={"obs": [1, 2], "label": "owl"}, lengths=[2, 4, 3], batch=2)
    assert x.shape == (3, 2, 4)
    seen = model.denoiser.net.seen
    assert [len(one["mask"]) for one in seen] == [2, 1]
    assert {*seen[0]} == {*RICH.keys}
    assert seen[0]["obs"].tolist() == [[1, 2], [1, 2]]
    model.denoiser.net.seen.clear()
    model.sample(1, guidance=2.0, lengths=2)
    (both,) = model.denoiser.net.seen
    assert both["label"].tolist() == [0, 3]
    assert both["mask"].tolist() == [[[1, 1]], [[1, 1]]]


def test_samples_of_several_lengths():
    model = model_of(data_spec((2, None), 0, False), any_times=True)
    lengths = [3, 6, 1]
    together = model.sample(3, lengths=lengths, steps=2)
    for i, length in enumerate(lengths):
        assert not together[i, :, length:].any()
        assert together[i, :, :length].all()
        alone = model.sample(1, first=i, lengths=length, steps=2)
        assert alone.shape == (1, 2, length)
        assert alone[0].equal(together[i, :, :length])
    assert model.sample(3, lengths=lengths, steps=2, batch=1).equal(together)
    mask = torch.zeros(1, 1, 4)
    mask[..., :2] = 1
    assert model.sample(1, cond={"mask": mask}).shape == (1, 2, 4)
    with pytest.raises(UsageError, match="lengths="):
        model.sample(2)
    with pytest.raises(UsageError, match="leave out lengths"):
        model_of(data_spec((2, 4), 0, False)).sample(2, lengths=3)


# Formats of config.json.

OLD = Path(__file__).parent / "fixtures" / "format-1"


def test_format_1_is_read_and_format_2_written(tmp_path):
    model = load(OLD, device="cpu")
    assert model.contract.data == DataSpec(shape=(2,), labels=3)
    # What the version that wrote it drew, two steps at guidance 2.
    wanted = [[0.238107651, 0.392334789], [0.437352598, 0.317780852]]
    torch.testing.assert_close(
        model.sample(2, steps=2, guidance=2.0), torch.tensor(wanted), rtol=0, atol=1e-6
    )
    model.save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["format"] == 2
    assert config["data"] == {
        "shape": [2],
        "range": [-1.0, 1.0],
        "conditions": {"label": {"kind": "label", "classes": 3, "names": None}},
    }
    again = load(tmp_path / "m", device="cpu")
    assert again.contract == model.contract
    assert again.sample(4).equal(model.sample(4))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_read(name, tmp_path):
    model = load(name, device="cpu")
    shape = (1, 8, 8) if name.startswith("digits") else (1, 28, 28)
    assert (model.contract.data.shape, model.contract.data.labels) == (shape, 10)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", device="cpu")
    assert again.contract == model.contract
    assert again.sample(2, steps=1).equal(model.sample(2, steps=1))


def test_rich_contracts_are_written_and_read(tmp_path):
    model = model_of(RICH)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", network=Pointwise(*RICH.keys), device="cpu")
    assert again.contract == model.contract
    assert again.sample(2).equal(model.sample(2))
    assert "obs" in repr(again)
