"""EDM2's power-function averages: stored ones, and one of another width made of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fewstep as library
from checkpoint_files import TIGHT, Official, compare, official
from fewstep import ImportOptions, UsageError, import_checkpoint
from fewstep.importing.archives import open_archive
from fewstep.importing.parts import part_of
from fewstep.importing.snapshots import average_of, edm2_snapshots
from fewstep.training.posthoc import posthoc_coefficients
from fewstep.training.snapshots import reconstruct
from tiny import fewstep

SUM = 1e-6
"""Official code sums snapshots in float32, the library in float64."""


@pytest.fixture
def topic(tmp_path) -> Official:
    return official("edm2_phema", tmp_path)


@pytest.fixture
def folder(topic, tmp_path) -> Path:
    for name, path in topic.files.items():
        if name.endswith(".pkl"):
            (tmp_path / "snapshots").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "snapshots" / name)
    return tmp_path / "snapshots"


def weights_of(imported, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights by the file's names, shaped as the file's; others from its reader."""
    own = imported.model.denoiser.net.state_dict()
    ours = {k: own[v].reshape(state[k].shape) for k, v in imported.report.used.items()}
    return {**state, **ours}


def raw(content) -> dict[str, Tensor]:
    return {name: lazy.tensor().float() for name, lazy in content.items()}


def test_stored_and_reconstructed_averages(topic, folder, record_property):
    state = open_archive(topic.file("training-state"))
    snapshots = edm2_snapshots(folder)
    assert [each.images for each in snapshots] == sorted(
        each["nimg"] for each in topic.document["files"] if "nimg" in each
    )

    def values() -> Iterator[tuple]:
        for std, tensors in zip(topic.settings["stds"], state.content["ema"]["emas"], strict=True):
            options = ImportOptions(weights=f"ema-{std:.3f}")
            ours = weights_of(import_checkpoint(state.source, options), raw(tensors))
            last = [each for each in snapshots if each.std == std][-1]
            stored = weights_of(import_checkpoint(last.path), raw(tensors))
            for name in topic.arrays:
                if name.startswith(f"ema{std:.3f}."):
                    key = name.split(".", 2)[2]
                    yield name, ours[key], TIGHT
                    assert torch.allclose(stored[key], topic.arrays[name], atol=2e-3), name
        for std in topic.settings["out_std"]:
            offsets = [each.images for each in snapshots]
            found = posthoc_coefficients(
                offsets, [each.std for each in snapshots], max(offsets), std
            )[:, 0]
            imported = average_of(snapshots, found.tolist())
            networks = [part_of(open_archive(s.path).content["ema"]).state() for s in snapshots]
            beside = {
                name: sum(
                    w * n[name].tensor().float()
                    for w, n in zip(found.tolist(), networks, strict=True)
                )
                for name in networks[0]
                if name.startswith("logvar")
            }
            start = {**raw(networks[0]), **beside}
            ours = weights_of(imported, start)
            for name in topic.arrays:
                if name.startswith(f"reconstructed{std:.3f}."):
                    yield name, ours[name.split(".", 2)[2]], SUM

    compare(topic, values(), record_property)


def test_the_command_makes_the_average(topic, folder, tmp_path, capsys):
    width = topic.settings["out_std"][0]
    done = fewstep(
        capsys, "average", str(folder), "--std", str(width), "--out", str(tmp_path / "m")
    )
    assert done.code == 0, done.err
    assert "of 4 snapshots" in done.out
    model = library.load(tmp_path / "m", device="cpu")
    assert model.sample(2, steps=2).isfinite().all()
    gain = float(topic.arrays[f"reconstructed{width:.3f}.unet.out_gain"])
    assert model.denoiser.net.state_dict()["last_gain"].item() == pytest.approx(gain, abs=SUM)
    assert "an average of 4 snapshots" in (tmp_path / "m" / "README.md").read_text()


def test_a_stored_width_is_its_own_snapshot(folder, tmp_path):
    early, late = edm2_snapshots(folder)[1], edm2_snapshots(folder)[3]
    for step, snapshot in ((early.kimg, early), (None, late)):
        reconstruct(folder, snapshot.std, tmp_path / "m", step)
        own = library.load(tmp_path / "m", device="cpu").denoiser.state_dict()
        for name, want in import_checkpoint(snapshot.path).model.denoiser.state_dict().items():
            assert torch.allclose(own[name], want, atol=1e-6), name


def test_what_is_no_training_s_snapshots_is_refused(topic, folder, tmp_path):
    with pytest.raises(UsageError, match=f"fewstep average {folder} --std WIDTH"):
        import_checkpoint(folder)
    with pytest.raises(UsageError, match="no snapshots of 5 thousand images, but of "):
        reconstruct(folder, 0.07, tmp_path / "m", 5)
    with pytest.raises(UsageError, match="--weights net or ema-0"):
        import_checkpoint(topic.file("training-state"), ImportOptions(weights="ema"))
    first = edm2_snapshots(folder)[0].path
    data = first.read_bytes()
    phases = import_checkpoint(first).model.denoiser.net.state_dict()["fourier.phases"]
    pattern = phases.half().numpy().tobytes()
    assert pattern in data
    first.write_bytes(data.replace(pattern, pattern[2:] + pattern[:2]))
    with pytest.raises(UsageError, match=r"differ in unet\.emb_fourier\.phases"):
        reconstruct(folder, 0.07, tmp_path / "m")
    first.write_bytes(official("edm2_rgb_cond", tmp_path).file(".pkl").read_bytes())
    with pytest.raises(UsageError, match="holds another network than"):
        reconstruct(folder, 0.07, tmp_path / "m")
    first.write_bytes(official("edm_ddpmpp", tmp_path).file("edm_ddpmpp.pkl").read_bytes())
    with pytest.raises(UsageError, match="holds no EDM2 network"):
        reconstruct(folder, 0.07, tmp_path / "m")
    first.write_bytes(data)
    shutil.copy(first, folder / first.name.replace("edm2", "other"))
    with pytest.raises(UsageError, match="of several trainings"):
        reconstruct(folder, 0.07, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_training_state_does_not_say_its_heads(tmp_path):
    topic = official("edm2_rgb_cond", tmp_path)
    path = topic.file(".pkl")
    whole = import_checkpoint(path)
    state = {
        k: v.tensor().float() for k, v in part_of(open_archive(path).content["ema"]).state().items()
    }
    torch.save({"net": state, "loss_fn": {"sigma_data": 0.4}, "ema": {}}, tmp_path / "state.pt")
    size = {"head_channels": whole.model.denoiser.net.options.get("head_channels")}
    with pytest.raises(UsageError, match="--head-channels"):
        import_checkpoint(tmp_path / "state.pt")
    ours = import_checkpoint(tmp_path / "state.pt", ImportOptions(**size))
    assert ours.model.denoiser.preconditioning.sigma_data == 0.4
    assert any("not an average" in note for note in ours.report.notes)
    want = whole.model.denoiser.state_dict()
    assert all(torch.equal(v, want[k]) for k, v in ours.model.denoiser.state_dict().items())
    x, cond = topic.arrays["x"], topic.cond()
    t = topic.arrays["sigma"].double()
    with torch.no_grad():
        c = [m.model.denoiser.net(x, t.log().float() / 4, None, cond) for m in (ours, whole)]
    assert torch.allclose(*c, atol=1e-5)


def test_fastgen_s_files_on_edm2(tmp_path):
    """Its names are EDM2's, and its gains are rows of one number."""
    path = official("edm2_rgb_cond", tmp_path).file(".pkl")
    whole = import_checkpoint(path).model
    part = part_of(open_archive(path).content["ema"])
    state = {k: v.tensor().float() for k, v in part.state().items()}
    state = {k: v.reshape(1) if k.endswith("gain") else v for k, v in state.items()}
    heads = {"head_channels": whole.denoiser.net.options.get("head_channels")}
    nested = {
        "model": {"net": {k: v + 1 for k, v in state.items()}, "ema_1": state},
        "iteration": 1,
    }
    for content in (state, nested):
        torch.save(content, tmp_path / "fastgen.pth")
        with pytest.raises(UsageError, match=r"--as edm .* or --as consistency-plain"):
            import_checkpoint(tmp_path / "fastgen.pth", ImportOptions(**heads))
        model = import_checkpoint(
            tmp_path / "fastgen.pth", ImportOptions(reading="consistency-plain", **heads)
        ).model
        own = model.denoiser.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in whole.denoiser.state_dict().items())
        assert model.contract.sampling.kind == "renoise"
    for name, reason in (("unet.emb_noise_r.weight", "two times"), (None, "fixed frequencies")):
        other = {k: v for k, v in state.items() if name or "fourier" not in k}
        torch.save(other | ({name: torch.zeros(2)} if name else {}), tmp_path / "fastgen.pth")
        with pytest.raises(UsageError, match=reason):
            import_checkpoint(tmp_path / "fastgen.pth", ImportOptions(reading="edm", **heads))
