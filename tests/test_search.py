"""Intermediate times: the search finds known ones, and writes nothing but what it found."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
from pathlib import Path as File

import pytest
import torch
from torch import nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import UsageError, expand
from fewstep.data import Arrays, toy
from fewstep.evaluation import training_samples
from fewstep.evaluation.judging import DRAWS, FIRST_SEED
from fewstep.evaluation.search import Found, check, distance_to, greedy, watched, write
from fewstep.metrics import flatten
from fewstep.model import Model, find, load
from fewstep.paths import DiscreteVariancePreserving, Linear, Path, Trig, VarianceExploding
from oracles import PATHS_AT_REST, GaussianFlowMap, Oracle, path_id
from tiny import fewstep, trained, tree

FAR = 10 * math.log(2)
EVALUATIONS = 40


def place(path: Path, t: float) -> float:
    """log(sigma/alpha)."""
    return float(path.ratio(torch.tensor([t], dtype=torch.float64)).log())


def hollow(path: Path, *targets: float):
    """A distance that is least where every target (a ratio) has a time of its own."""

    def distance(times):
        places = [place(path, t) for t in times[1:]]
        return sum(min((abs(math.log(r) - p) for p in places), default=FAR) for r in targets)

    return distance


def usual(path: Path, most: int) -> dict[int, list[float]]:
    """Times nobody would choose: all next to the start."""
    return {k: [path.t_max * (1 - 1e-3 * i) for i in range(k)] for k in range(1, most + 1)}


def searched(distance, path, most=2, evaluations=EVALUATIONS, before=None) -> dict[int, Found]:
    return dict(greedy(distance, before or usual(path, most), path, evaluations))


# The search itself.


@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
@pytest.mark.parametrize("target", [0.1, 0.585, 6.0])
def test_one_time_is_found_on_every_path(path, target):
    found = searched(hollow(path, target), path)[2]
    assert found.times[0] == path.t_max
    assert place(path, found.times[1]) == pytest.approx(math.log(target), abs=0.02)
    assert found.distance < found.distance_before


@pytest.mark.parametrize("path", [VarianceExploding(), Linear(), Trig()], ids=path_id)
def test_several_times_are_found_one_by_one(path):
    targets = (0.05, 0.7, 12.0)
    found = searched(hollow(path, *targets), path, most=4)
    for steps in (2, 3, 4):
        assert set(found[steps - 1].times) < set(found[steps].times)
        assert list(found[steps].times) == sorted(found[steps].times, reverse=True)
    places = [place(path, t) for t in reversed(found[4].times[1:])]
    assert places == pytest.approx([math.log(r) for r in targets], abs=0.02)


def test_the_scan_finds_the_deepest_of_two_valleys():
    path = VarianceExploding()
    depth = {0.03: 1.0, 9.0: 2.0}

    def distance(times):
        return min(
            (abs(place(path, t) - math.log(r)) - d for t in times[1:] for r, d in depth.items()),
            default=FAR,
        )

    assert place(path, searched(distance, path)[2].times[1]) == pytest.approx(math.log(9), abs=0.02)


def test_better_times_that_were_there_are_kept():
    path = VarianceExploding()
    before = {1: [80.0], 2: [80.0, 0.585], 3: [80.0, 30.0, 29.0]}
    found = searched(hollow(path, 0.585), path, before=before)
    assert found[2].times == (80.0, 0.585)
    assert found[2].distance == found[2].distance_before == 0
    # What is inserted next goes beside the times that were kept.
    assert 0.585 in found[3].times


@pytest.mark.parametrize("evaluations", [4, 9, 16])
def test_as_many_distances_as_asked_for(evaluations):
    path, asked = VarianceExploding(), []

    def distance(times):
        asked.append(tuple(times))
        return hollow(path, 0.585, 3.0)(times)

    searched(distance, path, most=3, evaluations=evaluations)
    assert len(set(asked)) == len(asked)
    counts = [sum(len(times) == k for times in asked) for k in (1, 2, 3)]
    assert counts[0] == 1
    assert all(evaluations - 1 <= n <= evaluations + 2 for n in counts[1:])
    assert all(80 >= t > 0 for times in asked for t in times)


@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
def test_an_optimum_at_either_end_leaves_times_that_a_contract_takes(path):
    for sign in (1, -1):
        found = searched(
            lambda times, sign=sign: sign * place(path, times[-1]), path, most=4, evaluations=200
        )
        Sampling(
            start=Start(t=path.t_max, std=1.0),
            kind="renoise",
            times={k: one.times for k, one in found.items()},
        )


# Against models.


class Uneven(Oracle):
    """A consistency model whose answer is off by what the time costs: least at ratio 0.8."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.place = nn.Parameter(torch.zeros(()))  # a model has a device

    def off(self, t):
        return (self.path.ratio(t).clamp(0.002, 80).log() - math.log(0.8)).abs()

    def forward(self, x, t, s=None, cond=None):
        end = torch.full_like(t, self.path.t_min)
        return self.data.flow(self.path, x, t, end) + expand(self.off(t), x)

    def off_after_two(self, t):
        """In closed form: what the start's error becomes by noising and answering, and t's own."""
        start, end = (torch.full_like(t, at) for at in (self.path.t_max, self.path.t_min))
        kept = self.path.coefficients(t).alpha / self.path.coefficients(end).alpha
        variances = [self.data.variance(self.path, at) for at in (end, t)]
        return kept * (variances[0] / variances[1]).sqrt() * self.off(start) + self.off(t)


def model_of(denoiser, kind: str = "renoise", **sampling) -> Model:
    path = denoiser.path
    given = Sampling(
        start=Start(t=path.t_max, std=path.start_std()), kind=kind, any_times=True, **sampling
    )
    return Model(
        denoiser, Contract(method="cd", data=DataSpec(shape=(2,), range=None), sampling=given)
    )


def gaussian(n: int = 600) -> Arrays:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(5)) * 0.7 + 0.3
    return Arrays(x.numpy(), image=False)


@pytest.mark.parametrize("metric", ["fd", "swd", "kid"])
@pytest.mark.parametrize(
    "path", [VarianceExploding(), Linear(t_min=1e-3), Trig(t_min=1e-3)], ids=path_id
)
def test_the_best_time_of_a_model(path, metric):
    denoiser = Uneven(path)
    distance = distance_to(gaussian(), model_of(denoiser), metric, flatten, 400, 0)
    found = searched(distance, path, evaluations=24)[2]
    ratios = torch.logspace(-2.5, 1.9, 400, dtype=torch.float64)
    best = float(denoiser.off_after_two(path.time(ratios)).min())
    reached = float(denoiser.off_after_two(torch.tensor([found.times[1]], dtype=torch.float64)))
    assert best <= reached * (1 + 1e-3) <= 1.02 * best
    one = searched(distance, path, most=1)[1]
    assert found.distance < one.distance


def test_a_flow_map_is_searched_with_two_times():
    class Map(GaussianFlowMap):
        def __init__(self, path):
            super().__init__(path)
            self.place = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, s=None, cond=None):
            # Long jumps, in log sigma, go wrong: the best time halves the way.
            far = (self.path.ratio(t) / self.path.ratio(s)).log()
            return super().forward(x, t, s, cond) + expand(1e-3 * far**2, x)

    path = VarianceExploding(t_min=0.01, t_max=100.0)
    distance = distance_to(gaussian(), model_of(Map(path), "deterministic"), "swd", flatten, 400, 0)
    found = searched(distance, path, evaluations=24)[2]
    assert 0.01 < found.times[1] < 100
    assert found.distance < min(found.distance_before, distance([100.0]))


def test_the_same_search_twice_and_another_seed():
    model = model_of(Uneven(VarianceExploding()))
    runs = [
        searched(distance_to(gaussian(), model, "fd", flatten, 50, seed), VarianceExploding())
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_all_candidates_share_noise_labels_and_training_data():
    """And data come with as many samples of the same labels."""
    asked = []

    class Spy:
        def sample(self, n, **given):
            asked.append((n, given))
            return x[:n]

    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=rng)
    data = Arrays(x.numpy(), label=(torch.arange(30) % 3).numpy(), image=False)
    distance = distance_to(data, Spy(), "swd", flatten, 20, 7)  # pyright: ignore[reportArgumentType]
    first, second = distance([80.0, 1.0]), distance([80.0, 2.0])
    assert first == second > 0
    (n, one), (_, other) = asked
    assert (n, one["seed"], one["times"]) == (20, 7, [80.0, 1.0])
    assert one["cond"]["label"].equal(other["cond"]["label"])
    assert len(one["cond"]["label"]) == 20


def test_search_draws_no_held_out_data(monkeypatch):
    def never(*args):
        raise AssertionError(args)

    monkeypatch.setattr("fewstep.evaluation.named.with_held_out", never)
    data, _ = training_samples(
        "digits", DataSpec(shape=(1, 8, 8), labels=10), None, torch.device("cpu")
    )
    assert len(data) == 1200
    drawn, judge = training_samples(
        "moons", DataSpec(shape=(2,), range=None), None, torch.device("cpu")
    )
    assert judge is flatten
    assert torch.equal(drawn.batch(range(9)).x0, toy("moons", 20_000, 0).batch(range(9)).x0)


# Refusals.


@pytest.mark.parametrize(
    ("sampling", "steps", "seed", "parts"),
    [
        ({"kind": "ode", "any_times": True}, [2], 0, ("ODE", "distil")),
        (
            {"times": {1: (80.0,), 2: (80.0, 1.0)}},
            [2],
            0,
            ("made for the times 80 (1 step); 80, 1 (2 steps) and",),
        ),
        ({"any_times": True}, [1, 2], 0, ("--steps", "got 1")),
        ({"any_times": True}, [2], -1, ("--seed", "-1")),
        ({"any_times": True}, [2], FIRST_SEED, ("--seed", "evaluate")),
        ({"any_times": True}, [2], FIRST_SEED + DRAWS - 1, ("--seed", "evaluate")),
    ],
)
def test_what_cannot_be_searched(sampling, steps, seed, parts):
    made = Sampling(start=Start(t=80.0, std=80.0), **{"kind": "renoise", **sampling})
    with pytest.raises(UsageError) as caught:
        check(made, "cd", steps, seed)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("kind", ["renoise", "deterministic"])
def test_what_can(kind):
    free = Sampling(start=Start(t=80.0, std=80.0), kind=kind, any_times=True)
    check(free, "cd", [2, 5], FIRST_SEED + DRAWS)


# The command.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A teacher and a student of points, two steps of training each."""
    root = tmp_path_factory.mktemp("search")
    few = {"steps": 2, "batch": 8, "snapshot_every": 0}
    teacher = trained(root / "teacher", "toy-edm", **few)
    trained(root / "student", "toy-cd", teacher=teacher, **few)
    return root


@pytest.fixture
def runs(made, tmp_path, monkeypatch) -> File:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


QUICK = ("--evaluations", 6, "-n", 40, "--metric", "swd", "--device", "cpu")


def test_search_writes_what_sample_uses(runs, capsys):
    student, model = runs / "student", runs / "student" / "model"
    before = tree(model)
    outcome = fewstep(capsys, "search", student, "--steps", "2,3", *QUICK)
    assert outcome.code == 0, outcome.err
    table = outcome.out.splitlines()
    assert table[0].split() == ["steps", "swd", "before", "after", "times"]
    assert [line.split()[0] for line in table[1:4]] == ["1", "2", "3"]

    after = tree(model)
    assert {k for k in after if after[k] != before.get(k)} == {"config.json", "search.json"}
    told = json.loads((model / "search.json").read_text())
    loaded = load(student, device="cpu")
    for steps in (2, 3):
        entry = told["steps"][str(steps)]
        assert loaded.times(steps) == entry["times"]
        assert entry["distance"] <= entry["distance_before"]
        assert f"{entry['distance']:.4g}" in table[steps]
    assert (told["metric"], told["n"], told["seed"], told["data"]) == ("swd", 40, 0, "two-modes")

    # The distance that was told is that of the model as it is written.
    data, judge = training_samples("two-modes", loaded.contract.data, None, torch.device("cpu"))
    distance = distance_to(data, loaded, "swd", judge, 40, 0)
    assert distance(loaded.times(2)) == told["steps"]["2"]["distance"]
    args = ("sample", student, "-n", 4, "--steps", 2, "--out", "x.npz", "--device", "cpu")
    assert fewstep(capsys, *args).code == 0
    assert fewstep(capsys, "search", student, "--steps", "2,3", *QUICK).code == 0
    again = json.loads((model / "search.json").read_text())
    assert again["steps"]["3"]["distance"] <= told["steps"]["3"]["distance"]


def test_only_the_steps_asked_for_are_written(runs, capsys):
    model = runs / "student" / "model" / "config.json"
    before = json.loads(model.read_text())["sampling"]["times"]
    assert fewstep(capsys, "search", runs / "student", "--steps", 3, *QUICK).code == 0
    after = json.loads(model.read_text())["sampling"]["times"]
    assert list(after) == sorted({*before, "3"})
    assert {k: after[k] for k in before} == before


def test_a_copy(runs, capsys):
    before = tree(runs)
    outcome = fewstep(capsys, "search", runs / "student", "--steps", 3, *QUICK, "--out", "a/copy")
    assert outcome.code == 0, outcome.err
    assert tree(runs) == before
    model = runs / "student" / "model"
    copy = File("a/copy")
    assert (copy / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (copy / "README.md").is_file()
    config = json.loads((copy / "config.json").read_text())
    found = config["sampling"]["times"].pop("3")
    assert config == json.loads((model / "config.json").read_text())
    assert load(copy, device="cpu").times(3) == found


def test_a_bundled_model(tmp_path, capsys):
    assets = tree(find("digits-cd"))
    args = ("search", "digits-cd", "--evaluations", 4, "-n", 60)
    outcome = fewstep(capsys, *args)
    assert outcome.code == 2
    assert "digits-cd" in outcome.err
    assert "--out" in outcome.err
    assert fewstep(capsys, *args, "--out", tmp_path / "mine").code == 0
    assert tree(find("digits-cd")) == assets
    told = json.loads((tmp_path / "mine" / "search.json").read_text())
    assert (told["data"], told["features"], told["n"]) == ("digits", "digits", 60)
    assert load(tmp_path / "mine").times(2) == told["steps"]["2"]["times"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("student", "--steps", "1,2"), ("--steps", "1")),
        (("student", "--steps", "two"), ("--steps", "'two'")),
        (("student", "-n", "1"), ("-n", "1")),
        (("student", "--evaluations", "3"), ("--evaluations", "3")),
        (("student", "--seed", "1000"), ("--seed", "evaluate")),
        (("student", "--data", "digits"), ("(2,)", "(1, 8, 8)", "--data")),
        (("student", "--features", "resnet2"), ("'resnet2'", "resnet20")),
        (("student", "--average", "half"), ("'half'",)),
        (("student", "--out", "{root}"), ("--out",)),
        (("teacher",), ("ODE",)),
    ],
)
def test_refusals(options, parts, runs, capsys):
    before = tree(runs)
    run, *rest = (word.format(root=runs) for word in options)
    outcome = fewstep(capsys, "search", runs / run, *rest)
    assert outcome.code == 2, outcome
    assert outcome.err.count("fewstep: ") == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert tree(runs) == before


@pytest.mark.parametrize("out", [None, "copy"])
def test_disk_full(out, runs, capsys, monkeypatch):
    def full(path: File) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    before = tree(runs)
    monkeypatch.setattr("fewstep.system.files.flush", full)
    args = ("search", runs / "student", *QUICK, *(("--out", out) if out else ()))
    outcome = fewstep(capsys, *args)
    assert outcome.code == 2
    assert "No space left" in outcome.err
    assert tree(runs) == before
    assert [p.name for p in File().iterdir()] == ["runs"]


def test_a_model_that_changed_meanwhile_is_left_alone(runs):
    model = runs / "student" / "model"
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config + "\n")
    before = tree(runs)
    found = {2: Found((80.0, 1.0), 0.1, (80.0, 2.0), 0.2)}
    with pytest.raises(UsageError, match="anew"):
        write(model, config, found, {}, None)
    assert tree(runs) == before


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with watched(lambda times: 0.5, 2) as distance:
        assert distance([80.0, 1.0]) == 0.5
    assert "1/2" in screen.getvalue()
    assert "0.5 at 80, 1" in screen.getvalue()


def test_an_index_of_a_table_is_a_time():
    path = DiscreteVariancePreserving()
    found = searched(hollow(path, 1.0), path)[2]
    assert 0 < found.times[1] < 999
