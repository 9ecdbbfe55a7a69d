"""OpenAI's files: our network gives what theirs gave, and what the file lacks is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from checkpoint_files import Official, compare, official
from fewstep import ImportOptions, UsageError, import_checkpoint
from fewstep.importing.architectures.openai import by_head
from fewstep.models import NearestStep, NoisePrediction

TOPICS = ("openai_classcond", "openai_uncond")
TIMES = 3e-5
"""The network reads times up to 1100, whose sines in float32 are that exact."""


def flags(topic: Official) -> ImportOptions:
    """The options that say what the file's flags said."""
    of = topic.settings["flags"]
    heads = (
        {"head_channels": of["num_head_channels"]}
        if of["num_head_channels"] > 0
        else {"heads": of["num_heads"]}
    )
    levels = {"sigma_min": of["sigma_min"], "sigma_max": of["sigma_max"]}
    return ImportOptions(resolution=of["image_size"], **heads, **levels)


@pytest.mark.parametrize("name", TOPICS)
def test_openai(name, tmp_path, record_property):
    topic = official(name, tmp_path)
    path, options, arrays = topic.file(".pt"), flags(topic), topic.arrays
    sigma, cond = arrays["sigma"].double(), topic.cond()

    def values() -> Iterator[tuple]:
        for reading, output in (("edm", "teacher"), ("consistency", "consistency")):
            model = import_checkpoint(path, replace(options, reading=reading)).model
            denoiser = model.denoiser
            assert model.contract.data.labels == topic.settings["num_classes"]
            assert model.contract.sampling.kind == {"edm": "ode"}.get(reading, "renoise")
            with torch.no_grad():
                yield f"denoised_{output}", denoiser(arrays["x"], sigma, None, cond), TIMES
        _, _, c_in, c_noise = denoiser.preconditioning.coefficients(sigma)
        yield "network_input_time", c_noise, TIMES
        scaled = (c_in[:, None, None, None] * arrays["x"]).float()
        with torch.no_grad():
            raw = denoiser.net(scaled, arrays["network_input_time"].float(), None, cond)
        yield "raw", raw, TIMES, raw.shape[1]

    compare(topic, values(), record_property)


def test_what_the_file_does_not_say_is_asked_for(tmp_path):
    topic = official(TOPICS[1], tmp_path)
    path, options = topic.file(".pt"), replace(flags(topic), reading="edm")
    for missing, message in (
        ({"reading": None}, "does not say what its output means: give --as consistency"),
        ({"resolution": None}, "give --resolution N"),
        ({"head_channels": None, "heads": None}, r"give --head-channels N .* or --heads N"),
    ):
        with pytest.raises(UsageError, match=message):
            import_checkpoint(path, replace(options, **missing))
    with pytest.raises(UsageError, match=r"do not split into the heads|divisible by"):
        import_checkpoint(path, replace(options, heads=None, head_channels=5))


def test_guided_diffusion_predicts_noise_on_ddpm_s_steps(tmp_path):
    topic = official(TOPICS[1], tmp_path)
    path, options = topic.file(".pt"), flags(topic)
    linear = import_checkpoint(path, replace(options, reading="ddpm-linear")).model
    cosine = import_checkpoint(path, replace(options, reading="ddpm-cosine")).model
    assert isinstance(linear.denoiser.preconditioning, NoisePrediction)
    assert isinstance(cosine.denoiser.preconditioning, NearestStep)
    last = torch.tensor([999.0], dtype=torch.float64)
    alpha, _, _, _ = linear.denoiser.path.coefficients(last)
    # DDPM's last cumulative product of 1 - beta, for betas from 0.0001 to 0.02.
    assert float(alpha**2) == pytest.approx(4.0358e-5, rel=1e-3)
    assert float(linear.denoiser.preconditioning.coefficients(last).c_noise) == 999
    assert linear.sample(1, steps=2).isfinite().all()
    assert cosine.sample(1, steps=2).isfinite().all()


@pytest.mark.parametrize("heads_first", [False, True])
def test_rows_of_attention_are_ordered_by_head_then_channel(heads_first):
    heads, width = 2, 3
    # Row (kind, head, channel) holds the digits kind, head, channel.
    rows = torch.tensor(
        [
            100 * kind + 10 * head + channel
            for a in range(heads if heads_first else 3)
            for b in range(3 if heads_first else heads)
            for channel in range(width)
            for kind, head in [(b, a) if heads_first else (a, b)]
        ]
    )
    moved = by_head(rows, ImportOptions(heads=heads), heads_first)
    want = [
        100 * kind + 10 * h + c for h in range(heads) for c in range(width) for kind in range(3)
    ]
    assert moved.tolist() == want


def test_flat_attention_is_guided_diffusion_s_and_has_its_order(tmp_path):
    topic = official(TOPICS[0], tmp_path)
    state = torch.load(topic.file(".pt"), weights_only=True)
    options = replace(flags(topic), reading="edm")
    want = import_checkpoint(topic.file(".pt"), options).model.denoiser.net.state_dict()
    heads_of = {}
    for name, value in state.items():
        if ".qkv." in name:
            channels = value.shape[0] // 3
            heads_of[name] = options.heads or channels // options.head_channels
            split = value.reshape(3, heads_of[name], -1, *value.shape[1:]).transpose(0, 1)
            split = split.reshape(value.shape)
            state[name] = split[..., 0].clone() if name.endswith("weight") else split.clone()
        elif ".proj_out.weight" in name:
            state[name] = value[..., 0].clone()
    assert heads_of
    torch.save(state, tmp_path / "guided.pt")
    found = import_checkpoint(tmp_path / "guided.pt", options).model.denoiser.net.state_dict()
    assert all(torch.equal(found[name], want[name]) for name in want)
