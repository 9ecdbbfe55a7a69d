"""Pipelines that read texts, against the pipelines themselves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_pipelines
from fewstep import ImportOptions, UsageError, import_checkpoint, load
from fewstep.importing.formats.pipelines import _shift
from fewstep.models import Flow, NoisePrediction, VPrediction
from tiny_pipelines import SCHEDULE, SIZE, WORDS, library, saved

D = torch.float64
STEPS, GUIDANCE = 4, 5.0
TRAILING = [999.0, 749.0, 499.0, 249.0]
PROMPTS = ["a cat", "two dogs"]
SHAPES = {
    "sd1": lambda: tiny_pipelines.sd(),
    "sd2": lambda: tiny_pipelines.sd(prediction_type="v_prediction"),
    "sdxl": lambda: tiny_pipelines.sdxl(),
    "sd3": lambda: tiny_pipelines.sd3(),
    "flux": lambda: tiny_pipelines.flux(),
    "schnell": lambda: tiny_pipelines.flux(guided=False, use_dynamic_shifting=False, shift=1.0),
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """By name the pipeline, its folder, and the model that was made of it and stored."""
    made = {}

    def pipeline(name: str):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            one = SHAPES[name]()
            folder = saved(one, root / "pipeline")
            options = ImportOptions(resolution=2 * SIZE)
            import_checkpoint(folder, options).model.save(root / "model", card="")
            made[name] = one, folder, load(root / "model", device="cpu")
        return made[name]

    return pipeline


def encoded(pipeline, model, prompts):
    """Conditions of prompts, as the network's conditions."""
    return model.conditions([0] * len(prompts), prompts=prompts)


def network(pipeline, x, t, cond, scale=None):
    """The stock network, called as its pipeline calls it."""
    if hasattr(pipeline, "unet"):
        added = None
        if "pooled" in cond:
            side = float(2 * x.shape[-1])
            ids = torch.tensor([[side, side, 0, 0, side, side]]).expand(len(x), 6)
            added = {"text_embeds": cond["pooled"], "time_ids": ids}
        return pipeline.unet(
            x, t, encoder_hidden_states=cond["text"], added_cond_kwargs=added
        ).sample
    texts = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"]}
    if hasattr(pipeline, "tokenizer_3"):
        return pipeline.transformer(hidden_states=x, timestep=t, **texts).sample
    b, c, h, w = x.shape
    packed = pipeline._pack_latents(x, b, c, h, w)
    out = pipeline.transformer(
        hidden_states=packed,
        timestep=t / 1000,
        guidance=scale,
        txt_ids=torch.zeros(cond["text"].shape[1], 3),
        img_ids=pipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", x.dtype),
        **texts,
    ).sample
    return pipeline._unpack_latents(out, 2 * h, 2 * w, 2)


@pytest.mark.parametrize("name", SHAPES)
def test_the_network_answers_as_its_own_class(pipelines, name):
    pipeline, _, model = pipelines(name)
    cond = encoded(pipeline, model, PROMPTS)
    x = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    flow = isinstance(model.denoiser.preconditioning, Flow)
    guided = torch.full((2,), 3.5) if name == "flux" else None
    for t in (0.25, 0.999) if flow else (0.0, 500.0, 999.0):
        stock = torch.full((2,), 1000 * t if flow else t)
        with torch.no_grad():
            want = network(pipeline, x, stock, cond, guided)
            got = model.denoiser.raw(x, torch.full((2,), t, dtype=D), None, cond)
        assert float(want.std()) > 0.01
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_guided_samples_are_those_of_the_pipeline(pipelines, name):
    pipeline, _, model = pipelines(name)
    module = library()
    noise = model.noise([(7, 0), (7, 1)])(0)
    cond, nulls = encoded(pipeline, model, PROMPTS), model.contract.data.nulls
    embeds = {"prompt_embeds": cond["text"], "negative_prompt_embeds": nulls["text"][None]}
    embeds["negative_prompt_embeds"] = embeds["negative_prompt_embeds"].expand(2, -1, -1)
    if "pooled" in cond:
        embeds["pooled_prompt_embeds"] = cond["pooled"]
        embeds["negative_pooled_prompt_embeds"] = nulls["pooled"].expand(2, -1)
    settings = {"latents": noise, "output_type": "pt", "num_inference_steps": STEPS}
    times = None
    if name.startswith("sd") and name != "sd3":
        pipeline.scheduler = module.DDIMScheduler.from_config(
            pipeline.scheduler.config,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
        )
        settings["guidance_scale"], times = GUIDANCE, TRAILING
    elif name == "sd3":
        # By itself the pipeline shifts the lowest time twice, see docs/interop.md.
        settings["sigmas"] = [1 - i / STEPS for i in range(STEPS)]
        settings["guidance_scale"] = GUIDANCE
    else:
        settings["latents"] = pipeline._pack_latents(noise, 2, 4, SIZE, SIZE)
        settings["true_cfg_scale"] = GUIDANCE
    want = pipeline(**embeds, **settings, height=2 * SIZE, width=2 * SIZE).images
    got = model.sample(
        seed=7, n=2, prompts=PROMPTS, steps=STEPS, times=times, guidance=GUIDANCE, solver="ddim"
    )
    assert got.shape == (2, 3, 2 * SIZE, 2 * SIZE)
    assert float(want.std()) > 0.01
    assert torch.allclose(got / 2 + 0.5, want, atol=1e-4)
    # The words matter.
    other = model.sample(seed=7, n=2, prompts="", steps=1, times=times and times[:1])
    one = model.sample(seed=7, n=2, prompts=PROMPTS, steps=1, times=times and times[:1])
    assert not torch.allclose(other, one, atol=1e-4)


def test_what_is_read_from_the_scheduler(pipelines):
    kinds = {"sd1": NoisePrediction, "sd2": VPrediction, "sdxl": NoisePrediction, "sd3": Flow}
    for name, kind in kinds.items():
        _, _, model = pipelines(name)
        assert isinstance(model.denoiser.preconditioning, kind)
        assert model.contract.sampling.kind == "ode"
        assert model.contract.sampling.guidance is not None
    path = pipelines("sd1")[2].denoiser.path
    alpha = library().DDIMScheduler(**SCHEDULE).alphas_cumprod[[0, 500, 999]].double().sqrt()
    got = path.coefficients(torch.tensor([0.0, 500.0, 999.0], dtype=D)).alpha
    assert torch.allclose(got, alpha, atol=1e-6)
    # linspace(1, 1/4, 4), shifted by 3; of Flux by e^mu for its number of tokens.
    assert pipelines("sd3")[2].times(4) == pytest.approx([1, 0.9, 0.75, 0.5])
    assert pipelines("schnell")[2].times(4) == pytest.approx([1, 0.75, 0.5, 0.25])
    pipeline, _, model = pipelines("flux")
    mu = 0.5 + (SIZE * SIZE / 4 - 256) * (1.15 - 0.5) / (4096 - 256)
    pipeline.scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=mu)
    assert model.times(4) == pytest.approx(pipeline.scheduler.sigmas[:4].tolist(), abs=1e-6)


def test_a_prompt_that_is_too_long_is_named(pipelines):
    _, _, model = pipelines("sd1")
    long = "x" * 2 * WORDS
    with pytest.warns(UserWarning, match=f"the prompt '{long}' has more than {WORDS} tokens"):
        model.sample(1, prompts=long, times=[999.0], steps=1)


def test_a_scale_that_the_network_reads(tmp_path):
    # As latent consistency models have it: 1000 (w - 1), sines first.
    pipeline = tiny_pipelines.sd(time_cond_proj_dim=16)
    model = import_checkpoint(saved(pipeline, tmp_path / "p")).model
    assert model.denoiser.optional_keys == ("guidance",)
    cond = encoded(pipeline, model, PROMPTS)
    x, t = torch.ones(2, 4, SIZE, SIZE), torch.full((2,), 500.0)
    w = torch.tensor([8.0, 1.5])
    lcm = library().LatentConsistencyModelPipeline.get_guidance_scale_embedding
    with torch.no_grad():
        want = pipeline.unet(
            x, t, encoder_hidden_states=cond["text"], timestep_cond=lcm(None, w - 1, 16)
        ).sample
        got = model.denoiser.raw(x, t.double(), None, {**cond, "guidance": w})
        without = model.denoiser.raw(x, t.double(), None, cond)
    # Sines of thousands differ by 1e-4 in float32, depending on how the angle is computed.
    assert torch.allclose(got, want, atol=1e-4)
    assert not torch.allclose(got, without, atol=1e-3)


def edit(path, **changes):
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v != "-"}))


def remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def without_a_weight(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state.pop("conv_in.bias")
    save_file(state, path)


SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: remove(f / "vae"), "no vae/"),
        (lambda f: remove(f / "scheduler"), "no scheduler/scheduler_config.json"),
        (lambda f: remove(f / "text_encoder"), "holds no text encoder"),
        (lambda f: edit(f / SCHEDULER, _class_name="LCMScheduler"), "is a 'LCMScheduler'"),
        (lambda f: edit(f / SCHEDULER, prediction_type="sideways"), "prediction_type 'sideways'"),
        (lambda f: edit(f / SCHEDULER, beta_schedule="squaredcos_cap_v2"), "beta_schedule"),
        (lambda f: edit(f / SCHEDULER, trained_betas=[0.1]), "special betas"),
        (lambda f: edit(f / UNET, in_channels=9), "reads 9 channels and returns 4"),
        (lambda f: edit(f / UNET, addition_embed_type="image"), "cannot build"),
        (lambda f: edit(f / UNET, class_embed_type="timestep"), "has class_embed_type"),
        (lambda f: edit(f / UNET, sample_size="-"), "give --resolution"),
        (lambda f: edit(f / "vae/config.json", latent_channels=8), "another network's weights"),
        (without_a_weight, "nothing becomes net.conv_in.bias"),
    ],
)
def test_what_cannot_be_imported(pipelines, tmp_path, spoil, says):
    folder = saved(pipelines("sd1")[0], tmp_path / "p")
    spoil(folder)
    with pytest.raises(UsageError, match=says):
        import_checkpoint(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base_image_seq_len": 256, "max_image_seq_len": 256}, "are both 256"),
        ({"max_shift": 1e5, "base_image_seq_len": 15}, "leaves none apart"),
        ({"base_shift": 1e-3, "time_shift_type": "linear"}, "leaves none apart"),
        ({"max_shift": "1"}, "the scheduler's max_shift is '1'"),
    ],
)
def test_shifts_that_cannot_be_computed(settings, says):
    usual = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    with pytest.raises(UsageError, match=says):
        _shift({**usual, **settings}, (4, SIZE, SIZE))


def test_t5_alone_hides_its_padding_from_a_unet(tmp_path):
    """The answers are those of the stock U-Net given the mask, and padding changes nothing."""
    pipeline = tiny_pipelines.sd(cross_attention_dim=16)
    folder = saved(pipeline, tmp_path / "p")
    for part, name in (
        (tiny_pipelines.t5(16), "text_encoder"),
        (tiny_pipelines.t5_tokenizer(), "tokenizer"),
    ):
        remove(folder / name)
        part.save_pretrained(folder / name)
    model = import_checkpoint(folder).model
    model.save(tmp_path / "model", card="")
    model = load(tmp_path / "model", device="cpu")
    assert model.denoiser.cond_keys == ("text", "text_mask")
    cond = encoded(pipeline, model, PROMPTS)
    x = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    t = torch.full((2,), 500.0)
    there = int(cond["text_mask"].sum(1).max())
    assert 0 < there < cond["text"].shape[1]
    short = {key: value[:, :there] for key, value in cond.items()}
    noisy = {**cond, "text": torch.where(cond["text_mask"][..., None], cond["text"], 7.0)}
    with torch.no_grad():
        want = pipeline.unet(
            x,
            t,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["text_mask"],
        ).sample
        got, padded, none = (
            model.denoiser.raw(x, t.double(), None, each) for each in (cond, noisy, short)
        )
        seen = model.denoiser.raw(
            x, t.double(), None, {**cond, "text_mask": torch.ones_like(cond["text_mask"])}
        )
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(got, padded, atol=1e-5)
    assert torch.allclose(got, none, atol=1e-5)
    assert not torch.allclose(got, seen, atol=1e-4)
    x = model.sample(1, prompts="a cat", times=[999.0], steps=1, guidance=3.0)
    assert bool(x.isfinite().all())


def test_parts_that_do_not_belong_together(tmp_path):
    pipeline = tiny_pipelines.sd(in_channels=3, out_channels=3)
    with pytest.raises(UsageError, match="latents of 3 channels and the autoencoder reads 4"):
        import_checkpoint(saved(pipeline, tmp_path / "a"))
    pipeline = tiny_pipelines.sd(cross_attention_dim=6)
    with pytest.raises(UsageError, match="tokens of 6 numbers, the text encoders make 8"):
        import_checkpoint(saved(pipeline, tmp_path / "b"))


def test_a_network_without_its_pipeline(pipelines):
    with pytest.raises(UsageError, match=r"no vae/.*give the folder of the whole pipeline"):
        import_checkpoint(pipelines("sd1")[1] / "unet")


def test_options_that_say_what_the_folder_says(pipelines):
    folder = pipelines("sd1")[1]
    with pytest.raises(UsageError, match="leave out --as edm"):
        import_checkpoint(folder, ImportOptions(reading="edm"))
    with pytest.raises(UsageError, match="--resolution must be a multiple of 2, got 5"):
        import_checkpoint(folder, ImportOptions(resolution=5))
    model = import_checkpoint(folder, ImportOptions(resolution=24)).model
    assert model.shape == (3, 24, 24)
