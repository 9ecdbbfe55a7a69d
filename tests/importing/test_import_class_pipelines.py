"""The pipeline of DiT, against the pipeline itself."""

from __future__ import annotations

import json

import pytest
import torch

import tiny_pipelines
from fewstep import ImportOptions, UsageError, import_checkpoint, load
from tiny_pipelines import SIZE, library, saved

TRAILING = [999.0, 749.0, 499.0, 249.0]
LABELS = [3, 998]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The pipeline, its folder, and the model that was made of it and stored."""
    root = tmp_path_factory.mktemp("dit")
    pipeline = tiny_pipelines.dit()
    folder = saved(pipeline, root / "pipeline")
    # Published pipelines have it; diffusers reads it and does not write it.
    index = folder / "model_index.json"
    names = {str(i): f"kind {i}" for i in range(1000)}
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}))
    imported = import_checkpoint(folder)
    imported.model.save(root / "model", card="")
    return pipeline, folder, load(root / "model", device="cpu"), imported.report


def test_the_network_answers_as_its_own_class(parts):
    pipeline, _, model, report = parts
    x = torch.randn(3, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([*LABELS, 1000])
    for t in (0.0, 500.0, 999.0):
        times = torch.full((3,), t, dtype=torch.float64)
        with torch.no_grad():
            want = pipeline.transformer(x, timestep=times.long(), class_labels=labels).sample
            got = model.denoiser.raw(x, times, None, {"label": labels})
            model.denoiser.train()  # which must not drop labels by torch's generator
            again = model.denoiser.raw(x, times, None, {"label": labels})
            model.denoiser.eval()
        assert float(want.std()) > 0.01
        assert torch.allclose(got, want[:, :4], atol=1e-5)
        assert torch.equal(again, got)
    assert any("variance" in note for note in report.notes)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_samples_are_those_of_the_pipeline(parts, guidance, monkeypatch):
    pipeline, _, model, _ = parts
    noise = model.noise([(7, 0), (7, 1)])(0)
    monkeypatch.setattr(
        "diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *args, **kwargs: noise.float()
    )
    pipeline.scheduler = library().DDIMScheduler.from_config(
        pipeline.scheduler.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    want = pipeline(LABELS, guidance_scale=guidance, num_inference_steps=4, output_type="pt").images
    got = model.sample(
        2, seed=7, label=LABELS, steps=4, times=TRAILING, guidance=guidance, solver="ddim"
    )
    assert got.shape == (2, 3, 2 * SIZE, 2 * SIZE)
    assert float(want.std()) > 0.01
    assert torch.allclose(got / 2 + 0.5, want, atol=1e-4)


def test_names_of_classes(parts):
    _, folder, model, _ = parts
    assert model.contract.data.class_names[998] == "kind 998"
    index = folder / "model_index.json"
    before = index.read_text()
    value = json.loads(before)
    value["id2label"]["3"] = "kind 4"
    index.write_text(json.dumps(value))
    imported = import_checkpoint(folder)
    index.write_text(before)
    assert imported.model.contract.data.class_names == ()
    assert any("names of classes" in note for note in imported.report.notes)
    with pytest.raises(UsageError, match="gives 2 names, the model has 1000 classes"):
        import_checkpoint(folder, ImportOptions(class_names=("a", "b")))


def test_what_cannot_be_imported(parts):
    _, folder, _, _ = parts
    with pytest.raises(UsageError, match="has no vae/"):
        import_checkpoint(folder / "transformer")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    before = scheduler.read_text()
    value = json.loads(before)
    scheduler.write_text(json.dumps({**value, "beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(UsageError, match="is one of ddpm-cosine"):
        import_checkpoint(folder)
    scheduler.write_text(before)
