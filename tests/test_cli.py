"""The command line: every recipe from its first step to its folder, sampling, evaluating, help."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep as library
from fewstep.cli.edit import VERBS as EDITS
from fewstep.data.catalogue import CATALOGUE
from fewstep.errors import Interrupted
from fewstep.evaluation import Protocol, protocol_of
from fewstep.models import Denoiser
from fewstep.recipes import NAMES, TrainConfig, rebuild
from fewstep.system.files import sha256
from fewstep.training.checkpoints import fingerprint
from fewstep.training.folder import describe
from fewstep.training.train import train
from tiny import OPTIONS, TEACHERS, build, fewstep, pictures, rows, trained, tree

PINNED = Path(__file__).parent / "pinned"
STEPS = 20
FIRST = 5
"""Steps whose losses are pinned; rounding errors of another CPU have not grown by then."""


@pytest.fixture(autouse=True, scope="module")
def small_pictures() -> Iterator[None]:
    """Pictures of a run show 4 samples instead of 64."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fewstep.training.drawing.PICTURED", 4)
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data and one tiny teacher of each kind."""
    root = tmp_path_factory.mktemp("cli")
    images, held_out = pictures(root / "images"), pictures(root / "held-out", 6, seed=1)
    unlabelled = pictures(root / "unlabelled", classes=0)
    at = {"images": images, "held-out": held_out, "unlabelled": unlabelled}
    for recipe in TEACHERS.values():
        at[recipe] = trained(root / recipe, recipe, data=images, steps=STEPS)
    at["digits-cd"] = trained(root / "student", "digits-cd", teacher=at["digits-edm"], steps=2)
    return at


@pytest.fixture
def short_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits' table from one draw of 60 held-out digits instead of five of 597."""
    whole, digits = protocol_of, CATALOGUE["digits"]
    held_out = digits.held_out(597).subset(np.arange(0, 597, 10))
    short = dataclasses.replace(digits, held_out=lambda n: held_out)
    monkeypatch.setitem(CATALOGUE, "digits", short)
    monkeypatch.setattr(
        "fewstep.evaluation.report.protocol_of",
        lambda *given: dataclasses.replace(whole(*given), draws=1),
    )


# Help.

WITHOUT_TORCH = """
import contextlib, io, sys
from fewstep.cli import main

recipes = sys.argv[1].split(",")
for args in (
    [], ["--help"], ["help"], ["--version"], ["recipes"], ["recipes", "--help"],
    ["train"], ["train", "--help"], ["sample", "--help"], ["evaluate", "--help"],
    ["search", "--help"], ["compare", "--help"], ["doctor", "--help"],
    *(["train", name, "--help"] for name in recipes),
    ["trian"], ["train", "toy-emd"], ["train", "toy-cd"], ["sample"], ["sample", "x", "-n", "0"],
):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(args)
    assert "torch" not in sys.modules, args
import fewstep
assert fewstep.__version__ and fewstep.recipes.NAMES
assert "torch" not in sys.modules, "import fewstep"
"""


def test_help_and_simple_mistakes_import_no_torch():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, ",".join(NAMES)], check=True)


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_verb(args, capsys):
    outcome = fewstep(capsys, *args)
    assert (outcome.code, outcome.err) == (0, "")
    for verb in ("recipes", "train", "sample", "evaluate", "compare", "search", "doctor"):
        assert f"fewstep {verb}" in outcome.out


def test_train_without_a_recipe_names_the_list(capsys):
    outcome = fewstep(capsys, "train")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert "fewstep recipes" in outcome.err


def test_version(capsys):
    assert fewstep(capsys, "--version").out == f"{library.__version__}\n"


@pytest.mark.parametrize("args", [("recipes",), ("train", "-h"), ("train", "--help")])
def test_the_table_lists_every_recipe(args, capsys):
    outcome = fewstep(capsys, *args)
    assert (outcome.code, outcome.err) == (0, "")
    table = outcome.out.splitlines()[-len(NAMES) - 1 :]
    assert table[0].split() == ["recipe", "method", "data", "teacher", "cost", "result"]
    assert [line.split()[0] for line in table[1:]] == [*NAMES]


def test_the_table_takes_words(capsys):
    outcome = fewstep(capsys, "recipes", "digits", "scd")
    names = [line.split()[0] for line in outcome.out.splitlines()[1:]]
    assert "digits-scd" in names
    assert all(name.startswith("digits-") for name in names)
    outcome = fewstep(capsys, "recipes", "no-such")
    assert outcome.code == 2
    assert "'no-such'" in outcome.err


@pytest.mark.parametrize("recipe", NAMES)
def test_help_of_recipes(recipe, capsys):
    outcome = fewstep(capsys, "train", recipe, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    own = {name.replace("_", "-") for name in OPTIONS.get(recipe, {})}
    fields = {f"train.{f.name.replace('_', '-')}" for f in dataclasses.fields(TrainConfig)}
    for option in {"out", "fresh", "dry-run"} | own | fields:
        assert f"--{option}" in outcome.out


VERBS = (
    *("sample", "evaluate", "search", "doctor", "export", "import", "average", "merge", "compare"),
    *(
        "plot",
        "serve",
        "push",
        "bench",
        "status",
        "train digits-cd",
        "data check",
        "data prepare",
        "data codec",
    ),
    *("data encode", "data pairs"),
    *(f"edit {verb}" for verb in EDITS),
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_verbs(verb, capsys):
    outcome = fewstep(capsys, *verb.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"usage: fewstep {verb}" in outcome.out
    # An option that may be left out shows the kind of its values; its words say the default.
    assert "{None" not in outcome.out
    assert "default: None" not in " ".join(outcome.out.split())


def test_every_verb_has_its_help_tested(capsys):
    usage = [line.split() for line in fewstep(capsys, "--help").out.splitlines()]
    verbs = [words[1:] for words in usage if words[:1] == ["fewstep"]]
    shown = {" ".join(words[: 2 if words[0] == "data" else 1]) for words in verbs}
    tested = {verb if verb.startswith("data") else verb.split()[0] for verb in VERBS}
    assert shown - {"recipes"} == tested


def test_descriptions_of_options_are_wrapped_once(capsys):
    lines = fewstep(capsys, "sample", "--help").out.splitlines()
    first = next(i for i, line in enumerate(lines) if "--times" in line) - 1
    words = " ".join(line.strip("│ ") for line in lines[first - 2 : first + 1])
    assert "Each step of a consistency model after the first adds noise to its answer" in words


def test_help_of_compare(capsys):
    outcome = fewstep(capsys, "compare", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    for option in ("data", "methods", "budget", "seeds", "steps", "teacher", "held-out", "out"):
        assert f"--{option}" in outcome.out


# Recipes.


def command(recipe: str, out: Path, places: dict[str, Path]) -> list[object]:
    options: list[object] = []
    for name, value in OPTIONS[recipe].items():
        options += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    if recipe in {"edm", "cd", "ct"}:
        options += ["--data", places["images"]]
    if recipe in TEACHERS:
        options += ["--teacher", places[TEACHERS[recipe]]]
    train = {"steps": STEPS, "batch": 16, "log-every": 1, "sample-every": STEPS, "warmup": 2}
    if recipe == "digits-ct":  # pinned from new weights, at their learning rate
        train["lr"] = 2e-3
    options += [part for name, value in train.items() for part in (f"--train.{name}", value)]
    return ["train", recipe, *options, "--out", out]


@pytest.mark.usefixtures("short_protocol")
@pytest.mark.parametrize("recipe", OPTIONS)
def test_recipe(recipe, places, tmp_path, capsys):
    out = tmp_path / "run"
    outcome = fewstep(capsys, *command(recipe, out, places))
    assert outcome.code == 0, outcome.err
    assert f"starting in {out}" in outcome.err
    if recipe in TEACHERS:
        assert f"teacher: {places[TEACHERS[recipe]]}" in outcome.err

    found = {name for name, content in tree(out).items() if content is not None}
    pictured = {f"samples/{step:09d}{of}.png" for step in (0, STEPS) for of in ("", "-online")}
    saved = {f"checkpoints/000000020/state.{kind}" for kind in ("json", "safetensors")}
    files = ("model.safetensors", "config.json", "README.md")
    model = {f"{at}model/{name}" for at in ("", "checkpoints/000000020/") for name in files}
    model |= {"model/samples.png"} if recipe.split("-")[0] != "toy" else set()
    report = {"metrics.json", "samples/comparison.png"} if recipe.startswith("digits") else set()
    assert found == {".lock", "run.json", "log.jsonl"} | pictured | saved | model | report

    losses = [
        next(v for k, v in row.items() if k in {"denoising", "consistency"}) for row in rows(out)
    ]
    assert [row["step"] for row in rows(out)] == list(range(1, STEPS + 1))
    assert all(row["skipped"] == 0 for row in rows(out))
    if os.environ.get("FEWSTEP_PIN"):
        PINNED.mkdir(exist_ok=True)
        (PINNED / f"{recipe}.json").write_text(json.dumps({"losses": losses[:FIRST]}) + "\n")
    pinned = json.loads((PINNED / f"{recipe}.json").read_text())["losses"]
    np.testing.assert_allclose(losses[:FIRST], pinned, rtol=1e-5)

    config = json.loads((out / "model" / "config.json").read_text())
    assert config["method"] == {"edm": "edm", "cd": "cd", "ct": "ct"}[recipe.split("-")[-1]]
    assert config["sha256"] == sha256((out / "model" / "model.safetensors").read_bytes())
    x = library.load(out, device="cpu").sample(3, seed=1)
    assert tuple(x.shape[1:]) == tuple(config["data"]["shape"])
    assert x.isfinite().all()
    if report:
        written = json.loads((out / "metrics.json").read_text())
        columns = {"fd", "swd", "fd_train", "swd_train", "nn", "images_per_second"}
        student = "teacher" if recipe == "digits-edm" else "student"
        assert all(set(row) == columns for row in written[student].values())
        assert {"fd", "swd"} == set(written["floor"])
        assert written["seconds"] > 0
        assert f"wrote {out}/metrics.json" in outcome.out
        assert all(part in outcome.out for part in ("floor", "speed-up", f"{student}, "))


@pytest.mark.usefixtures("short_protocol")
@pytest.mark.parametrize("recipe", OPTIONS)
def test_a_run_can_be_built_again_from_its_record(recipe, places, tmp_path, capsys):
    out = tmp_path / "run"
    args = command(recipe, out, places)
    args[args.index("--train.steps") + 1] = 2
    assert fewstep(capsys, *args).code == 0
    record = json.loads((out / "run.json").read_text())
    told = record["run"]
    assert told["recipe"] == recipe
    assert {"versions", "commit", "device", "frozen", "parameters"} <= set(record)
    assert bool(record["frozen"]) == (recipe in TEACHERS)

    again = rebuild(out).build()
    assert describe(again, torch.device("cpu"), record["frozen"])["run"] == told
    again = dataclasses.replace(again, finish=None)
    train(again, tmp_path / "again")
    left, right = (library.load(tmp_path / p, device="cpu") for p in ("run", "again"))
    assert fingerprint(left.denoiser) == fingerprint(right.denoiser)
    assert left.contract == right.contract


def test_default_folder_and_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ("--width", 8, "--blocks", 1, "--train.steps", 2, "--train.batch", 4, "--train.lr", 0.001)
    assert fewstep(capsys, "train", "toy-edm", *few, "--train.schedule", "constant").code == 0
    model = library.train(build("toy-edm", steps=2, batch=4, warmup=100), tmp_path / "python")
    default = library.load("runs/toy-edm", device="cpu")
    assert fingerprint(model.denoiser) == fingerprint(default.denoiser)


def test_dropout_is_for_teachers_only(places):
    run = build("cd", data=places["images"], teacher=places["edm"])
    assert {m.p for m in run.objective.student.modules() if isinstance(m, torch.nn.Dropout)} == {
        0.0
    }
    assert {m.p for m in run.objective.step.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    student, teacher = run.objective.student.state_dict(), run.objective.step.teacher.state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in student.items())


def test_images_without_labels(places, tmp_path, capsys):
    few = ("--train.steps", 1, "--train.batch", 2, "--train.sample-every", 0, "--channels", 8)
    net = ("--multipliers", 1, "--blocks", 1, "--resolution", 8)
    for extra in (("--data", places["images"], "--no-labels"), ("--data", places["unlabelled"])):
        out = tmp_path / str(len(extra))
        assert fewstep(capsys, "train", "edm", *few, *net, *extra, "--out", out).code == 0
        assert library.load(out, device="cpu").contract.data.labels == 0


# Sampling.


@pytest.mark.parametrize(
    ("n", "columns", "size"),
    # Digits are enlarged 6 times to 48 pixels, with gaps of 3.
    [(5, None, (3 * 51 - 3, 2 * 51 - 3)), (1, None, (48, 48)), (5, 5, (5 * 51 - 3, 48))],
)
def test_a_grid(n, columns, size, places, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    args = () if columns is None else ("--columns", columns)
    outcome = fewstep(
        capsys, "sample", places["digits-edm"], "-n", n, "--steps", 2, "--out", out, *args
    )
    assert outcome.code == 0
    assert outcome.out == f"wrote {n} sample(s) of 3 network call(s) each to {out}\n"
    assert outcome.err == f"model: {places['digits-edm']}/model\n"
    with Image.open(out) as image:
        assert image.size == size
    assert [p.name for p in out.parent.iterdir()] == ["grid.png"]


def test_a_cloud(places, tmp_path, capsys):
    out = tmp_path / "cloud.png"
    assert fewstep(capsys, "sample", places["toy-edm"], "--steps", 2, "--out", out).code == 0
    with Image.open(out) as image:
        assert image.size == (480, 480)


def test_without_out(places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = fewstep(capsys, "sample", places["digits-cd"])
    assert outcome.out == "wrote 64 sample(s) of 1 network call(s) each to samples.png\n"
    assert (tmp_path / "samples.png").is_file()


def drawn(capsys, out: Path, model: Path, *args: object) -> tuple[np.ndarray, np.ndarray]:
    assert fewstep(capsys, "sample", model, "--out", out, *args).code == 0
    with np.load(out) as archive:
        assert sorted(archive) == ["label", "x"]
        return archive["x"], archive["label"]


def test_arrays(places, tmp_path, capsys):
    out = tmp_path / "x.npz"
    x, label = drawn(capsys, out, places["digits-edm"], "-n", 12, "--steps", 2)
    assert (x.shape, x.dtype) == ((12, 1, 8, 8), np.float32)
    assert -1 <= x.min() < x.max() <= 1
    assert label.dtype == np.int64
    assert label.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    _, label = drawn(capsys, out, places["digits-edm"], "-n", 3, "--steps", 2, "--label", 7)
    assert label.tolist() == [7, 7, 7]
    x, label = drawn(capsys, out, places["toy-edm"], "-n", 3, "--steps", 2)
    assert (x.shape, label.tolist()) == ((3, 2), [0, 0, 0])


def test_a_sample_is_a_function_of_seed_and_index(places, tmp_path, capsys):
    out, model = tmp_path / "x.npz", places["digits-edm"]
    few, _ = drawn(capsys, out, model, "-n", 3, "--steps", 2, "--seed", 4)
    many, _ = drawn(capsys, out, model, "-n", 13, "--steps", 2, "--seed", 4)
    # Batches of other sizes may sum in another order.
    np.testing.assert_allclose(few, many[:3], atol=1e-5)
    other, _ = drawn(capsys, out, model, "-n", 3, "--steps", 2, "--seed", 5)
    assert np.abs(other - few).max() > 0.1
    assert np.abs(many[0] - many[10]).max() > 0.1


def test_seeds(places, tmp_path, capsys):
    out, model = tmp_path / "x.npz", places["digits-cd"]
    args = ("--steps", 1, "--label", 3)
    several, label = drawn(capsys, out, model, *args, "--seeds", "0-3,9")
    assert label.tolist() == [3] * 5
    one, _ = drawn(capsys, out, model, *args, "--seeds", "9")
    np.testing.assert_allclose(one[0], several[4], atol=1e-5)
    first, _ = drawn(capsys, out, model, *args, "-n", 1, "--seed", 2)
    np.testing.assert_allclose(first[0], several[2], atol=1e-5)


def test_a_folder_of_seeds(places, tmp_path, capsys):
    out = tmp_path / "pictures"
    args = ("sample", places["digits-cd"], "--label", 3, "--out", out)
    assert fewstep(capsys, *args, "--seeds", "5,1-2").code == 0
    first = tree(out)
    assert sorted(first) == ["000001.png", "000002.png", "000005.png"]
    with Image.open(out / "000005.png") as image:
        assert image.size == (48, 48)
    # Again on the same folder, whatever else is drawn: the same picture.
    assert fewstep(capsys, *args, "--seeds", "4-5").code == 0
    assert tree(out)["000005.png"] == first["000005.png"]


@pytest.mark.parametrize(
    ("model", "args", "calls"),
    [
        ("digits-cd", (), 1),
        ("digits-cd", ("--steps", 2), 2),
        ("digits-cd", ("--steps", 3), 3),
        ("digits-cd", ("--times", "80,5,1,0.5"), 4),
        ("digits-edm", (), 35),
        ("digits-edm", ("--steps", 3), 5),
        ("digits-edm", ("--steps", 3, "--guidance", 2), 10),
        ("digits-edm", ("--steps", 3, "--guidance", 1), 5),
        ("digits-edm", ("--times", "80,5,1"), 5),
        ("digits-edm", ("--times", "80,5,1", "--guidance", 2), 10),
    ],
)
def test_network_calls_are_counted(model, args, calls, places, tmp_path, capsys, monkeypatch):
    counted, own = [], Denoiser.forward

    def counting(self, x, *rest):
        counted.append(len(x))
        return own(self, x, *rest)

    monkeypatch.setattr(Denoiser, "forward", counting)
    out = tmp_path / "x.npz"
    outcome = fewstep(capsys, "sample", places[model], "-n", 2, "--out", out, *args)
    assert f" {calls} network call(s) each" in outcome.out
    assert sum(counted) == 2 * calls


def test_times_are_the_contracts(places, tmp_path, capsys):
    out, model = tmp_path / "x.npz", places["digits-cd"]
    two, _ = drawn(capsys, out, model, "-n", 2, "--steps", 2)
    times, _ = drawn(capsys, out, model, "-n", 2, "--times", "80,2")
    np.testing.assert_array_equal(two, times)
    other, _ = drawn(capsys, out, model, "-n", 2, "--times", "80,0.3")
    assert np.abs(two - other).max() > 1e-3


# Evaluating.


@pytest.mark.usefixtures("short_protocol")
def test_evaluate_digits(places, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    outcome = fewstep(capsys, "evaluate", places["digits-cd"], "--steps", "1,2", "--out", out)
    assert outcome.code == 0, outcome.err
    header, *lines = outcome.out.splitlines()
    assert " ".join(header.split()) == "fd swd fd train swd train nn images/s speed-up"
    assert [line[:7].strip() for line in lines[:3]] == ["1 call", "2 calls", "floor"]
    assert lines[-1] == f"wrote {out}"
    written = json.loads(out.read_text())
    assert list(written["model"]) == ["1", "2"]
    assert f"{written['model']['1']['fd']:.3f}" in lines[0]
    assert f"{written['floor']['fd']:.3f}" in lines[2]


@pytest.mark.usefixtures("short_protocol")
@pytest.mark.parametrize(
    ("model", "lines"), [("digits-cd", ["1 call", "2 calls"]), ("digits-edm", ["35 calls"])]
)
def test_evaluate_takes_the_steps_of_a_sample(model, lines, places, capsys):
    outcome = fewstep(capsys, "evaluate", places[model], "--metrics", "swd")
    assert outcome.code == 0, outcome.err
    found = [line.split("  ")[0].strip() for line in outcome.out.splitlines()[1:]]
    assert found[: len(lines) + 1] == [*lines, "floor"]


@pytest.mark.usefixtures("short_protocol")
def test_evaluate_counts_guided_calls_twice(places, capsys):
    outcome = fewstep(capsys, "evaluate", places["digits-edm"], "--steps", 2, "--guidance", 2)
    assert outcome.code == 0
    assert outcome.out.splitlines()[1].startswith("6 calls")


def test_evaluate_images(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.evaluation.named.Protocol", partial(Protocol, draws=1))
    out = tmp_path / "new" / "metrics.json"
    args = ("--data", places["images"], "--held-out", places["held-out"], "--steps", 1)
    outcome = fewstep(capsys, "evaluate", places["edm"], *args, "-n", 4, "--out", out)
    assert outcome.code == 0, outcome.err
    assert set(json.loads(out.read_text())) == {"model", "floor"}


def test_an_interrupted_comparison_exits_as_a_training_does(monkeypatch, capsys):
    def stopped(study: object, out: Path) -> Path:
        raise Interrupted(signal.SIGTERM, out)

    monkeypatch.setattr("fewstep.compare.Study.run", stopped)
    outcome = fewstep(capsys, "compare", "--methods", "cd")
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.err.startswith("fewstep: interrupted; saved runs/compare-digits")
