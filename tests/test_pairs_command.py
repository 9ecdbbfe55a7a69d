"""fewstep data pairs: what it writes, also killed and repeated or in several processes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.cli import main
from fewstep.cli.values import SOLVER_NAMES
from fewstep.core import UsageError
from fewstep.data import Pairs
from fewstep.model import SampleNoise, load
from fewstep.pairs import make
from fewstep.sampling_options import SOLVERS
from fewstep.solvers import STEPS, dpmpp_2m, ode
from fewstep.training.checkpoints import fingerprint
from survive import born, dying, ended
from teachers import pictures, points
from tiny import fewstep, tree


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    """Models that the command can be given."""
    root = tmp_path_factory.mktemp("models")
    points().save(root / "points")
    pictures().save(root / "pictures")
    return root


def words(at: Path, out: Path, *more: object) -> list[str]:
    """Eleven pairs in three shards of two batches each, but the last."""
    given = ("-n", 11, "--shard-size", 4, "--batch", 3, "--steps", 3, "--device", "cpu", *more)
    return ["data", "pairs", str(at), "--out", str(out), *map(str, given)]


def read(out: Path) -> dict[str, torch.Tensor]:
    pairs = Pairs(out, verify=True)
    return pairs.batch(range(len(pairs))).aux


# What is in them.


def test_what_it_prints(at, tmp_path, capsys):
    out = tmp_path / "new" / "pairs"
    outcome = fewstep(capsys, *words(at / "pictures", out))
    assert outcome.code == 0
    assert outcome.out == f"made 3 shard(s), kept 0; wrote 11 pair(s) of 1x8x8 to {out}\n"
    assert outcome.err == f"model: {at / 'pictures'}\n"
    found = tree(out)
    assert sorted(found) == [
        ".lock",
        *(f"pairs-0000{i}.safetensors" for i in range(3)),
        "pairs.json",
    ]
    outcome = fewstep(capsys, *words(at / "pictures", out))
    assert outcome.out == f"made 0 shard(s), kept 3; wrote 11 pair(s) of 1x8x8 to {out}\n"
    assert tree(out) == found


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("label", [None, 1, 3])
def test_they_are_the_samples_of_the_same_seed(guidance, label, tmp_path):
    model = pictures()
    make(
        model,
        tmp_path / "a",
        7,
        guidance=guidance,
        label=label,
        seed=5,
        shard_size=4,
        batch=3,
        steps=5,
    )
    found = read(tmp_path / "a")
    x = model.sample(7, steps=5, seed=5, guidance=guidance, label=label)
    assert float((found["pair_x"].clamp(-1, 1) - x).abs().max()) < 1e-5
    noise = SampleNoise([(5, i) for i in range(7)], (1, 8, 8))(0)
    assert torch.equal(found["pair_noise"], noise)
    assert found["pair_label"].tolist() == (
        [i % 3 for i in range(7)] if label is None else [label] * 7
    )


def test_in_one_batch_they_are_the_samples_bit_for_bit_and_not_limited(tmp_path):
    model = pictures()
    make(model, tmp_path / "a", 7)
    x = read(tmp_path / "a")["pair_x"]
    assert torch.equal(x.clamp(-1, 1), model.sample(7))
    assert float(x.abs().max()) > 1
    about = Pairs(tmp_path / "a").about
    assert (about.solver, about.steps, about.guidance, about.label) == ("heun", 18, 1.0, None)
    assert about.teacher == fingerprint(model.denoiser)


def test_the_bundled_model(tmp_path):
    model = load("digits-edm", device="cpu")
    make(model, tmp_path / "a", 3, steps=5, guidance=1.5)
    x = model.sample(3, steps=5, guidance=1.5)
    assert torch.equal(read(tmp_path / "a")["pair_x"].clamp(-1, 1), x)


def test_the_command_line_names_every_solver():
    assert set(SOLVER_NAMES) == SOLVERS.keys()


@pytest.mark.parametrize("solver", SOLVERS)
def test_states_between_lie_on_the_solvers_path(solver, tmp_path):
    model = points()
    make(model, tmp_path / "a", 5, solver=solver, steps=8, paths=3)
    make(model, tmp_path / "b", 5, solver=solver, steps=8)
    pairs, found = Pairs(tmp_path / "a"), read(tmp_path / "a")
    grid = model.times(8)
    assert pairs.times == (grid[0], grid[2], grid[4], grid[6])
    assert torch.equal(found["pair_x"], read(tmp_path / "b")["pair_x"])

    def solved(count: int) -> torch.Tensor:
        x = found["pair_noise"].double() * 80
        times = torch.tensor(grid[:count], dtype=torch.float64)
        if solver == "dpm++2m":
            return dpmpp_2m(model.denoiser, x, times)
        return ode(model.denoiser, x, times, step=STEPS[solver])

    for i, count in enumerate((3, 5, 7)):
        assert torch.equal(found["pair_path"][:, i], solved(count).float())
    last = torch.full((5,), grid[-1], dtype=torch.float64)
    assert torch.equal(found["pair_x"], model.denoiser(solved(8), last).float())
    sampled = model.sample(5, steps=8, solver=solver)
    assert torch.equal(found["pair_x"].clamp(-1, 1), sampled.clamp(-1, 1))


def test_solvers_agree_and_more_steps_agree_better(tmp_path):
    model, far = points(), {}
    for solver in ("heun", "euler", "dpm++2m"):
        for steps in (10, 80):
            out = tmp_path / f"{solver}{steps}"
            make(model, out, 6, solver=solver, steps=steps)
            far[solver, steps] = read(out)["pair_x"]
    make(model, tmp_path / "best", 6, steps=400)
    best = read(tmp_path / "best")["pair_x"]
    error = {key: float((x - best).abs().max()) for key, x in far.items()}
    for solver in ("heun", "euler", "dpm++2m"):
        assert error[solver, 80] < error[solver, 10] / 4
    assert error["heun", 80] < error["euler", 80] / 4


def test_neither_batch_nor_shard_size_matters(tmp_path):
    model = pictures()
    parts = []
    for i, (shard, batch) in enumerate([(1024, 256), (4, 3), (1, 1), (11, 2)]):
        out = tmp_path / str(i)
        make(model, out, 11, steps=3, shard_size=shard, batch=batch, paths=1)
        parts.append(read(out))
    for other in parts[1:]:
        assert torch.equal(parts[0]["pair_noise"], other["pair_noise"])
        for key in ("pair_x", "pair_path"):
            torch.testing.assert_close(parts[0][key], other[key], rtol=1e-4, atol=1e-5)


# Killed, in several processes, damaged.


def killed_at(work: list[str], last: int, tally: Path | None = None) -> int:
    return ended(born(dying(lambda: main(work), last, tally)))


def test_killed_anywhere_and_repeated_it_is_the_same(at, tmp_path):
    """By SIGKILL at twelve of the things that it does to files, and in the midst of writing."""
    work = ("--paths", 1)
    assert killed_at(words(at / "points", tmp_path / "whole", *work), 0, tmp_path / "tally") == 0
    total, whole = int((tmp_path / "tally").read_text()), tree(tmp_path / "whole")
    assert Pairs(tmp_path / "whole", verify=True)
    partial = set()
    for k in range(12):
        out = tmp_path / f"killed-{k}"
        last = 1 + total * k // 12
        assert killed_at(words(at / "points", out, *work), last) == -9
        left = tree(out) if out.exists() else {}
        partial.add(sum(name.startswith("pairs-") for name in left))
        assert killed_at(words(at / "points", out, *work), 0) == 0
        assert tree(out) == whole
    assert {0, 1, 2} <= partial
    print(f"\nkilled at 12 of {total} points: repeated, every byte is the same")


def as_rank(rank: int, size: int, work: list[str], said: Path) -> int:
    def run() -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        main(work)
        sys.stdout.flush()

    return born(run, said)


@pytest.mark.parametrize("size", [2, 5])
def test_any_number_of_processes(size, at, tmp_path):
    main(words(at / "pictures", tmp_path / "one"))
    out, said = tmp_path / "several", tmp_path / "said"
    work = words(at / "pictures", out)
    ranks = [as_rank(rank, size, work, said) for rank in range(size)]
    assert [ended(rank) for rank in ranks] == [0] * size, said.read_text()
    assert tree(out) == tree(tmp_path / "one")
    text = said.read_text()
    assert 1 <= text.count("; wrote 11 pair(s)") <= size
    assert text.count("made 2 shard(s), kept 0") == (size == 2)


def test_processes_one_after_the_other(at, tmp_path):
    """They need not run at the same time; the last completes the folder."""
    main(words(at / "points", tmp_path / "one"))
    out, said = tmp_path / "several", tmp_path / "said"
    work = words(at / "points", out)
    assert ended(as_rank(1, 2, work, said)) == 0
    assert "made 1 shard(s), kept 0; process 1 of 2 is done, others are not" in said.read_text()
    with pytest.raises(UsageError, match=r"not finished: 1 of 3 shard\(s\) are there; repeat"):
        Pairs(out)
    assert ended(as_rank(0, 2, work, said)) == 0
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.parametrize("harm", ["changed", "cut", "gone", "another"])
def test_a_damaged_shard_is_made_anew(harm, at, tmp_path, capsys):
    out = tmp_path / "pairs"
    fewstep(capsys, *words(at / "points", out))
    whole, shard = tree(out), out / "pairs-00001.safetensors"
    data = shard.read_bytes()
    match harm:
        case "changed":
            shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            shard.write_bytes(data[:-1])
        case "gone":
            shard.unlink()
        case _:
            shard.write_bytes((out / "pairs-00000.safetensors").read_bytes())
    assert fewstep(capsys, *words(at / "points", out)).out.startswith("made 1 shard(s), kept 2;")
    assert tree(out) == whole


def test_two_that_make_the_same_shard(at, tmp_path, capsys):
    out = tmp_path / "pairs"
    fewstep(capsys, *words(at / "points", out))
    shard = out / "pairs-00002.safetensors"
    shard.unlink()
    ready, go = os.pipe(), os.pipe()

    def holds() -> None:
        with (out / ".lock").open("w") as handle:
            fcntl.lockf(handle, fcntl.LOCK_EX, 1, 3)
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    other = born(holds)
    os.read(ready[0], 1)
    outcome = fewstep(capsys, *words(at / "points", out))
    os.write(go[1], b"x")
    assert ended(other) == 0
    assert (outcome.code, outcome.out) == (2, "")
    assert f"another process is making {shard}; wait for it, or stop it" in outcome.err
    assert fewstep(capsys, *words(at / "points", out)).code == 0


# What it refuses.


def test_a_folder_of_other_settings(at, tmp_path, capsys):
    out = tmp_path / "pairs"
    fewstep(capsys, *words(at / "pictures", out))
    before = tree(out)
    changed = ("--steps", 4, "--seed", 1, "--guidance", 2, "--solver", "euler", "--label", 0)
    outcome = fewstep(capsys, *words(at / "pictures", out, *changed, "--paths", 1, "-n", 12))
    assert (outcome.code, outcome.out) == (2, "")
    lines = outcome.err.splitlines()
    assert lines[1] == f"fewstep: {out} holds pairs with other settings:"
    assert [line.split(":")[0].strip() for line in lines[2:-1]] == [
        *("solver", "steps", "guidance", "seed", "label", "n", "path_times")
    ]
    assert lines[2:5] == [
        "  solver: was 'heun', now 'euler'",
        "  steps: was 3, now 4",
        "  guidance: was 1.0, now 2.0",
    ]
    assert lines[-1] == "repeat them to go on, or choose another --out"
    outcome = fewstep(capsys, *words(at / "points", out))
    assert "teacher: was" in outcome.err
    assert fewstep(capsys, *words(at / "pictures", out, "--guidance", 1, "--batch", 4)).code == 0
    assert tree(out) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("-n", 0), "-n must be at least 1, got 0"),
        (("--shard-size", 0), "--shard-size must be at least 1, got 0"),
        (("--batch", -1), "--batch must be at least 1, got -1"),
        (("--seed", -1), "--seed must be at least 0, got -1"),
        (("--paths", -1), "--paths must be at least 0, got -1"),
        (("--paths", 3), "3 step(s) have 2 state(s) between noise and sample, got --paths 3; take"),
        (("--steps", 0), "steps must be at least 1, got 0"),
        (("--label", 4), "label must be in [0, 2], or 3 for none; got 4"),
        (("--label", -1), "label must be in [0, 2], or 3 for none; got -1"),
        (("--guidance", "nan"), "guidance must be in [0.0, 20.0], got nan"),
        (("--guidance", 50), "guidance must be in [0.0, 20.0], got 50"),
    ],
)
def test_bad_input(changed, message, at, tmp_path, capsys):
    outcome = fewstep(capsys, *words(at / "pictures", tmp_path / "x", *changed))
    assert (outcome.code, outcome.out) == (2, "")
    said = [line for line in outcome.err.splitlines() if line.startswith("fewstep: ")]
    assert len(said) == 1
    assert message in said[0]
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "x").exists()


def test_bad_models_and_places(at, tmp_path, capsys, monkeypatch):
    def refused(*args: object) -> str:
        outcome = fewstep(capsys, *args)
        assert (outcome.code, outcome.out) == (2, "")
        return outcome.err

    out = tmp_path / "x"
    assert "cd model is sampled by renoise, in few steps; pairs" in refused(
        *words("digits-cd", out)
    )
    assert "no model 'nothing'" in refused(*words("nothing", out))
    said = refused(*words(at / "points", out, "--label", 0))
    assert "this model has no labels, got label=0" in said
    assert "cannot be guided, got guidance=2" in refused(
        *words(at / "points", out, "--guidance", 2)
    )
    assert not out.exists()
    (out / "more").mkdir(parents=True)
    assert f"{out} is not empty and holds no pairs" in refused(*words(at / "points", out))
    (tmp_path / "file").touch()
    assert "file" in refused(*words(at / "points", tmp_path / "file"))
    with pytest.raises(UsageError, match="--solver must be one of heun, euler, ddim"):
        make(points(), tmp_path / "y", 1, solver="dpmpp")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK must lie in [0, WORLD_SIZE)" in refused(*words(at / "points", tmp_path / "y"))


def test_a_record_that_cannot_be_read(at, tmp_path, capsys):
    out = tmp_path / "pairs"
    fewstep(capsys, *words(at / "points", out))
    record = out / "pairs.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 2}))
    outcome = fewstep(capsys, *words(at / "points", out))
    assert outcome.code == 2
    assert f"{record} is damaged, or of another version (format: " in outcome.err


WITHOUT_TORCH = """
import sys
from fewstep.cli import main
for args in (["data"], ["data", "pairs", "--help"], ["data", "pairs", "x"], ["data", "pair"]):
    try:
        main(args)
    except SystemExit:
        pass
assert "torch" not in sys.modules
"""


def test_help_imports_no_torch():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, capture_output=True)


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setattr(sys, "stderr", os.fdopen(theirs, "w"))
    make(points(), tmp_path / "a", 5, steps=2, shard_size=3)
    sys.stderr.close()
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "making" in shown
    assert "5/5" in shown
    assert "pairs/s" in shown
