"""A run that was stopped and goes on is the run that was not; so is one with helpers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from test_resume import OBJECTIVES

import ranks
from fewstep.core import Batch
from fewstep.data import Arrays, toy
from fewstep.models.nets import DDPMpp
from fewstep.models.nets.blocks import ResidualBlock
from fewstep.objectives.base import Objective
from fewstep.system.processes import ALONE
from fewstep.training import checkpoints
from fewstep.training.averages import constant, warmed
from fewstep.training.feed import Feed
from fewstep.training.trainer import Trainer
from survive import CPU, differing, tensors
from tiny import WithPairs, settings

STEPS = 12
POINTS = (1, 3, 6, 8, 11)


def trainer(objective: Callable[[], Objective], **changed) -> Trainer:
    values = {"steps": STEPS, "batch": 8, "warmup": 3, "schedule": "cosine", "clip": 1.0}
    rules = {"main": constant(0.8), "slow": warmed(0.99)}
    config = settings(**{**values, **changed})
    return Trainer(objective(), WithPairs(toy("two-modes", 64)), config, rules, CPU)


def goes_on(t: Trainer) -> list[dict[str, float]]:
    found = []
    while t.step < STEPS:
        found.append({k: float(v) for k, v in t.advance().items()})
    return found


def resumes_exactly(make: Callable[[], Trainer], at: tuple[int, ...], folder: Path) -> Trainer:
    """Go on from each of these points with a new trainer; returns the one that never stopped."""
    whole, rows = make(), []
    while whole.step < STEPS:
        rows.append({k: float(v) for k, v in whole.advance().items()})
        if whole.step in at:
            checkpoints.save(folder, whole.step, whole.state(), len(at))
    for step in at:
        part, source = make(), folder / f"{step:09d}"
        part.load(checkpoints.read(source), source)
        assert part.step == step
        assert goes_on(part) == rows[step:]
        assert differing(whole.state()[0], part.state()[0]) == []
        assert whole.state()[1] == part.state()[1]
    return whole


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_at_five_points(objective, optimizer, tmp_path):
    make = OBJECTIVES[objective]
    resumes_exactly(lambda: trainer(make, optimizer=optimizer), POINTS, tmp_path)


def test_with_workers(tmp_path):
    def make() -> Trainer:
        return trainer(OBJECTIVES["cd with target"], workers=2)

    found = resumes_exactly(make, (6,), tmp_path)
    alone = trainer(OBJECTIVES["cd with target"])
    goes_on(alone)
    assert differing(found.state()[0], alone.state()[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "radam"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_at_five_points_with_workers(objective, optimizer, tmp_path):
    make = OBJECTIVES[objective]
    resumes_exactly(lambda: trainer(make, optimizer=optimizer, workers=2), POINTS, tmp_path)
    print(f"\n{objective}, {optimizer}, 2 workers: 5 of 5 points, bit for bit", end="")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("objective", ["denoising", "cd with target"])
def test_in_half_precision(objective, precision, tmp_path):
    def make() -> Trainer:
        return trainer(OBJECTIVES[objective], precision=precision)

    found = resumes_exactly(make, (1, 6), tmp_path)
    single = trainer(OBJECTIVES[objective])
    goes_on(single)
    assert "objective.student.net.last.weight" in differing(found.state()[0], single.state()[0])


def test_an_overflow_halves_the_scale_which_is_kept(tmp_path):
    t = trainer(OBJECTIVES["denoising"], precision="fp16")
    (scale,) = t.scales.values()
    t.advance()
    assert scale.state() == (2.0**10, 1)
    scale.value = 2.0**24
    skipped = 0
    while scale.since == 0 or t.skipped == 0:
        before = tensors(t.state())
        t.advance()
        if t.skipped > skipped:
            skipped += 1
            assert scale.state() == (2.0 ** (24 - skipped), 0)
            assert differing(before, t.state()[0]) == []
    assert skipped >= 2
    assert scale.state() == (2.0 ** (24 - skipped), 1)
    source = checkpoints.save(tmp_path, t.step, t.state(), 1)
    other = trainer(OBJECTIVES["denoising"], precision="fp16")
    other.load(checkpoints.read(source), source)
    assert next(iter(other.scales.values())).state() == scale.state()
    assert goes_on(other) == goes_on(t)
    assert differing(other.state()[0], t.state()[0]) == []
    print(f"\nfp16: {skipped} overflows, {skipped} steps skipped, scale 2^24 to 2^{24 - skipped}")


@pytest.mark.parametrize("optimizer", ["adam", "radam"])
def test_blocks_computed_again_are_the_same(optimizer, monkeypatch):
    monkeypatch.setattr(DDPMpp, "units", (ResidualBlock,), raising=False)
    made, plain = (
        ranks.trained("consistency", checkpointing=on, optimizer=optimizer) for on in (True, False)
    )
    blocks = [m for m in made[0].objective.student.modules() if isinstance(m, ResidualBlock)]
    assert all(isinstance(block.forward, partial) for block in blocks)
    assert len(blocks) > 3
    assert differing(made[1], plain[1]) == []


def pictures() -> Arrays:
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return Arrays(pixels.to(torch.uint8).numpy(), torch.arange(40).numpy() % 3)


def jitter(batch: Batch, at, seed: int) -> Batch:
    rngs = [torch.Generator().manual_seed(seed + int(k)) for k in at]
    noise = torch.stack([torch.randn(batch.x0.shape[1:], generator=rng) for rng in rngs])
    return Batch(batch.x0 + noise, batch.cond)


@pytest.mark.parametrize("workers", [0, 2])
def test_helpers_and_shards_see_the_same_batches(workers):
    def stream(start: int = 0, **changed) -> list[Batch]:
        config = settings(steps=7, **changed)
        shards = range(config.accumulation)
        feed = Feed(pictures(), config, shards, start, jitter)
        return [batch for step in range(start, 7) for batch in feed.step(step)]

    plain = stream(batch=12)
    for first, parts in (
        (0, stream(batch=12, workers=workers)),
        (0, stream(batch=6, accumulation=2, workers=workers)),
        (3, stream(3, batch=4, accumulation=3, workers=workers)),
    ):
        for read in (lambda b: b.x0, lambda b: b.cond["label"]):
            one = torch.cat([read(batch) for batch in plain[first:]])
            assert torch.equal(one, torch.cat([read(batch) for batch in parts]))


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (1, 0, [9]),
        (3, 0, [7, 8, 9]),
        (20, 0, [*range(1, 10)]),
        (1, 4, [4, 8, 9]),
        (2, 3, [3, 6, 8, 9]),
        (1, 1, [*range(1, 10)]),
    ],
)
def test_which_checkpoints_stay(keep, keep_every, left, tmp_path):
    state = trainer(OBJECTIVES["ct"]).state()
    for step in range(1, 10):
        checkpoints.save(tmp_path, step, state, keep, ALONE, keep_every)
        assert checkpoints.newest(tmp_path).name == f"{step:09d}"
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == left
    assert all(checkpoints.read(p)[1]["step"] in left for p in tmp_path.iterdir())
