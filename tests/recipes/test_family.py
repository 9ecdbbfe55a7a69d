"""The family's recipes: every method at every place, from a tiny teacher to samples."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

import fewstep as library
from fewstep.errors import UsageError
from fewstep.models import ConsistencyBoundary, Guided
from fewstep.objectives.meanflow import TrainedGuidance
from fewstep.pairs import make
from fewstep.recipes import METHODS, NAMES, PLACES, rebuild, recipe
from fewstep.recipes.places import DIGITS, IMAGES, PLANE, Place
from fewstep.times import Uniform
from fewstep.training.checkpoints import fingerprint
from fewstep.training.config import Run
from fewstep.training.folder import describe
from fewstep.training.train import dry, train
from tiny import fewstep, pictures, rows, settings, trained

AT = {"digits": DIGITS, "toys": PLANE, "images": IMAGES}
SHORT = {
    "ict": {"first": 10, "last": 20},
    "ct": {"first": 2, "last": 4},
    "ctm": {"solver_steps": 2},
    "imm": {"group": 4},
    "drifting": {"group": 4},
}
"""Options without which a method has no room in a few steps, or in a small batch."""

PAIRED = {"dmd", "kd"}
"""Methods that learn from pairs of their teacher."""

GUIDABLE = {"dmd": {"pairs": "", "regression": 0.0}, "ladd": {"distillation": 1.0}}
"""Options with which a teacher's scale is not that of pairs, or counts at all."""

BATCH = 8


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images, a diffusion model of each place, its pairs, and what TCM starts from."""
    root = tmp_path_factory.mktemp("family")
    found = {"data": pictures(root / "images"), "root": root}
    found["digits"] = trained(root / "digits", "digits-edm", steps=3)
    found["toys"] = trained(root / "toys", "toy-edm", steps=3)
    found["images"] = trained(root / "edm", "edm", data=found["data"], steps=3, batch=BATCH)
    for place in AT:
        found[f"{place}-pairs"] = root / f"{place}-pairs"
        model = library.load(found[place], device="cpu")
        make(model, found[f"{place}-pairs"], 12, steps=3, paths=1)
        train(built(place, "ect", found), root / f"{place}-ect")
        found[f"{place}-ect"] = root / f"{place}-ect"
    return found


def options(place: str, name: str, at: dict[str, Path]) -> dict[str, Any]:
    after = METHODS[name].after
    own: dict[str, Any] = {"teacher": str(at[place if after is None else f"{place}-{after}"])}
    if place == "images":
        own |= {"data": str(at["data"]), "resolution": 16}
    if name in PAIRED:
        own["pairs"] = str(at[f"{place}-pairs"])
    return own | SHORT.get(name, {})


def built(place: str, name: str, at: dict[str, Path], **own: Any) -> Run:
    """A run of a few steps, without its report."""
    few = settings(steps=own.pop("updates", 3), batch=BATCH)
    chosen = recipe(AT[place].named(name), **{**options(place, name, at), **own, "train": few})
    return replace(chosen.build(), finish=None)


everywhere = pytest.mark.parametrize("place", AT)
methods = pytest.mark.parametrize("name", METHODS)


@everywhere
@methods
def test_a_method_trains_samples_and_can_be_built_again(place, name, at, tmp_path):
    run = built(place, name, at)
    model = train(run, tmp_path / "run")
    data = model.contract.data
    assert (tuple(data.shape), data.labels) == (tuple(run.data.shape), run.data.labels)
    served = [n for n in (1, 2, 4, 8) if model.serves(n)]
    assert served
    for n in served:
        x = model.sample(3, steps=n, seed=1)
        assert x.shape == (3, *data.shape)
        assert x.isfinite().all()
    assert [row["skipped"] for row in rows(tmp_path / "run") if "skipped" in row] == [0, 0, 0]

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["run"]["recipe"] == AT[place].named(name)
    if METHODS[name].distils and name != "kd":  # whose pairs know the teacher
        assert record["frozen"]
    again = rebuild(tmp_path / "run").build()
    assert describe(again, torch.device("cpu"), record["frozen"])["run"] == record["run"]
    other = train(replace(again, finish=None), tmp_path / "again")
    loaded = library.load(tmp_path / "run", device="cpu")
    assert fingerprint(loaded.denoiser) == fingerprint(other.denoiser)
    assert loaded.contract == other.contract


@everywhere
@methods
def test_a_student_starts_as_what_it_starts_from(place, name, at):
    run = built(place, name, at)
    student = run.objective.student.eval()
    source = library.load(options(place, name, at)["teacher"], device="cpu").denoiser
    weights = dict(student.named_parameters())
    assert all(torch.equal(weights[k], v) for k, v in source.named_parameters())
    assert (len(weights) > len(dict(source.named_parameters()))) == student.two_time
    if any(isinstance(d.preconditioning, ConsistencyBoundary) for d in (student, source)):
        return
    path = student.path
    reading = source.on(path)
    generator = torch.Generator().manual_seed(0)
    t = path.t_min + (path.t_max - path.t_min) * torch.linspace(0.1, 1, 5, dtype=torch.float64)
    batch = run.data.batch(torch.arange(5).numpy())
    x = path.perturb(batch.x0, torch.randn(batch.x0.shape, generator=generator), t)
    with torch.no_grad():
        own = student(x, t, t if student.two_time else None, batch.cond)
        torch.testing.assert_close(own, reading(x, t, None, batch.cond), rtol=1e-5, atol=1e-6)
        if student.two_time:
            torch.testing.assert_close(student(x, t, t / 2, batch.cond), own, rtol=0, atol=0)


@everywhere
@methods
def test_without_a_teacher(place, name, at, tmp_path):
    if METHODS[name].scratch:
        run = built(place, name, at, teacher="none")
        assert run.note == ""
        assert train(run, tmp_path / "run").sample(2).isfinite().all()
        return
    trained_by = AT[place].named(METHODS[name].after or "edm")
    with pytest.raises(UsageError, match=f"needs a teacher.*fewstep train {trained_by}$"):
        built(place, name, at, teacher="none")


@methods
def test_the_table_says_what_a_method_starts_from(name):
    method, teachers = METHODS[name], {p: AT[p].teacher(METHODS[name]) for p in AT}
    if method.after:
        assert teachers == {p: f"runs/{AT[p].named(method.after)}" for p in AT}
    elif method.diffusion:
        assert set(teachers.values()) == {"none"}
    else:
        assert teachers["digits"] == "digits-edm"
        assert teachers["toys"] == ("none" if method.scratch else "runs/toy-edm")


@everywhere
def test_tcm_wants_the_model_of_its_first_stage(place, at):
    with pytest.raises(UsageError, match=f"is a edm model.*fewstep train {AT[place].named('ect')}"):
        built(place, "tcm", at, teacher=str(at[place]))


@everywhere
@pytest.mark.parametrize("name", ["pcm", "ict"])
def test_a_few_step_model_is_no_teacher(place, name, at):
    with pytest.raises(UsageError, match="a teacher is a diffusion model"):
        built(place, name, at, teacher=str(at[f"{place}-ect"]))


@methods
def test_guidance_is_for_methods_that_distil(name, at):
    if not METHODS[name].distils:
        with pytest.raises(UsageError, match="leave out --guidance"):
            built("images", name, at, guidance=2.0)
        return
    if name == "kd":
        with pytest.raises(UsageError, match=r"guidance: pairs 1\.0, here 2\.0"):
            built("images", name, at, guidance=2.0)
        return
    for scale in (1.0, 2.0):
        objective = built("images", name, at, guidance=scale, **GUIDABLE.get(name, {})).objective
        assert any(isinstance(m, Guided) for m in objective.modules()) == (scale != 1.0)


VARIANTS = {
    "without pairs": ("dmd", {"pairs": "", "regression": 0.0}),
    "two calls": ("kd", {"steps": 2}),
    "low rank": ("dmd2", {"fake_lora": 2}),
    "the teacher's features": ("dmd2", {"features": "teacher", "steps": 2}),
    "no judge": ("dmd2", {"adversarial": 0.0, "steps": 4}),
    "another divergence": ("f-distill", {"divergence": "kl", "features": "teacher"}),
    "the teacher's answers": ("ladd", {"distillation": 1.0, "steps": 2}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_of_distribution_matching(variant, at, tmp_path):
    name, own = VARIANTS[variant]
    first, again = (
        train(built("toys", name, at, **own), tmp_path / run) for run in ("run", "again")
    )
    assert fingerprint(first.denoiser) == fingerprint(again.denoiser)
    assert all(first.serves(n) for n in range(1, own.get("steps", 1) + 1))
    loaded = library.load(tmp_path / "run", device="cpu")
    assert loaded.sample(2, seed=1).equal(first.sample(2, seed=1))


@pytest.mark.parametrize("name", ["dmd2", "f-distill", "ladd"])
def test_several_calls_from_a_lower_level(name, at):
    times = built("digits", name, at, steps=4).objective.generate.times
    assert times[0] == 1.5
    assert all(a > b > 0 for a, b in pairwise(times))
    assert built("digits", name, at, steps=4, level=None).objective.generate.times == pytest.approx(
        [80.0, 8.0, 2.0, 0.5]
    )


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        ("lcm", "guidance_low", 2.0, r"both ends.*--guidance-low 2.0 and --guidance-high None"),
        ("lcm", "ddim_steps", 0, "ddim_steps must be at least 1"),
        ("lcm", "ddim_steps", 501, "at most 500 steps, got 501"),
        ("lcm", "target", 1.0, r"target must lie in \[0, 1\)"),
        ("sid", "a", nan, "--a must be finite, got nan"),
        ("sid", "highest", nan, "--highest must be finite"),
        ("dmd2", "adversarial_critic", nan, "--adversarial-critic must be finite"),
        ("dmd2", "adversarial", inf, "--adversarial must be finite"),
        ("drifting", "temperatures", (0.1, nan), "--temperatures must be finite"),
        ("ladd", "std", -1.0, "std of 0 or more"),
        ("diff-instruct", "std", -1.0, "std of 0 or more"),
        ("rcm", "std", -1.0, "std of 0 or more"),
        ("rcm", "rate", -1.0, "--rate above 0"),
        ("rcm", "warmup", -1.0, r"--warmup in \[0, 1\]"),
        ("rcm", "weight", -1.0, "--weight of 0 or more"),
        ("dmd2", "foo", 1, "digits-dmd2 has no option foo; known: "),
    ],
)
def test_options_that_make_no_sense(name, option, value, says, at):
    with pytest.raises(UsageError, match=says):
        built("digits", name, at, **{option: value})


@pytest.mark.parametrize("embedded", [True, False])
def test_a_range_of_guidance_scales(embedded, at, tmp_path):
    own = {"guidance_low": 2.0, "guidance_high": 5.0, "embed_guidance": embedded}
    run = built("digits", "lcm", at, solver="ddim", **own)
    objective = run.objective
    assert isinstance(objective.step.teacher, Guided)
    assert objective.guidance == Uniform(2.0, 5.0)
    assert ("guidance" in objective.student.cond_keys) == embedded
    train(run, tmp_path / "run")
    model = library.load(tmp_path / "run", device="cpu")
    allowed = model.contract.sampling.guidance
    assert (allowed.embedded, allowed.min) == (embedded, 2.0 if embedded else 0.0)
    for n in (1, 3, 8):
        x = model.sample(3, steps=n, guidance=4.0)
        assert x.isfinite().all()
    assert model.calls(3, 4.0) == (3 if embedded else 6)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"guidance_low": 3.0, "guidance_high": 2.0}, "low <= high"),
        ({"guidance_low": 1.0, "guidance_high": 1.0}, "high not 1"),
        ({"guidance_low": 1.0, "guidance_high": nan}, "guidance_high must be finite|both ends"),
        ({"guidance_low": 1.0, "guidance_high": 3.0, "guidance": 2.0}, "leave one of them out"),
        ({"guidance_low": 1.0, "guidance_high": 30.0}, "cannot be had of this teacher"),
    ],
)
def test_ranges_of_guidance_scales_that_make_no_sense(own, says, at):
    with pytest.raises(UsageError, match=says.replace("_", "[-_]")):
        built("digits", "lcm", at, **own)


def test_a_teacher_without_labels_cannot_be_guided_over_a_range(at):
    with pytest.raises(UsageError, match="guidance needs labels"):
        built("toys", "lcm", at, guidance_low=1.0, guidance_high=3.0)


def test_the_times_of_lcms_scheduler_are_kept(at, tmp_path):
    model = train(built("digits", "lcm", at, ddim_steps=50), tmp_path / "run")
    assert model.times(2) == [999, 499]
    assert model.times(4) == [999, 759, 499, 259]


def test_an_option_that_is_needed():
    with pytest.raises(UsageError, match=r"no teacher 'runs/toy-edm'.*fewstep train toy-edm"):
        recipe("toy-dmd2").build()


@everywhere
@methods
def test_a_dry_run_plans_every_loss(place, name, at):
    told = dry(built(place, name, at))
    assert "in all, at the peak" in told
    for phase in built(place, name, at).objective.phases():
        assert f"{phase.name}: " in told or f"{phase.name}, loss" in told


def test_a_plan_for_processes_that_cannot_share_is_refused(at, monkeypatch):
    run = built("digits", "dmd2", at, fake_lora=2)
    shared = replace(run, config=replace(run.config, accumulation=2, parallel="fsdp"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="shared weights cannot be sharded twice"):
        dry(shared)


def test_too_few_samples_for_a_share_are_told_before(at, tmp_path):
    run = built("digits", "tcm", at)
    few = replace(run, config=settings(steps=3, batch=2))
    with pytest.raises(UsageError, match=r"at least 4 samples, got --train\.batch 2"):
        train(few, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pairs_shard_with_another_byte_is_refused(at, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(at["digits-pairs"], folder)
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsageError, match="does not match its sha256"):
        built("digits", "kd", at, pairs=str(folder))


@pytest.mark.parametrize(("name", "weight"), [("ctm", 1.0), ("pcm", 0.1)])
def test_a_discriminator_of_the_teachers_features(name, weight, at, tmp_path):
    run = built("digits", name, at, adversarial=weight, updates=20)
    judge = run.objective.discriminator
    before = fingerprint(judge.heads)
    assert train(run, tmp_path / "run").sample(2, steps=4).isfinite().all()
    assert fingerprint(judge.heads) != before
    found = rows(tmp_path / "run")[-1]
    assert found["adversarial"] != 0
    assert found["discriminator"] > 0
    assert built("digits", name, at).objective.discriminator is None
    if name == "ctm":
        late = built("digits", name, at, adversarial=weight, adversarial_from=0.5, updates=20)
        assert late.objective.adversarial_start == 10
    with pytest.raises(UsageError, match="0 or more, got -1"):
        built("digits", name, at, adversarial=-1.0)


def test_guidance_is_trained_into_meanflow(at, tmp_path):
    run = built("digits", "meanflow", at, omega=0.5, kappa=0.75)
    assert run.objective.guidance == TrainedGuidance(0.5, 0.75)
    assert train(run, tmp_path / "run").sample(2, label=3).isfinite().all()
    assert built("digits", "meanflow", at).objective.guidance is None
    for own in ({"omega": 2.0}, {"kappa": 0.5}):
        with pytest.raises(UsageError, match=r"guide towards labels.*leave both out"):
            built("toys", "meanflow", at, **own)


@pytest.mark.parametrize("place", ["digits", "images"])
@pytest.mark.parametrize("name", sorted(PAIRED))
def test_the_command_that_makes_pairs_is_told(name, place, at):
    where = {"digits": "runs/digits-pairs", "images": "runs/pairs"}[place]
    command = f"fewstep data pairs {at[place]} -n 10000 --out {where}, and give --pairs {where}"
    with pytest.raises(UsageError, match=re.escape(command)):
        built(place, name, at, pairs="")


def test_pairs_are_to_be_made_of_the_guided_teacher(at):
    with pytest.raises(UsageError, match="--guidance 2 -n 10000"):
        built("images", "kd", at, pairs="", guidance=2.0)


def test_pairs_have_the_states_that_steps_need(at):
    with pytest.raises(
        UsageError, match=r"--steps must be 1 or 2 with the states of .*, got 3.*--paths"
    ):
        built("toys", "kd", at, steps=3)


def test_guidance_needs_a_teacher_that_answers(at):
    with pytest.raises(UsageError, match="without --distillation"):
        built("images", "ladd", at, guidance=2.0)


@pytest.mark.parametrize(("name", "own"), [("imm", {"group": 4}), ("shortcut", {"every": 8})])
def test_batches_hold_whole_groups(name, own, at, tmp_path):
    run = built("digits", name, at, **own)
    nine = replace(run, config=replace(run.config, batch=9))
    message = f"multiple of {own.popitem()[1]} samples, got --train.batch 9"
    with pytest.raises(UsageError, match=message):
        train(nine, tmp_path / "run")


def test_progressives_learning_rate_falls_in_each_stage(at, tmp_path):
    run = built("toys", "progressive", at, first=4, updates=18)
    assert run.config.decay_steps == 6
    falling = replace(run, config=replace(run.config, schedule="linear"))
    train(falling, tmp_path / "run")
    rates = [row["lr"] for row in rows(tmp_path / "run")]
    stage = [1e-3 * (1 - k / 6) for k in range(6)]
    assert rates == pytest.approx(stage * 3)
    assert library.load(tmp_path / "run", device="cpu").times() == [80.0]


def test_a_decay_that_is_asked_for_is_kept(at):
    few = settings(steps=18, decay_steps=5)
    run = recipe("toy-progressive", **options("toys", "progressive", at), train=few).build()
    assert run.config.decay_steps == 5


@pytest.mark.parametrize("place", [p for p in PLACES if p.every], ids=lambda p: p.title)
def test_every_method_has_its_recipe_at_every_place(place: Place):
    for name in METHODS:
        assert NAMES[place.named(name)] == (place, METHODS[name])


@pytest.mark.parametrize("name", ["pcm", "meanflow"])
@pytest.mark.parametrize("labels", [True, False])
def test_images_from_the_command_line(name, labels, at, tmp_path, capsys):
    data = ("--data", at["data"], "--resolution", 16, *(() if labels else ("--no-labels",)))
    few = ("--train.steps", 2, "--train.batch", BATCH, "--train.sample-every", 0)
    teacher = at["images"]
    if not labels:
        teacher, small = tmp_path / "edm", ("--channels", 8, "--multipliers", 1, "--blocks", 1)
        assert fewstep(capsys, "train", "edm", *data, *small, *few, "--out", teacher).code == 0
    given = ("--teacher", teacher) if METHODS[name].distils else ()
    out = tmp_path / "run"
    small = ("--channels", 8, "--multipliers", 1, "--blocks", 1)
    start = given or small
    outcome = fewstep(capsys, "train", name, *data, *start, *few, "--out", out)
    assert outcome.code == 0, outcome.err
    assert (f"teacher: {teacher}" in outcome.err) == bool(given)
    model = library.load(out, device="cpu")
    assert model.contract.data.labels == (2 if labels else 0)
    drawn = fewstep(capsys, "sample", out, "-n", 3, "--out", tmp_path / "x.png")
    assert drawn.code == 0, drawn.err
