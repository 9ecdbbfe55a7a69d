"""Names and values that Python gives to recipes and to ``fewstep.train``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tyro

import fewstep
from fewstep.data import Arrays
from fewstep.errors import UsageError
from fewstep.recipes import recipe
from fewstep.recipes.options import AverageOptions, NetworkOptions
from fewstep.training.checkpoints import fingerprint
from tiny import build, settings

SMALL = {"width": 8, "blocks": 1}


def test_train_takes_the_name_of_a_recipe(tmp_path, monkeypatch):
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fewstep.training.train.train", lambda run, out, *, fresh: seen.append((run, out, fresh))
    )
    fewstep.train("toy-edm")
    fewstep.train("toy-edm", "elsewhere", fresh=True)
    fewstep.train(recipe("toy-edm", width=8))
    assert [run.name for run, *_ in seen] == ["toy-edm"] * 3
    assert seen[2][0].network.width == 8
    folders = [(str(out), fresh) for _, out, fresh in seen]
    assert folders == [("runs/toy-edm", False), ("elsewhere", True), ("runs/toy-edm", False)]


def test_train_by_recipe_and_by_run_are_the_same(tmp_path):
    chosen = recipe("toy-edm", **SMALL, train=settings(steps=2))
    by_recipe = fewstep.train(chosen, tmp_path / "a")
    by_run = fewstep.train(build("toy-edm", steps=2), str(tmp_path / "b"))
    assert fingerprint(by_recipe.denoiser) == fingerprint(by_run.denoiser)
    assert (tmp_path / "b" / "model" / "config.json").is_file()


@pytest.mark.parametrize("wrong", [3, None, Path("runs/digits-cd"), {"recipe": "digits-cd"}])
def test_train_refuses_what_is_no_recipe(wrong, tmp_path):
    with pytest.raises(UsageError, match="takes a recipe, its name or a run, got"):
        fewstep.train(wrong, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_train_needs_a_folder_for_a_run_and_a_known_name():
    with pytest.raises(UsageError, match="give out=FOLDER"):
        fewstep.train(build("toy-edm", steps=2))
    with pytest.raises(UsageError, match="did you mean 'toy-edm'"):
        fewstep.train("toy-emd")


@pytest.mark.parametrize(
    "options", [{"train": {}}, {"train": {"steps": 3}, "data": "moons"}, {"device": "cpu"}]
)
@pytest.mark.parametrize("first", ["toy-edm", recipe("toy-edm"), 3])
def test_train_says_where_options_belong(options, first, tmp_path):
    with pytest.raises(UsageError) as refused:
        fewstep.train(first, tmp_path / "x", **options)
    text = str(refused.value)
    assert f"got {', '.join(options)} beside the run" in text
    assert "fewstep.train(fewstep.recipe(NAME, data=..., train={'steps': 500}), out=FOLDER)" in text
    assert not (tmp_path / "x").exists()


def test_data_of_a_recipe_has_a_name_and_the_message_says_how():
    data = Arrays(np.zeros((4, 2), np.float32))
    for change in (lambda **o: recipe("toy-edm", **o), recipe("toy-edm").change):
        for option in ("data", "held_out"):
            with pytest.raises(UsageError) as refused:
                change(**{option: data})
            text = str(refused.value)
            assert f"toy-edm: {option} is a name or a path" in text
            assert "got a data set in memory (Arrays)" in text
            assert "fewstep.data.write_arrays(FILE, x, label)" in text


@pytest.mark.parametrize("wrong", [3, "steps=3", None, [("steps", 3)]])
def test_train_settings_are_given_by_name(wrong):
    for change in (lambda **o: recipe("digits-cd", **o), recipe("digits-cd").change):
        with pytest.raises(UsageError, match="train takes a TrainConfig or some of its settings"):
            change(train=wrong)


def test_names_that_are_no_text():
    for wrong in (7, None, ["digits-cd"]):
        with pytest.raises(UsageError, match="unknown recipe"):
            recipe(wrong)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 0),
        ("width", -3),
        ("blocks", 0),
        ("multipliers", (1, 0)),
        ("widths", [16, -1]),
        ("fourier_scale", 0.0),
    ],
)
def test_impossible_sizes_are_refused_at_once(option, value):
    said = f"--{option.replace('_', '-')} must be above 0, got"
    with pytest.raises(UsageError, match=said):
        recipe("digits-edm").change(**{option: value})
    with pytest.raises(UsageError, match=said):
        recipe("digits-edm", **{option: value})


@pytest.mark.parametrize("option", ["dropout", "condition_drop", "augment"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_refused_at_once(option, value):
    said = rf"--{option.replace('_', '-')} must lie in \[0, 1\), got"
    with pytest.raises(UsageError, match=said):
        recipe("digits-edm").change(**{option: value})


def test_lists_on_the_command_line():
    for words, value in ((["16", "32"], (16, 32)), (["None"], None), (["7"], (7,))):
        assert tyro.cli(NetworkOptions, args=["--widths", *words]).widths == value
    assert tyro.cli(AverageOptions, args=["--rates", "0.9", "0.99"]).rates == (0.9, 0.99)
    assert tyro.cli(AverageOptions, args=[]).rates == (0.999,)


def test_possible_values_are_taken():
    made = recipe("edm").change(
        width=1, multipliers=[2, 1], widths=(3,), double_norm=False, dropout=0.0, augment=0.99
    )
    assert made.network.multipliers == (2, 1)
    assert made.network.width == 1
    assert made.augment.augment == 0.99
