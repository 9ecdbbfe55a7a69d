"""Engines beside torch: every row is of the same samples."""

from __future__ import annotations

import pytest
import torch

from fewstep import engine_bench
from fewstep.errors import UsageError
from fewstep.models.nets import DDPMpp

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


def test_every_engine_makes_the_same_samples(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine_bench, "large", lambda: engine_bench.load("digits-cd", device="cpu"))
    monkeypatch.setattr(engine_bench, "BATCHES", (2,))
    rows = engine_bench.run(1, 1, batches=(2,))
    assert [(row["network"], row["engine"]) for row in rows] == [
        *(("ddpmpp", engine) for engine in (*engine_bench.ENGINES, "channels_last")),
        *(("digits-cd", engine) for engine in engine_bench.ENGINES),
    ]
    assert all(0 <= row["difference"] < 2e-5 for row in rows)
    assert all(row["ratio"] > 0 for row in rows)


def test_channels_last_is_the_same_model(monkeypatch, tmp_path):
    sizes = {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": (16,)}
    monkeypatch.setattr(engine_bench, "network", lambda: DDPMpp(engine_bench.SHAPE, **sizes))
    folder = engine_bench.large().save(tmp_path / "model", samples=0)
    model, plain = engine_bench.channels_last(folder), engine_bench.load(folder, device="cpu")
    wide = [p for p in model.denoiser.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert wide
    assert not any(p.is_contiguous() for p in wide)
    given = {"n": 3, "steps": 2, "seed": 3}
    torch.testing.assert_close(model.sample(**given), plain.sample(**given), atol=1e-5, rtol=0)


def test_without_an_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(engine_bench, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        engine_bench.run(1, 1)
