"""CTM's and FastGen's files: networks of two times, and several networks in one file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fewstep
from checkpoint_files import TIGHT, Official, compare, official
from fewstep import ImportOptions, UsageError, import_checkpoint

TIMES = 3e-5
"""The U-Net reads times up to 1100, whose sines in float32 are that exact."""


def ctm_options(topic: Official) -> ImportOptions:
    if topic.settings["arch"] == "song":
        return ImportOptions()
    of = topic.settings["constructor"]
    size, heads = of["image_size"], of.get("num_head_channels", -1)
    if heads > 0:
        return ImportOptions(resolution=size, head_channels=heads)
    return ImportOptions(resolution=size, heads=of.get("num_heads", 1))


@pytest.mark.parametrize("name", ["ctm_cifar", "ctm_unet"])
def test_ctm(name, tmp_path, record_property):
    topic = official(name, tmp_path)
    imported = import_checkpoint(topic.file(".pt"), ctm_options(topic))
    model, arrays = imported.model, topic.arrays
    denoiser, cond = model.denoiser, topic.cond()
    assert denoiser.two_time
    assert model.contract.sampling.kind == "gamma"
    assert model.contract.data.labels == topic.settings["num_classes"]
    assert {*imported.report.used, *imported.report.unused} == {*state(topic)}
    t, s = arrays["t"].double(), arrays["s"].double()
    tolerance = TIMES if "unet" in name else TIGHT

    def values() -> Iterator[tuple]:
        with torch.no_grad():
            yield "raw", denoiser.raw(arrays["x"], t, s, cond), tolerance
            yield "denoised", denoiser(arrays["x"], t, s, cond), tolerance
            yield "G", denoiser.jump(arrays["x"], t, s, cond), tolerance

    compare(topic, values(), record_property)
    loaded = fewstep.load(model.save(tmp_path / "m"), device="cpu")
    assert loaded.sample(2, steps=2, gamma=0.5).isfinite().all()
    with pytest.raises(UsageError, match="leave out --as edm"):
        import_checkpoint(topic.file(".pt"), ImportOptions(reading="edm"))


def state(topic: Official) -> dict[str, Tensor]:
    return torch.load(topic.file(".pt"), weights_only=True)


@pytest.mark.parametrize("name", ["fastgen_cm", "fastgen_meanflow"])
def test_fastgen(name, tmp_path, record_property):
    topic = official(name, tmp_path)
    arrays, two_time = topic.arrays, "meanflow" in name
    shift = topic.settings["sigma_shift"]
    reading = None if two_time else "consistency" if shift else "consistency-plain"
    t, cond = arrays["t"].double(), topic.cond("condition")
    s = arrays["r"].double() if two_time else None
    training = next(path for part, path in topic.files.items() if "converted" not in part)

    def answer(path, weights: str | None) -> Tensor:
        options = ImportOptions(reading=reading, weights=weights, sigma_min=shift or None)
        model = import_checkpoint(path, options).model
        assert model.contract.sampling.kind == ("deterministic" if two_time else "renoise")
        assert model.sample(1).isfinite().all()
        with torch.no_grad():
            return model.denoiser(arrays["x"], t, s, cond)

    def values() -> Iterator[tuple]:
        for weights in ("net", "ema"):
            yield f"out_{weights}", answer(training, weights), TIGHT

    compare(topic, values(), record_property)
    assert torch.equal(answer(training, None), answer(training, "ema"))
    converted = answer(topic.file("converted"), None)
    assert any(torch.equal(converted, answer(training, name)) for name in ("net", "ema"))


def test_fastgen_s_file_does_not_say_how_its_network_was_trained(tmp_path):
    topic = official("fastgen_cm", tmp_path)
    with pytest.raises(UsageError, match=r"--as edm .* or --as consistency-plain"):
        import_checkpoint(topic.file("converted"))
    path = next(path for part, path in topic.files.items() if "converted" not in part)
    with pytest.raises(UsageError, match=r"no network 'ema_9999'; give --weights net or ema"):
        import_checkpoint(path, ImportOptions(weights="ema_9999"))
