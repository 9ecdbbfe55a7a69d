"""Students that learn low-rank adapters alone: of a frozen teacher, in every recipe."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fewstep as library
from fewstep.adapters import read_adapter
from fewstep.errors import UsageError
from fewstep.exporting import export
from fewstep.merging import merge
from fewstep.models import LowRank, adapted_layers, merged
from fewstep.pairs import make
from fewstep.recipes import METHODS, rebuild, recipe
from fewstep.training import checkpoints
from fewstep.training.averages import constant
from fewstep.training.check import check_derivative
from fewstep.training.checkpoints import fingerprint
from fewstep.training.config import Run
from fewstep.training.posthoc import PowerFunction
from fewstep.training.snapshots import reconstruct
from fewstep.training.train import train
from fewstep.training.trainer import Trainer
from tiny import fewstep, settings, trained

CPU = torch.device("cpu")
SHORT: dict[str, dict[str, Any]] = {
    "ict": {"first": 10, "last": 20},
    "ct": {"first": 2, "last": 4},
    "ctm": {"solver_steps": 2},
    "imm": {"group": 4},
    "drifting": {"group": 4},
    "progressive": {"first": 2},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher") / "edm", "digits-edm", steps=4)


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of consistency distillation with adapters."""
    run = tmp_path_factory.mktemp("student") / "cd"
    train(built("cd", teacher, lora=2, lora_alpha=6.0), run)
    return run


def built(name: str, teacher: Path | str, **own: Any) -> Run:
    given = {"teacher": str(teacher), **SHORT.get(name, {}), **own}
    few = settings(steps=given.pop("updates", 3), batch=8, lr=1e-2, **given.pop("train", {}))
    run = recipe(f"digits-{name}", **{**given, "train": few}).build()
    return replace(run, finish=None)


def base(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The student's weights that are not adapters, by the teacher's names."""
    state = trainer.objective.student.state_dict()
    own = {k.replace(".layer.", "."): v for k, v in state.items() if ".adapter." not in k}
    return {k: v.clone() for k, v in own.items()}


@pytest.mark.parametrize("name", METHODS)
def test_adapters_learn_and_the_teachers_weights_do_not(name, teacher, tmp_path):
    own: dict[str, Any] = {}
    start = teacher
    if METHODS[name].after:
        start = tmp_path / "first"
        train(built(METHODS[name].after, teacher), start)
    if name in {"dmd", "kd"}:
        make(library.load(teacher, device="cpu"), tmp_path / "pairs", 12, steps=3, paths=1)
        own["pairs"] = str(tmp_path / "pairs")
    run = built(name, start, lora=2, updates=6, **own)
    trainer = Trainer(run.objective, run.data, run.config, run.averages, CPU)
    before = base(trainer)
    source = library.load(start, device="cpu").denoiser.state_dict()
    adapters = {
        n: p.clone() for n, p in run.objective.student.named_parameters() if ".adapter." in n
    }
    assert all(v.equal(before[k]) for k, v in source.items())
    for _ in range(6):  # some students learn at every third step, and then from a moved critic
        trainer.advance()
    trainer.close()
    after = base(trainer)
    assert all(after[k].equal(v) for k, v in source.items())
    new = [k for k in after if k not in source and not after[k].equal(before[k])]
    assert bool(new) == run.objective.student.two_time
    moved = dict(run.objective.student.named_parameters())
    assert sum(not moved[n].equal(v) for n, v in adapters.items()) >= len(adapters) / 2
    model = train(built(name, start, lora=2, **own), tmp_path / "run")
    assert (model.adapter is None) == (run.objective.student.two_time or name == "tcm")
    loaded = library.load(tmp_path / "run", device="cpu")
    assert not adapted_layers(loaded.denoiser)
    steps = min(n for n in (1, 2, 4, 8) if loaded.serves(n))
    assert loaded.sample(2, steps=steps).equal(model.sample(2, steps=steps))


def test_only_adapters_have_gradients_and_optimiser_states(teacher):
    run = built("cd", teacher, lora=2)
    trainer = Trainer(run.objective, run.data, run.config, run.averages, CPU)
    trainer.advance()
    trained_here = {id(p) for p in trainer.trained["student"]}
    adapters = {
        id(p) for m in adapted_layers(run.objective).values() for p in m.adapter.parameters()
    }
    assert trained_here == adapters & trained_here
    assert len(trained_here) == 2 * len(adapted_layers(run.objective.student))
    count = sum(p.numel() for p in trainer.trained["student"])
    states = trainer.optimizers["student"].state.values()
    assert sum(s["exp_avg"].numel() for s in states) == count


def test_the_delivered_model_is_the_student_and_its_average(teacher):
    run = built("cd", teacher, lora=2, lora_alpha=6.0)
    rules = {"ema": constant(0.5)}
    trainer = Trainer(run.objective, run.data, run.config, rules, CPU)
    for _ in range(3):
        trainer.advance()
    batch = run.data.batch([0, 1, 2])
    t = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    answers = []
    for each in (trainer.objective.student, trainer.student("ema")):
        each.eval()
        whole = merged(each)
        assert not adapted_layers(whole)
        names = library.load(teacher, device="cpu").denoiser.state_dict()
        assert whole.state_dict().keys() == names.keys()
        with torch.no_grad():
            own = each(batch.x0, t, None, batch.cond)
            torch.testing.assert_close(
                whole(batch.x0, t, None, batch.cond), own, atol=1e-6, rtol=1e-6
            )
        answers.append(own)
    assert not answers[0].equal(answers[1])
    trainer.close()


def test_a_run_resumes_bit_for_bit(teacher, tmp_path):
    whole = train(built("cd", teacher, lora=2, target=0.9, updates=6), tmp_path / "whole")
    few = built("cd", teacher, lora=2, target=0.9, updates=6)
    first = Trainer(few.objective, few.data, few.config, few.averages, CPU)
    for _ in range(3):
        first.advance()
    state = checkpoints.read(checkpoints.save(tmp_path / "saved", 3, first.state(), keep=1))
    again = built("cd", teacher, lora=2, target=0.9, updates=6)
    second = Trainer(again.objective, again.data, again.config, again.averages, CPU)
    second.load(state, tmp_path)
    for _ in range(3):
        second.advance()
    (name,) = second.averages.copies
    assert fingerprint(merged(second.student(name))) == fingerprint(whole.denoiser)
    rebuilt = train(replace(rebuild(tmp_path / "whole").build(), finish=None), tmp_path / "rebuilt")
    assert fingerprint(rebuilt.denoiser) == fingerprint(whole.denoiser)


def test_a_run_that_stopped_ends_as_one_that_did_not(teacher, tmp_path):
    own: dict[str, Any] = {"lora": 2, "target": 0.9, "rates": (0.5, 0.9)}
    train(built("cd", teacher, updates=6, **own), tmp_path / "whole")
    train(built("cd", teacher, updates=3, **own), tmp_path / "parts")
    train(built("cd", teacher, updates=6, **own), tmp_path / "parts")
    one, other = (
        checkpoints.read(tmp_path / name / "checkpoints/000000006") for name in ("whole", "parts")
    )
    assert one[0].keys() == other[0].keys()
    assert all(one[0][key].equal(other[0][key]) for key in one[0])
    assert one[1]["base"] == other[1]["base"]


@pytest.mark.parametrize("name", ["cd", "pcm", "dmd2", "lcm"])
def test_a_student_uses_its_teachers_weights(name, teacher):
    """Weights that no training changes are in memory once."""
    run = built(name, teacher, lora=2)
    (frozen,) = run.objective.frozen
    theirs = {id(p) for p in run.objective.get_submodule(frozen).parameters()}
    student = run.objective.student
    own = {id(p): n for n, p in student.named_parameters() if ".adapter." not in n}
    assert own.keys() == theirs
    flat = [p for n, p in student.named_parameters() if ".adapter." in n]
    assert len(flat) == 2 * len(adapted_layers(student))


def test_a_teacher_whose_weights_a_student_uses_stays_on_the_device(teacher):
    run = built("cd", teacher, lora=2, train={"offload": True})
    made = Trainer(run.objective, run.data, run.config, run.averages, CPU)
    assert made.offload is not None
    assert made.offload.frozen == []
    plain = built("cd", teacher, lora=2)
    other = Trainer(plain.objective, plain.data, plain.config, plain.averages, CPU)
    for _ in range(2):
        made.advance()
        other.advance()
    one, two = made.state()[0], other.state()[0]
    assert all(one[key].equal(two[key]) for key in one)


def saved_by(run: Run, folder: Path, steps: int = 2) -> tuple[Trainer, Path]:
    made = Trainer(run.objective, run.data, run.config, run.averages, CPU)
    for _ in range(steps):
        made.advance()
    return made, checkpoints.save(folder, made.step, made.state(), keep=1)


@pytest.mark.parametrize("name", ["cd", "pcm", "meanflow"])
def test_a_checkpoint_holds_what_learns(name, teacher, tmp_path):
    run = built(name, teacher, lora=1, rates=(0.5, 0.9))
    made, saved = saved_by(run, tmp_path)
    net = run.objective.student.get_submodule("net")
    layers = sum(1 for _ in adapted_layers(net))
    tensors, values = checkpoints.read(saved)
    learned = [k for k in tensors if k.startswith("objective.student.")]
    buffers = sum(1 for _ in run.objective.student.buffers())
    whole = len(made.trained["student"])
    assert len(learned) == whole + buffers
    assert whole >= 2 * layers
    for average in made.averages.copies:
        own = [k for k in tensors if k.startswith(f"average.{average}.")]
        assert len(own) == len(learned)
    assert len(values["base"]) == 64
    # The copies hold no base of their own either.
    places = {p.data_ptr() for p in run.objective.student.parameters()}
    for copy in made.averages.copies.values():
        apart = [p for p in copy.parameters() if p.data_ptr() not in places]
        assert len(apart) == whole


def test_a_checkpoint_of_whole_weights_resumes(teacher, tmp_path):
    own: dict[str, Any] = {"lora": 2, "target": 0.9}
    first, saved = saved_by(built("cd", teacher, **own), tmp_path / "new")
    tensors, values = checkpoints.read(saved)
    old = dict(tensors)
    for name, value in checkpoints.once(first.objective.student).items():
        old[f"objective.student.{name}"] = value.detach()
        old[f"objective.target.{name}"] = first.objective.target.state_dict()[name]  # pyright: ignore
        for average, copy in first.averages.copies.items():
            old[f"average.{average}.{name}"] = copy.state_dict()[name]
    assert len(old) > len(tensors)
    del values["base"]
    second, third = (
        Trainer(run.objective, run.data, run.config, run.averages, CPU)
        for run in (built("cd", teacher, **own), built("cd", teacher, **own))
    )
    second.load((old, values), saved)
    for each in (first, second):
        each.advance()
    one, other = first.state()[0], second.state()[0]
    assert all(one[key].equal(other[key]) for key in one)
    name = next(n for n in third.base if n.startswith("student."))
    old[f"objective.{name}"] = old[f"objective.{name}"] + 1
    with pytest.raises(UsageError, match="other frozen weights under its adapters"):
        third.load((old, values), saved)


def test_adapters_of_another_teacher_do_not_resume(teacher, tmp_path):
    _, saved = saved_by(built("ct", teacher, lora=2), tmp_path)
    state = checkpoints.read(saved)
    other = built("ct", teacher, lora=2)
    with torch.no_grad():
        next(iter(adapted_layers(other.objective.student).values())).layer.weight.add_(1)
    changed = Trainer(other.objective, other.data, other.config, other.averages, CPU)
    with pytest.raises(UsageError, match="adapters for other frozen weights than this run's"):
        changed.load(state, saved)


def test_the_model_of_a_checkpoint_is_its_adapter_and_the_name_of_the_teacher(teacher, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    shutil.copytree(teacher / "model", place / "teacher")
    own: dict[str, Any] = {"lora": 1, "train": {"save_every": 1}}
    model = train(built("cd", place / "teacher", **own), place)
    kept = place / "checkpoints/000000003/model"
    files = {str(f.relative_to(kept)) for f in kept.rglob("*") if f.is_file()}
    adapter = {f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert files == {"config.json"} | adapter
    place.rename(tmp_path / "moved")
    read = library.load(tmp_path / "moved", step=3, device="cpu")
    assert fingerprint(read.denoiser) == fingerprint(model.denoiser)
    assert read.contract == model.contract
    assert read.adapter is not None
    assert fingerprint(library.load(tmp_path / "moved", step=2, device="cpu").denoiser) != (
        fingerprint(read.denoiser)
    )
    assert (tmp_path / "moved/model/model.safetensors").exists()
    kept = tmp_path / "moved/checkpoints/000000003/model"
    file = kept / "adapter/adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UsageError, match="does not match its sha256"):
        library.load(kept, device="cpu")
    file.write_bytes(whole)
    config = tmp_path / "moved/teacher/config.json"
    config.write_text(config.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(UsageError, match="which has other weights by now"):
        library.load(kept, device="cpu")
    shutil.rmtree(tmp_path / "moved/teacher")
    with pytest.raises(UsageError, match="adapters to another model, which is not there"):
        library.load(kept, device="cpu")


def test_merging_the_teacher_and_the_adapter_is_the_model(teacher, student, capsys, tmp_path):
    model = library.load(student, device="cpu")
    assert model.adapter is not None
    assert {f.alpha for f in model.adapter.layers.values()} == {6.0}
    done = fewstep(capsys, "merge", teacher, student, "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    whole = library.load(tmp_path / "merged", device="cpu")
    assert whole.contract == model.contract
    assert fingerprint(whole.denoiser) == fingerprint(model.denoiser)
    assert whole.sample(3, steps=1).equal(model.sample(3, steps=1))
    half = merge(library.load(teacher, device="cpu"), [student, student], [0.25, 0.75])
    for name, value in half.denoiser.state_dict().items():
        torch.testing.assert_close(value, model.denoiser.state_dict()[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dialect", ["peft", "diffusers", "kohya"])
def test_an_exported_adapter_makes_the_same_model(dialect, teacher, student, capsys, tmp_path):
    out = tmp_path / "lora"
    given = ("--to", "lora", "--dialect", dialect, "--out", out)
    done = fewstep(capsys, "export", student, *given)
    assert done.code == 0, done.err
    assert "changes weights by the same" in done.out
    assert dialect in (out / "README.md").read_text()
    assert fewstep(capsys, "export", student, *given).code == 0  # over itself
    model = library.load(student, device="cpu")
    read = read_adapter(out)
    scale = 1.0 if dialect == "diffusers" else 3.0
    assert {f.scale for f in read.layers.values()} == {scale}
    whole = merge(library.load(teacher, device="cpu"), [out])
    for name, value in whole.denoiser.state_dict().items():
        torch.testing.assert_close(value, model.denoiser.state_dict()[name], atol=1e-6, rtol=1e-6)
    assert whole.contract == model.contract


@pytest.mark.parametrize("name", ["scd", "meanflow"])
def test_derivatives_go_through_adapters(name, teacher):
    check_derivative(built(name, teacher, lora=2).objective, built(name, teacher).data)


def test_two_adapters_learn_on_one_teacher(teacher, tmp_path):
    run = built("dmd2", teacher, lora=2, fake_lora=2)
    assert sum(isinstance(m, LowRank) for m in run.objective.modules()) == 1
    assert adapted_layers(run.objective.student)
    model = train(run, tmp_path / "run")
    assert model.adapter is not None
    again = train(built("dmd2", teacher, lora=2, fake_lora=2), tmp_path / "again")
    assert fingerprint(model.denoiser) == fingerprint(again.denoiser)


def test_the_critic_of_a_student_with_adapters_is_a_whole_copy(teacher):
    run = built("dmd2", teacher, lora=2)
    student = {id(m) for m in adapted_layers(run.objective.student).values()}
    assert {id(m) for m in adapted_layers(run.objective).values()} == student


def test_snapshots_of_averages_hold_whole_weights(teacher, tmp_path):
    run = built("cd", teacher, lora=2, train={"snapshot_every": 1, "save_every": 1})
    run = replace(run, averages={"power-0.1": PowerFunction(0.1)})
    train(run, tmp_path / "run")
    assert reconstruct(tmp_path / "run", 0.1, tmp_path / "made") == 3
    made = library.load(tmp_path / "made", device="cpu")
    assert made.adapter is None
    assert made.sample(2, steps=1).isfinite().all()


def test_every_average_and_checkpoint_has_its_adapter(teacher, tmp_path):
    own = {"rates": (0.5, 0.0), "train": {"save_every": 3}}
    train(built("cd", teacher, lora=2, **own), tmp_path / "run")
    start = library.load(teacher, device="cpu")
    for place in (
        library.load(tmp_path / "run", device="cpu"),
        library.load(tmp_path / "run", average="ema-0", device="cpu"),
        library.load(tmp_path / "run", step=3, device="cpu"),
    ):
        assert place.adapter is not None
        whole = merge(start, [place.adapter])
        for name, value in whole.denoiser.state_dict().items():
            expected = place.denoiser.state_dict()[name]
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)


def test_the_command_line_trains_with_adapters(teacher, capsys, tmp_path):
    run = tmp_path / "run"
    done = fewstep(
        *(capsys, "train", "digits-pcm", "--teacher", teacher, "--lora", 2, "--lora-alpha", 1),
        *("--out", run, "--train.steps", 2, "--train.batch", 8, "--train.sample-every", 0),
    )
    assert done.code == 0, done.err
    assert library.load(run, device="cpu").adapter is not None
    assert fewstep(capsys, "sample", run, "-n", 2, "--out", tmp_path / "grid.png").code == 0


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"lora": 0}, "--lora is the rank of adapters, 1 or more, got 0"),
        ({"lora": -1}, "1 or more, got -1"),
        ({"lora_alpha": 2.0}, "give their rank with --lora"),
        ({"lora": 2, "lora_alpha": 0.0}, "--lora-alpha must be above 0"),
        ({"lora": 2, "lora_alpha": float("nan")}, "--lora-alpha must be above 0"),
        ({"lora": 2, "lora_alpha": float("inf")}, "--lora-alpha must be finite"),
        ({"lora_targets": ("up",)}, "--lora-targets is of adapters; give their rank with --lora"),
        ({"lora": 2, "lora_targets": ()}, "names ends of the names of layers"),
        ({"lora": 2, "lora_targets": ("",)}, "names ends of the names of layers"),
        ({"lora": 2, "lora_targets": ("to_q",)}, "no convolution that ends in to_q"),
    ],
)
def test_options_of_adapters_that_make_no_sense(own, says, teacher):
    with pytest.raises(UsageError, match=says):
        built("cd", teacher, **own)


def test_layers_are_chosen_by_an_option(teacher, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "digits-cd", "--teacher", teacher, "--lora", 2, "--train.steps", 2]
    done = fewstep(capsys, *words, "--lora-targets", "up", "0.down", "--out", out)
    assert done.code == 0, done.err
    changed = {*read_adapter(out).layers}
    assert changed == {"blocks.0.up", "blocks.0.down"}
    assert rebuild(out).start.lora_targets == ("up", "0.down")


def test_adapters_without_a_teacher_are_refused():
    with pytest.raises(UsageError, match=r"--lora trains adapters on a teacher's weights.*none"):
        built("ct", "none", lora=2)


def test_an_adapter_of_another_model_is_refused(student, capsys, tmp_path):
    done = fewstep(capsys, "merge", "digits-edm", student, "--out", tmp_path / "out")
    assert done.code == 2
    assert "adapter of another model" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_model_without_an_adapter_has_none_to_export(teacher, capsys, tmp_path):
    done = fewstep(capsys, "export", teacher, "--to", "lora", "--out", tmp_path / "out")
    assert done.code == 2
    assert "trained without --lora" in done.err
    done = fewstep(capsys, "merge", teacher, teacher, "--out", tmp_path / "out")
    assert done.code == 2
    assert "holds no adapter" in done.err
    with pytest.raises(UsageError, match="leave it out, or export to lora, not torch"):
        export(library.load(teacher, device="cpu"), "torch", tmp_path / "out", dialect="peft")
    assert not (tmp_path / "out").exists()


def test_two_students_cannot_be_added(teacher, student, tmp_path):
    train(built("pcm", teacher, lora=2), tmp_path / "pcm")
    with pytest.raises(UsageError, match="sampled in different ways"):
        merge(library.load(teacher, device="cpu"), [student, tmp_path / "pcm"])
    with pytest.raises(UsageError, match="one finite scale for each of the 1 adapters"):
        merge(library.load(teacher, device="cpu"), [student], [1.0, 2.0])
    with pytest.raises(UsageError, match="one or more adapters"):
        merge(library.load(teacher, device="cpu"), [])
