"""Engines beside torch: every row is of the same samples."""

from __future__ import annotations

import pytest

from fewstep import engine_bench
from fewstep.errors import UsageError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


def test_every_engine_makes_the_same_samples(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine_bench, "large", lambda: engine_bench.load("digits-cd", device="cpu"))
    monkeypatch.setattr(engine_bench, "BATCHES", (2,))
    rows = engine_bench.run(1, 1, batches=(2,))
    assert [(row["network"], row["engine"]) for row in rows] == [
        *(("ddpmpp", engine) for engine in engine_bench.ENGINES),
        *(("digits-cd", engine) for engine in engine_bench.ENGINES),
    ]
    assert all(0 <= row["difference"] < 2e-5 for row in rows)
    assert all(row["ratio"] > 0 for row in rows)


def test_without_an_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(engine_bench, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        engine_bench.run(1, 1)
