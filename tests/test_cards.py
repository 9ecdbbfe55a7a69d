"""Model cards: what the README of a model folder says, its picture, and that its calls run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep.card_text import UNSET, Card
from fewstep.cards import LARGEST, PICTURE, write
from fewstep.conditions import Label, Mask
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.core import UsageError
from fewstep.model import Model, find, load
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.recipes import rebuild
from fewstep.recipes.options import NetworkOptions
from small_nets import shaken
from tiny import fewstep, pictures, trained

NAMES = ("cat", "dog", "owl")
FACTS = Card(
    title="owls",
    text="Made by hand.",
    data="`birds` (the garden): 3 samples",
    licence="CC-BY-4.0",
    options={"points": "18"},
)


def model_of(shape=(1, 8, 8), kind="renoise", network=None, card=None, **data) -> Model:
    network = network or shaken(ResidualMLP(shape, 16, 1))
    sampling = Sampling(
        start=Start(t=80.0, std=80.0),
        kind=kind,
        any_times=True,
        times={} if kind == "ode" else {1: (80.0,), 2: (80.0, 0.6)},
        guidance=Guidance(max=4.0) if data else None,
    )
    contract = Contract(method="cd", data=DataSpec(shape=shape, **data), sampling=sampling)
    return Model(Denoiser(network, EDM(sigma_data=0.5)), contract, card)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def block(card: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", card, re.M | re.S)
    return found


def test_a_card_says_that_the_network_reads_the_scale(tmp_path):
    model = model_of(labels=2, network=shaken(ResidualMLP((1, 8, 8), 16, 1, 2, guidance=True)))
    limits = Guidance(kind="embedded", min=2.0, max=6.0)
    sampling = model.contract.sampling.model_copy(update={"guidance": limits})
    contract = model.contract.model_copy(update={"sampling": sampling})
    card = card_of(Model(model.denoiser, contract).save(tmp_path / "m"))
    assert "`guidance` may lie between 2 and 6" in card
    assert "reads the scale itself; by default it is 2." in card


def test_a_card_says_what_is_known(tmp_path):
    network = shaken(ResidualMLP((1, 8, 8), 16, 1, classes=3))
    named = {"label": Label(classes=3, names=NAMES)}
    card = card_of(model_of(network=network, conditions=named, card=FACTS).save(tmp_path / "m"))
    for part in (
        "# owls",
        "Made by hand.",
        "| source | `birds` (the garden): 3 samples |",
        "| one sample | (1, 8, 8), in [-1, 1] |",
        "| classes | 3: cat, dog, owl |",
        "## Licence\n\nCC-BY-4.0",
        "| points | `18` |",
        "![samples](samples.png)",
        "*16 samples of seed 0, 1 step(s) each.*",
        "times for 1, 2 step(s); other numbers are allowed",
        "`guidance` may lie between 0 and 4",
        "This card has no evaluation of the model.",
    ):
        assert part in card, part


def test_a_card_says_what_is_not_known(tmp_path):
    card = card_of(model_of((2,)).save(tmp_path / "m"))
    assert "# Model of the method cd, made with fewstep" in card
    assert "| source | not recorded |" in card
    assert f"## Licence\n\n{UNSET}" in card
    assert "Not set." in UNSET
    assert "| classes" not in card
    assert "samples.png" not in card
    assert not (tmp_path / "m" / PICTURE).exists()


@pytest.mark.parametrize("kind", ["renoise", "ode"])
@pytest.mark.parametrize("name", ["m", "with space", "it's", 'a "quoted"', "ümlaut"])
def test_the_calls_of_a_card_run(kind, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = model_of(kind=kind)
    model.save(name)
    wanted = model.sample(16, seed=0)
    names: dict = {}
    exec(block(card_of(tmp_path / name), "python"), names)
    torch.testing.assert_close(names["x"].cpu(), wanted)
    command = shlex.split(block(card_of(tmp_path / name), "bash"))
    assert fewstep(capsys, *command[1:]).code == 0
    assert Path("grid.png").is_file()


def test_the_calls_of_models_of_several_lengths_and_of_points(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shape = {"kind": "ode", "range": None}
    model_of((3,), **shape).save("points")
    model_of((1, 6), **shape, conditions={"mask": Mask(length=6)}).save("lines")
    for name, out in (("points", "samples.npz"), ("lines", "grid.png")):
        card = card_of(tmp_path / name)
        exec(block(card, "python"), {})
        assert fewstep(capsys, *shlex.split(block(card, "bash"))[1:]).code == 0
        assert Path(out).is_file()


class Mine(nn.Module):
    """A network that needs a condition which the contract does not know."""

    two_time, cond_keys = False, ("obs",)

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return self.gain * x


def test_networks_of_the_user(tmp_path):
    folder = model_of(network=Mine()).save(tmp_path / "m")
    card = card_of(folder)
    assert "network=Mine(...)" in block(card, "python")
    assert "The command line cannot load the model" in card
    assert "```bash" not in card
    # Nobody can sample it without its condition; it is saved all the same, without a picture.
    assert "samples.png" not in card
    assert load(folder, network=Mine(), device="cpu").sample(1, cond={"obs": [1.0]}).shape[0] == 1


def test_a_model_without_any_times_is_saved(tmp_path):
    model = model_of()
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise")
    model.contract = model.contract.model_copy(update={"sampling": sampling})
    assert "samples.png" not in card_of(model.save(tmp_path / "m"))


@pytest.mark.parametrize(("shape", "small"), [((1, 8, 8), False), ((3, 96, 96), True)])
def test_the_picture_is_small(shape, small, tmp_path, monkeypatch):
    model = model_of(shape)
    noise = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(model, "sample", lambda n, seed: noise[:n])
    folder = model.save(tmp_path / "m")
    assert (folder / PICTURE).stat().st_size <= LARGEST
    with Image.open(folder / PICTURE) as image:
        found, side = image.size, 4 * max(shape[-1], 48) + 3
    assert (max(found) < side) == small
    assert min(found) > 100


def test_the_picture_shows_the_samples_of_the_call(tmp_path, capsys):
    model = model_of()
    folder = model.save(tmp_path / "m")
    assert fewstep(capsys, "sample", folder, "-n", 16, "--out", tmp_path / "x.png").code == 0
    with Image.open(folder / PICTURE) as mine, Image.open(tmp_path / "x.png") as theirs:
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_no_picture_where_none_is_wanted(tmp_path):
    model = model_of()
    model.save(tmp_path / "m", samples=0)
    assert not (tmp_path / "m" / PICTURE).exists()
    assert PICTURE not in card_of(tmp_path / "m")
    write(model, tmp_path / "m")
    assert (tmp_path / "m" / PICTURE).is_file()
    write(model, tmp_path / "m", samples=0)  # and none of before
    assert not (tmp_path / "m" / PICTURE).exists()


def test_facts_are_kept_and_can_be_changed(tmp_path):
    model_of(card=FACTS).save(tmp_path / "m", samples=0)
    again = load(tmp_path / "m", device="cpu")
    assert again.card == FACTS
    again.save(tmp_path / "n", card=dataclasses.replace(again.card, licence="MIT"), samples=0)
    assert "## Licence\n\nMIT" in card_of(tmp_path / "n")
    assert "`birds`" in card_of(tmp_path / "n")
    again.save(tmp_path / "o", card="# Mine")
    assert card_of(tmp_path / "o") == "# Mine"
    assert load(tmp_path / "o", device="cpu").card == FACTS
    plain = model_of().save(tmp_path / "p", samples=0)
    assert "card" not in json.loads((plain / "config.json").read_text())
    assert load(plain, device="cpu").card == Card()


@pytest.mark.parametrize("damaged", [3, {"licence": 3}, {"options": ["a"]}])
def test_damaged_facts_are_refused(damaged, tmp_path):
    folder = model_of((2,)).save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "card": damaged}))
    with pytest.raises(UsageError, match=r"config\.json: card"):
        load(folder)


def test_numbers_are_a_table(tmp_path):
    model = model_of((2,))
    folder = model.save(tmp_path / "m")
    rows = {"1 call": {"fd": 0.32012, "swd": 0.065}, "floor": {"fd": 0.248}}
    write(model, folder, numbers=rows, note="Of five draws.")
    card = card_of(folder)
    assert "|  | fd | swd |\n| --- | --- | --- |" in card
    assert "| 1 call | 0.3201 | 0.065 |\n| floor | 0.248 |  |\n\nOf five draws." in card


# Runs.


def test_the_card_of_a_run_on_its_way_and_at_its_end(tmp_path, capsys):
    own = pictures(tmp_path / "images")
    out = trained(tmp_path / "run", "edm", data=own, steps=4, save_every=2, sample_every=4, keep=2)
    card = card_of(out / "model")
    assert "This edm model was trained with fewstep for 4 steps." in card
    assert f"`{own}` (the user's own files): 12 samples of (3, 16, 16), 2 labels" in card
    assert "| classes | 2: class0, class1 |" in card
    assert f"fewstep sample {out}/model -n 16 --steps 18" in card
    assert "This card has no evaluation of the model." in card
    assert (out / "model" / PICTURE).stat().st_size <= LARGEST
    early = card_of(out / "checkpoints" / "000000002" / "model")
    assert "for 2 steps; 2 steps of its run are left." in early
    assert PICTURE not in early


def test_a_run_knows_the_licence_of_its_model(tmp_path, capsys):
    words = ("train", "toy-edm", "--width", 8, "--blocks", 1, "--train.batch", 8)
    words += ("--train.sample-every", 0, "--out", tmp_path / "run", "--train.steps")
    assert fewstep(capsys, *words, 1, "--licence", "CC-BY-4.0").code == 0
    assert "## Licence\n\nCC-BY-4.0" in card_of(tmp_path / "run" / "model")
    assert "| licence |" not in card_of(tmp_path / "run" / "model")
    assert rebuild(tmp_path / "run").card.licence == "CC-BY-4.0"
    # It is for the card alone, so that a resumed run may have another.
    assert fewstep(capsys, *words, 2, "--licence", "MIT").code == 0
    assert "## Licence\n\nMIT" in card_of(tmp_path / "run" / "model")
    assert load(tmp_path / "run", device="cpu").card.licence == "MIT"


def test_the_card_of_a_short_run_on_a_large_network_has_few_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.training.pictured.WORK", 0.0)
    own = pictures(tmp_path / "images")
    out = trained(tmp_path / "run", "edm", data=own, steps=2, sample_every=2, batch=8)
    assert "*4 samples of seed 0, 18 step(s) each.*" in card_of(out / "model")


def test_the_card_of_a_run_with_a_report_has_its_numbers(tmp_path, capsys, monkeypatch):
    report = {"student": {"1": {"fd": 0.5, "images_per_second": 9.0}, "2": {"fd": 0.25}}}
    report |= {"floor": {"fd": 0.125}, "seconds": 3.0}

    def finish(folder: Path, model: Model) -> None:
        (folder / "metrics.json").write_text(json.dumps(report))

    monkeypatch.setattr("fewstep.recipes.start.report", lambda *_: finish)
    words = ("--train.steps", 2, "--train.batch", 8, "--train.sample-every", 0)
    outcome = fewstep(capsys, "train", "digits-cd", *words, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    card = card_of(tmp_path / "run" / "model")
    for part in (
        "| student, 1 call | 0.5 |",
        "| student, 2 calls | 0.25 |",
        "| floor | 0.125 |",
        "UCI, CC BY 4.0): 1,200 samples",
        "| teacher | `digits-edm` |",
    ):
        assert part in card, part
    assert "images_per_second" not in card
    assert "9" not in card[card.index("## Evaluation") : card.index("## Licence")]
    assert PICTURE not in card  # as the run draws no pictures


def test_the_card_of_a_student_describes_the_network_of_its_teacher(tmp_path):
    teacher = trained(tmp_path / "edm", "toy-edm", steps=2)
    assert "| network | `mlp` |" in card_of(teacher / "model")
    assert "| network.width | `8` |" in card_of(teacher / "model")
    student = trained(tmp_path / "cd", "toy-cd", teacher=teacher, steps=2)
    card = card_of(student / "model")
    assert "| network | `mlp` |" in card
    assert "| network.width | `8` |" in card
    assert "| network.blocks | `1` |" in card
    assert f"| teacher | `{teacher}` |" in card
    # What the recipe has for new weights says nothing of this network.
    for name in (field.name for field in dataclasses.fields(NetworkOptions)):
        assert name == "network" or f"| {name} |" not in card, name


@pytest.mark.parametrize("name", ["digits-cd", "digits-edm"])
def test_the_bundled_models_have_cards(name):
    card = card_of(find(name))
    assert f'fewstep.load("{name}")' in block(card, "python")
    assert "UCI, CC BY 4.0" in card
    assert "| floor |" in card
    assert "## Licence\n\nApache-2.0" in card
    assert (find(name) / PICTURE).stat().st_size <= LARGEST
