"""EDM's, ECT's, TCM's and EDM2's files: our networks give what the official ones gave."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fewstep
from checkpoint_files import TIGHT, Official, Rounding, compare, official
from fewstep import ImportOptions, UsageError, import_checkpoint
from fewstep.importing import import_pair
from fewstep.importing.archives import open_archive
from fewstep.importing.parts import part_of
from fewstep.models import EDM, ConsistencyBoundary, Denoiser, NearestStep
from fewstep.models.preconditioning import Reparametrised, cosine_levels

EDM_TOPICS = (
    "edm_ddpmpp",
    "edm_vp_ddpmpp",
    "edm_ve_ncsnpp",
    "edm_ncsnpp_cond",
    "edm_iddpm_adm",
    "edm_adm_cond",
)
FLOAT16 = 2e-3
"""EDM2's code divides learned gains in float16; the library reads them in float32 first."""


def denoised(denoiser: Denoiser, topic: Official, label: Tensor | None = None) -> Tensor:
    cond = topic.cond() if label is None else {"label": label}
    with torch.no_grad():
        return denoiser(topic.arrays["x"], topic.arrays["sigma"].double(), None, cond)


def outputs(denoiser: Denoiser, topic: Official, classes: int) -> Iterator[tuple]:
    arrays, scalings = topic.arrays, denoiser.preconditioning
    sigma = arrays["sigma"].double()
    _, _, c_in, c_noise = scalings.coefficients(sigma)
    yield "net_in", c_in[:, None, None, None] * arrays["x"], TIGHT
    # VP's time is the difference of a root and a constant, of which float32 leaves few digits.
    cancelled = isinstance(scalings, Reparametrised)
    yield "net_time", c_noise, Rounding(1e-6) if cancelled else TIGHT
    with torch.no_grad():
        raw = denoiser.net(arrays["net_in"], arrays["net_time"], None, topic.cond())
    yield "raw", raw, TIGHT if "edm2" not in topic.name else FLOAT16, raw.shape[1]
    near = TIGHT if "edm2" not in topic.name else FLOAT16
    yield "denoised", denoised(denoiser, topic), near
    if "denoised_no_label" in arrays:
        null = torch.full((len(sigma),), classes)
        yield "denoised_no_label", denoised(denoiser, topic, null), near
    if "denoised_float32_params" in arrays:
        yield "denoised_float32_params", denoised(denoiser, topic), TIGHT
    if "round_sigma" in arrays:
        yield "round_sigma", rounded(scalings, sigma), TIGHT


def rounded(scalings, sigma: Tensor) -> Tensor:
    """The noise levels that a network knows; only those of iDDPM are a table."""
    if not isinstance(scalings, NearestStep):
        return sigma
    step = scalings.steps - 1 - scalings.coefficients(sigma).c_noise
    return cosine_levels(scalings.steps, scalings.ratio, scalings.offset)[step.long()]


@pytest.mark.parametrize("name", EDM_TOPICS)
def test_edm(name, tmp_path, record_property):
    topic = official(name, tmp_path)
    for path in topic.files.values():
        imported = import_checkpoint(path)
        spec = imported.model.contract.data
        size = topic.arrays["x"].shape[1:]
        assert spec.shape == tuple(size)
        assert spec.labels == topic.settings["label_dim"]
        assert imported.model.contract.sampling.kind == "ode"
        compare(topic, outputs(imported.model.denoiser, topic, spec.labels), record_property)


@pytest.mark.parametrize("name", ["edm2_rgb_cond", "edm2_latent_uncond"])
def test_edm2(name, tmp_path, record_property):
    topic = official(name, tmp_path)
    imported = import_checkpoint(topic.file(".pkl"))
    data, denoiser = imported.model.contract.data, imported.model.denoiser
    latent = "latent" in name
    assert (data.range is None) == latent == any("autoencoder" in n for n in imported.report.notes)

    def values() -> Iterator[tuple]:
        yield from outputs(denoiser, topic, data.labels)
        yield "logvar", uncertainty(topic), FLOAT16

    compare(topic, values(), record_property)
    assert sum("uncertainty" in why for why in imported.report.unused.values()) == 3


def uncertainty(topic: Official) -> Tensor:
    """The file's learned uncertainty, which the reader gives and no model needs."""
    from fewstep.models.nets.edm2 import Uncertainty

    state = part_of(open_archive(topic.file(".pkl")).content["ema"]).state()
    own = Uncertainty(state["logvar_linear.weight"].shape[1])
    names = {
        "fourier.frequencies": "logvar_fourier.freqs",
        "fourier.phases": "logvar_fourier.phases",
        "last.weight": "logvar_linear.weight",
    }
    own.load_state_dict({ours: state[theirs].tensor().float() for ours, theirs in names.items()})
    with torch.no_grad():
        return own(topic.arrays["net_time"]).reshape(topic.arrays["logvar"].shape)


def test_ect(tmp_path, record_property):
    topic = official("ect_ecm", tmp_path)
    model = import_checkpoint(topic.file("network-snapshot")).model
    plain = import_checkpoint(
        topic.file("network-snapshot"), ImportOptions(reading="consistency-plain")
    ).model
    denoiser, arrays = model.denoiser, topic.arrays

    def values() -> Iterator[tuple]:
        yield from outputs(denoiser, topic, 0)
        yield "denoised_train_mode", denoised(plain.denoiser, topic), TIGHT
        start = model.contract.sampling.start
        times = torch.full((len(arrays["z"]),), start.t, dtype=torch.float64)
        with torch.no_grad():
            yield "sample1", denoiser(arrays["z"] * start.std, times), TIGHT

    compare(topic, values(), record_property)
    assert isinstance(denoiser.preconditioning, ConsistencyBoundary)
    assert isinstance(plain.denoiser.preconditioning, EDM)
    assert model.contract.sampling.kind == plain.contract.sampling.kind == "renoise"


def test_ect_s_training_state_is_the_raw_network_and_needs_a_word(tmp_path):
    topic = official("ect_ecm", tmp_path)
    path = topic.file("training-state")
    with pytest.raises(UsageError, match=r"--as consistency .* or --as consistency-plain"):
        import_checkpoint(path)
    imported = import_checkpoint(path, ImportOptions(reading="consistency"))
    assert any("not an average" in note for note in imported.report.notes)
    for name, array in topic.arrays.items():
        if name.startswith("training_state.model."):
            ours = imported.report.used[name.removeprefix("training_state.")]
            assert torch.equal(imported.model.denoiser.net.state_dict()[ours], array)


def test_tcm(tmp_path, record_property):
    topic = official("tcm_two_stage", tmp_path)
    low, high = (topic.file(f"stage{n}-network") for n in (1, 2))
    pair = import_pair(high, low, topic.settings["transition_t"])

    def values() -> Iterator[tuple]:
        yield "denoised_stage1", denoised(import_checkpoint(low).model.denoiser, topic), TIGHT
        yield "denoised_stage2", denoised(import_checkpoint(high).model.denoiser, topic), TIGHT
        yield "denoised", denoised(pair.model.denoiser, topic), TIGHT

    compare(topic, values(), record_property)
    assert pair.model.contract.sampling.kind == "renoise"
    import_checkpoint(topic.file("training-state"), ImportOptions(reading="consistency-plain"))


def test_two_networks_of_one_model(tmp_path):
    topic = official("ect_ecm", tmp_path)
    path, state = topic.file("network-snapshot"), topic.file("training-state")
    options = ImportOptions(reading="consistency")
    pair = import_pair(path, state, 2.0, replace(options))
    low, high = (import_checkpoint(each, options).model.denoiser for each in (state, path))
    above = (topic.arrays["sigma"] >= 2.0)[:, None, None, None]
    want = torch.where(above, denoised(high, topic), denoised(low, topic))
    loaded = fewstep.load(pair.model.save(tmp_path / "m"), device="cpu")
    assert torch.equal(denoised(loaded.denoiser, topic), want)
    assert len(pair.report.used) == 2 * len(import_checkpoint(path).report.used)
    with pytest.raises(UsageError, match="must meet between"):
        import_pair(path, path, 100.0, options)
    other = official("edm_adm_cond", tmp_path).file(".pkl")
    with pytest.raises(UsageError, match="no two stages of one model"):
        import_pair(path, other, 2.0, options)


@pytest.mark.parametrize(
    "name", ["edm_adm_cond", "edm2_rgb_cond", "edm_vp_ddpmpp", "edm_iddpm_adm"]
)
def test_the_model_is_saved_and_loaded(name, tmp_path):
    topic = official(name, tmp_path)
    model = import_checkpoint(topic.file(f"{name}.pkl")).model
    loaded = fewstep.load(model.save(tmp_path / "m"), device="cpu")
    assert loaded.contract == model.contract
    assert torch.equal(denoised(loaded.denoiser, topic), denoised(model.denoiser, topic))
    assert loaded.sample(2, steps=2).isfinite().all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (struct.pack(">d", 1e-6), struct.pack(">d", 1e-3), "eps=0.001"),
        (struct.pack("<d", math.sqrt(0.5)), struct.pack("<d", 0.9), "skip_scale=0.9"),
        (struct.pack("<4f", *[0.25] * 4), struct.pack("<4f", 0, 0.5, 0.5, 0), "is not the filter"),
        (b"SongUNet", b"SongANet", "SongANet"),
    ],
)
def test_a_variant_of_the_network_is_refused(old, new, message, tmp_path):
    path = official("edm_ddpmpp", tmp_path).file("edm_ddpmpp.pkl")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(UsageError, match=message):
        import_checkpoint(path)


def test_options_come_before_what_the_file_says(tmp_path):
    path = official("edm_ddpmpp", tmp_path).file("edm_ddpmpp.pkl")
    options = ImportOptions(sigma_data=0.25, sigma_min=0.01, sigma_max=40.0)
    model = import_checkpoint(path, options).model
    assert model.denoiser.preconditioning.sigma_data == 0.25
    assert (model.denoiser.path.t_min, model.denoiser.path.t_max) == (0.01, 40.0)
    assert model.contract.sampling.start.t == 40.0
    with pytest.raises(UsageError, match="--weights ema"):
        import_checkpoint(path, replace(options, weights="net"))
    with pytest.raises(UsageError, match="run from low to high"):
        import_checkpoint(path, ImportOptions(sigma_min=90.0))


def test_class_names(tmp_path):
    topic = official("edm_adm_cond", tmp_path)
    path, classes = topic.file(".pkl"), topic.settings["label_dim"]
    names = tuple(f"class {n}" for n in range(classes))
    data = import_checkpoint(path, ImportOptions(class_names=names)).model.contract.data
    assert data.class_names == names
    with pytest.raises(UsageError, match=f"{classes + 1} names, the model has {classes} classes"):
        import_checkpoint(path, ImportOptions(class_names=(*names, "more")))
