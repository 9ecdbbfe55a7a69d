"""Every example runs, with few steps, and stays short."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
TRAINING = [path for path in EXAMPLES if path.stem != "control_loop"]
"""The control loop has tests of its own, in ``control/test_control_loop.py``."""


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_example_runs_with_few_steps(path, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.evaluation.report.TEACHER_STEPS", 1)
    if path.stem.startswith("diffusers"):
        pytest.importorskip("diffusers")
    module = load(path)
    more = {"plot": tmp_path / "plot.png"} if path.stem == "two_modes" else {}
    samples = module.main(steps=20, out=tmp_path / "run", **more)
    assert samples.isfinite().all()
    assert len(samples) >= 100


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) < 60
