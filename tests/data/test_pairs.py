"""Reading pairs: rows by index, beside other data, in other processes; damage and provenance."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.core import UsageError
from fewstep.data import Arrays, Paired, Pairs, toy
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.kd import KnowledgeDistillation
from fewstep.pairs import make
from fewstep.training.checkpoints import fingerprint
from fewstep.training.feed import Feed
from fewstep.training.trainer import Trainer
from teachers import pictures, points
from tiny import settings


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "pairs"
    make(pictures(), out, 11, steps=4, shard_size=4, batch=3, paths=2)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "pairs"
    make(points(), out, 70, steps=4, shard_size=32)
    return out


def test_a_batch_has_the_rows_that_were_asked(labelled):
    pairs = Pairs(labelled, verify=True)
    whole = pairs.batch(range(11))
    index = np.array([10, 0, 4, 3, 4, 7])
    batch = pairs.batch(index)
    assert {*batch.aux} == {"pair_noise", "pair_x", "pair_label", "pair_path"}
    for key, value in batch.aux.items():
        assert torch.equal(value, whole.aux[key][index]), key
    assert batch.aux["pair_noise"].shape == (6, 1, 8, 8)
    assert batch.aux["pair_path"].shape == (6, 2, 1, 8, 8)
    assert batch.aux["pair_label"].tolist() == [1, 0, 1, 0, 1, 1]
    assert batch.cond["label"].dtype == torch.int64
    assert torch.equal(batch.cond["label"], batch.aux["pair_label"])
    assert torch.equal(batch.x0, batch.aux["pair_x"].clamp(-1, 1))
    assert (len(pairs), pairs.shape, pairs.labels, pairs.image) == (11, (1, 8, 8), 3, True)
    assert pairs.times == (80.0, *pairs.about.path_times)
    with pytest.raises(UsageError, match="there are 11 pairs; got 0 to 11"):
        pairs.batch([0, 11])


def test_points_have_no_label_no_path_and_no_limits(plain):
    pairs = Pairs(plain)
    batch = pairs.batch([69, 1])
    assert {*batch.aux} == {"pair_noise", "pair_x"}
    assert batch.cond == {}
    assert torch.equal(batch.x0, batch.aux["pair_x"])
    assert (pairs.image, pairs.labels, pairs.times) == (False, 0, (80.0,))


def test_pickled_by_its_place(labelled):
    pairs = Pairs(labelled)
    one = pairs.batch([5])
    other = pickle.loads(pickle.dumps(pairs)).batch([5])
    assert torch.equal(one.aux["pair_x"], other.aux["pair_x"])


@pytest.mark.parametrize(("count", "length"), [(100, 100), (70, 70), (35, 70), (30, 90), (69, 138)])
def test_an_epoch_beside_data(plain, count, length):
    data, pairs = toy("two-modes", count), Pairs(plain)
    both = Paired(data, pairs)
    assert len(both) == length
    batch = both.batch(np.arange(length))
    assert torch.equal(batch.x0, data.batch(np.arange(length) % count).x0)
    x = pairs.batch(range(70)).aux["pair_x"]
    used = torch.tensor([int((x == one).all(1).nonzero()) for one in batch.aux["pair_x"]])
    seen = torch.bincount(used, minlength=70)
    assert int(seen.min()) == length // 70
    assert int(seen.max()) == -(-length // 70)
    again = both.batch(np.array([length - 1, 3]))
    for key in ("pair_noise", "pair_x"):
        assert torch.equal(again.aux[key], batch.aux[key][[length - 1, 3]])


def test_labels_beside_labels(labelled):
    data = Arrays(np.zeros((6, 1, 8, 8), np.float32), np.arange(6) % 2, image=True)
    both = Paired(data, Pairs(labelled))
    assert (both.shape, both.labels, both.image, len(both)) == ((1, 8, 8), 2, True, 12)
    batch = both.batch(range(12))
    assert batch.cond["label"].tolist() == [0, 1] * 6
    assert batch.aux["pair_label"].tolist() == [i % 3 for i in (*range(11), 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_helpers_read_the_same(plain, workers):
    both = Paired(toy("two-modes", 40), Pairs(plain))
    config = settings(steps=3, batch=8, workers=workers)
    feed = Feed(both, config, range(1), 0)
    found = torch.cat([feed.step(k)[0].aux["pair_x"] for k in range(3)])
    alone = Feed(both, settings(steps=3, batch=8), range(1), 0)
    assert torch.equal(found, torch.cat([alone.step(k)[0].aux["pair_x"] for k in range(3)]))


def test_other_shapes(plain, labelled):
    with pytest.raises(UsageError, match=r"shape \(1, 8, 8\), the data \(2,\)"):
        Paired(toy("two-modes", 8), Pairs(labelled))


def test_whose_pairs(plain):
    pairs, teacher = Pairs(plain), points().denoiser
    pairs.check(fingerprint(teacher), 1.0)
    pairs.check(fingerprint(teacher), 1, teacher.path)
    with pytest.raises(UsageError) as told:
        pairs.check(fingerprint(points(1).denoiser), 2.0, "Linear()")
    text = str(told.value)
    assert f"weights of the teacher: pairs {fingerprint(teacher)[:12]!r}, here" in text
    assert "guidance: pairs 1.0, here 2.0" in text
    assert "path: pairs 'VarianceExploding(t_min=0.002, t_max=80.0)', here 'Linear()'" in text
    with pytest.raises(UsageError) as told:
        pairs.check(fingerprint(teacher), 2.0)
    assert "weights" not in str(told.value).split("anew")[0]


def copied(source: Path, to: Path) -> Path:
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damage_is_told(labelled, tmp_path):
    def hurt(name: str) -> Path:
        return copied(labelled, tmp_path / name) / "pairs-00001.safetensors"

    with pytest.raises(UsageError, match="holds no pairs; make them with fewstep data pairs"):
        Pairs(tmp_path)
    missing = hurt("missing")
    missing.unlink()
    with pytest.raises(UsageError, match=r"not finished: 2 of 3 shard\(s\)"):
        Pairs(missing.parent)
    short = hurt("short")
    short.write_bytes(short.read_bytes()[:-1])
    pairs = Pairs(short.parent)
    pairs.batch([0])
    with pytest.raises(UsageError, match=r"pairs-00001.safetensors cannot be read .*repeat the"):
        pairs.batch([0, 5])
    changed = hurt("changed")
    last_byte(changed)
    Pairs(changed.parent).batch([5])
    with pytest.raises(UsageError, match=r"00001.safetensors does not match its sha256"):
        Pairs(changed.parent, verify=True)
    other = hurt("other")
    other.write_bytes((labelled / "pairs-00000.safetensors").read_bytes())
    with pytest.raises(UsageError, match="is no shard of these pairs"):
        Pairs(other.parent).batch([5])
    record = hurt("record").with_name("pairs.json")
    record.write_text(record.read_text().replace('"steps": 4', '"steps": 0'))
    with pytest.raises(UsageError, match=r"damaged, or of another version \(steps: "):
        Pairs(record.parent)
    record.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        Pairs(record.parent)
    unfinished = hurt("unfinished").with_name("pairs.json")
    told = json.loads(unfinished.read_text())
    unfinished.write_text(json.dumps({**told, "sha256": {}}))
    with pytest.raises(UsageError, match=r"not finished: 3 of 3 shard\(s\)"):
        Pairs(unfinished.parent)


def test_a_student_learns_from_them(plain):
    """Through the trainer, on the pairs alone and beside data."""
    pairs = Pairs(plain)
    for data in (pairs, Paired(toy("two-modes", 40), pairs)):
        torch.manual_seed(1)
        student = Denoiser(ResidualMLP((2,), 16, 2), EDM(sigma_data=0.5))
        learnt = KnowledgeDistillation(student, states=pairs.times)
        config = settings(steps=150, batch=35, lr=1e-2)
        trainer = Trainer(learnt, data, config, {}, torch.device("cpu"))
        losses = [float(trainer.advance()["kd"]) for _ in range(150)]
        assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])
