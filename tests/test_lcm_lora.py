"""LCM-LoRA of pipelines: trained here, exported, and loaded by the stock pipelines' own loaders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny_pipelines
from fewstep import import_checkpoint
from fewstep.core import Batch, Rng
from fewstep.importing import ImportOptions
from fewstep.model import load
from fewstep.models import LCM_TARGETS, Denoiser, Guided, LatentBoundary, grown
from fewstep.models.nets.stock import FLUX_GUIDANCE
from fewstep.objectives.lcm import LatentConsistency
from fewstep.objectives.shared.discrete import TeacherStep
from fewstep.paths import DiscreteVariancePreserving
from fewstep.steps import ddim
from fewstep.times import Uniform, strided
from test_prepared_training import CAPTIONS, PIXELS, SHORT, run
from tiny_pipelines import library, saved

FAMILIES = {
    "sd": lambda: tiny_pipelines.sd(),
    "sd2": lambda: tiny_pipelines.sd(prediction_type="v_prediction"),
    "sdxl": lambda: tiny_pipelines.sdxl(),
    "sd3": lambda: tiny_pipelines.sd3(),
    "flux": lambda: tiny_pipelines.flux(),
}


def images(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        pixels = rng.integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_pipelines_load_what_was_trained(family, tmp_path):
    """One command from a pipeline and pictures to adapters; the stock loader adds the same."""
    stock = library()
    pipe = FAMILIES[family]()
    saved(pipe, tmp_path / "pipeline")
    out = tmp_path / "run"
    command = ["train", "lcm", "--model", tmp_path / "pipeline", "--data", images(tmp_path / "i")]
    # Adapters of two steps change nothing that can be seen, so the rate is high.
    size = ["--resolution", PIXELS, "--lora", 2, "--lora-alpha", 4, "--no-embed-guidance"]
    rate = ["--train.lr", "0.05", "--guidance-low", 2, "--guidance-high", 6, "--ddim-steps", 10]
    assert run(*command, *size, *rate, *SHORT, "--out", out) == 0
    student, teacher = load(out, device="cpu"), load(out / "teacher", device="cpu")
    assert student.adapter is not None
    unet = family in {"sd", "sd2", "sdxl"}
    targets = [f".{name}" for name in LCM_TARGETS]
    assert not unet or all(f".{k}".endswith(tuple(targets)) for k in student.adapter.layers)
    ours, before = student.denoiser.net.net, teacher.denoiser.net.net
    name = "unet" if unet else "transformer"
    for dialect in ("diffusers", "kohya") if unet else ("diffusers",):
        files = tmp_path / dialect
        assert run("export", out, "--to", "lora", "--dialect", dialect, "--out", files) == 0
        weights = next(files.glob("*.safetensors"))
        again = getattr(stock, type(pipe).__name__).from_pretrained(tmp_path / "pipeline")
        again.load_lora_weights(str(files), weight_name=weights.name)
        theirs = getattr(again, name).float().eval()
        assert any("lora" in key for key in theirs.state_dict())
        theirs.fuse_lora()
        merged = {k.replace(".base_layer", ""): v for k, v in theirs.state_dict().items()}
        changed = 0
        for key, value in ours.state_dict().items():
            torch.testing.assert_close(merged[key], value, atol=1e-5, rtol=1e-4)
            changed += not torch.equal(value, before.state_dict()[key])
        moved = sum(bool(f.delta().any()) for f in student.adapter.layers.values())
        assert changed == moved > len(student.adapter.layers) // 2
        # Without the header the file means the same.
        bare = tmp_path / f"{dialect}-bare"
        bare.mkdir()
        save_file(load_file(weights), bare / weights.name)
        plain = getattr(stock, type(pipe).__name__).from_pretrained(tmp_path / "pipeline")
        plain.load_lora_weights(str(bare), weight_name=weights.name)
        getattr(plain, name).fuse_lora()
        state = getattr(plain, name).state_dict()
        for key in ours.state_dict():
            twin = (
                key if key in state else f"{key.rpartition('.')[0]}.base_layer.{key.split('.')[-1]}"
            )
            torch.testing.assert_close(state[twin], ours.state_dict()[key], atol=1e-5, rtol=1e-4)
        # fewstep merge reads each dialect too.
        whole = tmp_path / f"{dialect}-merged"
        assert run("merge", out / "teacher", files, "--out", whole) == 0
        x = load(whole, device="cpu").sample(2, prompts="a cat", steps=2, latents=True)
        y = student.sample(2, prompts="a cat", steps=2, latents=True)
        torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3)


def test_an_adapter_of_another_pipeline_is_refused(tmp_path, capsys):
    library()
    saved(tiny_pipelines.sd(), tmp_path / "pipeline")
    out = tmp_path / "run"
    command = ["train", "lcm", "--model", tmp_path / "pipeline", "--data", images(tmp_path / "i")]
    assert run(*command, "--resolution", PIXELS, "--lora", 2, *SHORT, "--out", out) == 0
    assert (
        run("export", out, "--to", "lora", "--dialect", "diffusers", "--out", tmp_path / "l") == 0
    )
    assert run("merge", "digits-edm", tmp_path / "l", "--out", tmp_path / "no") == 2
    assert "is an adapter of another model" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("embedded", [False, True])
def test_flux_is_given_a_scale_only_where_the_student_embeds_it(embedded, tmp_path):
    """FLUX.1-dev can read a scale; the LoRA script's student is given none, nor is the teacher."""
    library()
    folder = saved(tiny_pipelines.flux(), tmp_path / "pipeline")
    model = import_checkpoint(folder, ImportOptions(resolution=PIXELS)).model
    table = DiscreteVariancePreserving()
    grid = strided(10, table.steps)
    path = replace(table, t_min=0.0, t_max=float(grid[0]))
    teacher = model.denoiser.on(path)
    inner = grown(teacher, guidance=embedded)
    student = Denoiser(inner.net, LatentBoundary(inner=inner.preconditioning, path=path))
    objective = LatentConsistency(
        student,
        TeacherStep(Guided(teacher, model.contract.data.nulls), ddim),
        grid=grid,
        guidance=Uniform(6.0, 16.0),
    )
    read: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}

    def watch(name: str, denoiser: Denoiser) -> None:
        def hook(module, args, kwargs):
            read[name].append(kwargs["guidance"])

        denoiser.net.net.register_forward_pre_hook(hook, with_kwargs=True)

    watch("student", student)
    watch("teacher", teacher)
    cond = model.conditions([0, 1], prompts=["a cat", "a dog"])
    batch = Batch(torch.randn(2, *model.contract.data.shape), cond)
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    assert objective.loss(batch, draws).total().isfinite()
    assert draws.guidance is not None
    assert len(read["student"]) == 2
    for scale in read["student"]:
        own = draws.guidance.tolist() if embedded else [FLUX_GUIDANCE] * 2
        assert scale.tolist() == pytest.approx(own)
    for scale in read["teacher"]:
        assert scale.tolist() == [FLUX_GUIDANCE] * 4
