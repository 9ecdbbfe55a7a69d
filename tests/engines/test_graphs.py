"""Exported graphs answer as torch does: every network, every edge, every size of batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fewstep as library
from every_net import built
from fewstep.conditions import Label, Mask, Vector
from fewstep.conditions import Sequence as Tokens
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.engines import ENGINES, DenoiserGraph, EngineDenoiser, examples, run_by
from fewstep.engines.check import LARGEST_ERROR, difference, evaluated, largest_error
from fewstep.engines.onnx import write_onnx
from fewstep.engines.sessions import open_onnx, open_openvino
from fewstep.errors import UsageError
from fewstep.exporting import export
from fewstep.model import Model
from fewstep.models import EDM, ConsistencyBoundary, Denoiser, Flow, Switched
from fewstep.models.nets import DiT, ResidualMLP, UNet1d
from fewstep.paths import Linear, VarianceExploding
from tiny import fewstep

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
vino = pytest.importorskip("openvino")

PLAIN = ("mlp", "ddpmpp", "ncsnpp", "adm", "edm2", "dit")


def model(net: nn.Module, scalings=None, kind: str = "renoise", **conditions) -> Model:
    """A model in float32 with a contract that declares what its network reads."""
    scalings = scalings or ConsistencyBoundary(sigma_data=0.5)
    labels = {"label": Label(classes=3)} if "label" in net.cond_keys else {}
    spec = DataSpec(shape=net.options["shape"], conditions={**labels, **conditions})
    t = scalings.path.t_max
    std = float(scalings.path.coefficients(torch.tensor([t], dtype=torch.float64)).sigma)
    sampling = Sampling(start=Start(t=t, std=std), kind=kind, times={1: (t,)}, any_times=True)
    contract = Contract(method="cd", data=spec, sampling=sampling)
    return Model(Denoiser(net.float(), scalings), contract)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize("name", PLAIN)
def test_every_network_answers_as_torch_does(name, files):
    one = model(built(name))
    graph, file = evaluated(DenoiserGraph(one.denoiser)), files / f"{name}.onnx"
    write_onnx(graph, examples(one.denoiser, one.contract, 2), file)
    for opened in (open_onnx, open_openvino):
        assert largest_error(one.denoiser, one.contract, opened(file)) < 2e-5
    # The answers say something.
    inputs = examples(one.denoiser, one.contract, 2)
    answer = open_onnx(file)({key: value.numpy() for key, value in inputs.items()})
    assert float(np.abs(answer).max()) > 0.05


def test_a_policy_s_network_is_exported(files):
    torch.manual_seed(0)
    net = UNet1d((2, 16), widths=(8, 16), embedding=8, kernel=3, vectors={"pose": 4})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    one = model(net, pose=Vector(shape=(4,)))
    file = files / "unet1d.onnx"
    write_onnx(
        evaluated(DenoiserGraph(one.denoiser)), examples(one.denoiser, one.contract, 2), file
    )
    for opened in (open_onnx, open_openvino):
        assert largest_error(one.denoiser, one.contract, opened(file)) < 2e-5


class Mish(nn.Module):
    def forward(self, x):
        return nn.functional.mish(x)


@pytest.mark.parametrize("opened", [open_onnx, open_openvino])
def test_mish_is_exact_at_every_edge(opened, files):
    """OpenVINO has no code for its own Mish on some processors; the graph spells it out."""
    file = files / "mish.onnx"
    noise = {"noise": torch.randn(2, 3)}
    if not file.exists():
        write_onnx(evaluated(Mish()), noise, file, "samples")
    edges = [0.0, -0.0, 1e-8, 19.9, 20.1, 44.4, 89.0, -89.0, -104.0, 3e38, -3e38, torch.inf]
    x = torch.cat([torch.linspace(-30, 30, 6001), torch.tensor([*edges, -torch.inf, torch.nan])])
    x = x[:, None].expand(-1, 3).contiguous()
    out, right = torch.from_numpy(opened(file)({"noise": x.numpy()})), nn.functional.mish(x)
    assert torch.equal(out.isnan(), right.isnan())
    exact = nn.functional.mish(x.double()).nan_to_num(0.0, 0.0)
    error = (out.double().nan_to_num(0.0, 0.0) - exact).abs() / exact.abs().clamp(min=1.0)
    assert float(error.max()) < 1e-6


def test_what_openvino_cannot_compile_is_one_message(files, monkeypatch):
    one, file = model(built("mlp")), files / "refused.onnx"
    inputs = examples(one.denoiser, one.contract, 2)
    write_onnx(evaluated(DenoiserGraph(one.denoiser)), inputs, file)
    session = open_openvino(file)

    class Core:
        def compile_model(self, *args):
            raise RuntimeError("Exception from core.cpp:1:\nno code for it.\n")

    monkeypatch.setattr(session, "_core", Core())
    with pytest.raises(UsageError, match=r"\(no code for it\.\); use the engine onnx"):
        session({key: value.numpy() for key, value in inputs.items()})


def test_conditions_second_times_and_sequences_are_inputs(files):
    given = {"vectors": {"pose": 4}, "sequences": {"text": (6, 5)}}
    torch.manual_seed(0)
    net = DiT((2, 8, 8), depth=2, width=8, heads=2, two_time=True, **given)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    declared = {"pose": Vector(shape=(4,)), "text": Tokens(shape=(5,), length=6)}
    one = model(net, Flow(path=Linear()), "deterministic", **declared)
    inputs = examples(one.denoiser, one.contract, 2)
    assert [*inputs] == ["x", "t", "s", "pose", "text", "text_mask"]
    file = files / "dit-declared.onnx"
    write_onnx(evaluated(DenoiserGraph(one.denoiser)), inputs, file)
    run = EngineDenoiser(one.denoiser, open_onnx(file))
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    t, s = torch.linspace(0.2, 1, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    cond = {"pose": torch.randn(5, 4), "text": torch.randn(5, 6, 5)}
    cond["text_mask"] = torch.arange(6)[None] < torch.arange(5)[:, None]
    for at in (s, None, t / 2):
        right = one.denoiser(x, t, at, cond)
        torch.testing.assert_close(run(x, t, at, cond), right, atol=1e-5, rtol=0)
    other = {**cond, "pose": cond["pose"] + 1}
    assert float((run(x, t, s, other) - run(x, t, s, cond)).abs().max()) > 1e-3


def test_a_model_of_two_networks_is_one_graph(files):
    path = VarianceExploding()
    low, high = (Denoiser(built("mlp").float(), EDM(sigma_data=d, path=path)) for d in (0.5, 1.0))
    spec = DataSpec(shape=(2,), range=None, conditions={"label": Label(classes=3)})
    start = Start(t=80.0, std=80.0)
    sampling = Sampling(start=start, kind="renoise", times={1: (80.0,)}, any_times=True)
    one = Model(Switched(low, high, 1.0), Contract(method="tcm", data=spec, sampling=sampling))
    file = files / "switched.onnx"
    write_onnx(
        evaluated(DenoiserGraph(one.denoiser)), examples(one.denoiser, one.contract, 2), file
    )
    run = EngineDenoiser(one.denoiser, open_onnx(file))
    x, t = torch.randn(6, 2), torch.tensor([0.01, 0.5, 0.999, 1.0, 3.0, 80.0])
    cond = {"label": torch.tensor([0, 1, 2, 3, 0, 1])}
    torch.testing.assert_close(
        run(x, t, None, cond), one.denoiser(x, t, None, cond), atol=1e-5, rtol=0
    )


def test_a_card_gives_the_folder_as_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library.export(library.load("digits-cd", device="cpu"), "torch", "it's mine")
    text = (tmp_path / "it's mine" / "README.md").read_text()
    assert """torch.export.load("it's mine/model.pt2")""" in text
    assert "Where the folder has moved, give its new place." in text


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_the_card_and_the_contract_lie_beside_the_graph(to, tmp_path, capsys, monkeypatch):
    outcome = fewstep(capsys, "export", "digits-cd", "--to", to, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "its answers differ from torch's by" in outcome.out
    said = json.loads((tmp_path / "out" / "fewstep.json").read_text())
    assert said["times"]["1"] == [80.0]
    assert said["largest_error"] < 1e-5
    # What the card says is run word for word.
    text = (tmp_path / "out" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)  # and not in the folder itself
    room: dict = {}
    exec(compile(code, "card", "exec"), room)
    x, t = torch.from_numpy(room["x"]).float(), torch.full((4,), 80.0)
    right = library.load("digits-cd", device="cpu").denoiser(x, t, None, {"label": torch.arange(4)})
    np.testing.assert_allclose(room["x0"], right.numpy(), atol=1e-5)


def test_a_whole_sampler_is_one_graph_of_its_noise(tmp_path):
    one = library.load("digits-cd", device="cpu")
    error = export(one, "onnx", tmp_path / "two", steps=2)
    assert error < 1e-5
    session = open_onnx(tmp_path / "two" / "model.onnx")
    pairs = [(5, i) for i in range(3)]
    noise = one.noise(pairs, calls=2)
    drawn = torch.stack([noise(0), noise(1)], 1).float().numpy()
    out = session({"noise": drawn, "label": np.arange(3)})
    right = one.sample(3, steps=2, seed=5).numpy()
    np.testing.assert_allclose(out, right, atol=1e-5)
    # Other noise of the second step is another sample.
    drawn[:, 1] += 1
    assert float(np.abs(session({"noise": drawn, "label": np.arange(3)}) - right).max()) > 1e-2


def test_a_diffusion_model_has_no_whole_sampler(capsys, tmp_path):
    args = ("export", "digits-edm", "--to", "onnx", "--sampler", 4, "--out", tmp_path / "out")
    outcome = fewstep(capsys, *args)
    assert outcome.code == 2
    assert "export the denoiser alone" in outcome.err
    assert not (tmp_path / "out").exists()


class Forgetful(nn.Module):
    """A network that adds to its answer what an exporter takes for nothing."""

    cond_keys, two_time = (), False

    def __init__(self) -> None:
        super().__init__()
        self.options = {"shape": (2,)}
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, c_noise, s_noise=None, cond=None):
        size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return self.weight * x / (size + 1e-8)


def test_small_constants_stay_in_the_graph(files):
    """x / (norm + 1e-8) at x = 0 is 0 in torch; the exporter's optimiser makes NaN of it."""
    one = model(Forgetful(), Flow(path=Linear()))
    file = files / "small.onnx"
    write_onnx(
        evaluated(DenoiserGraph(one.denoiser)), examples(one.denoiser, one.contract, 2), file
    )
    run = EngineDenoiser(one.denoiser, open_onnx(file))
    zeros, t = torch.zeros(2, 2), torch.ones(2)
    torch.testing.assert_close(run(zeros, t), one.denoiser(zeros, t))
    assert examples(one.denoiser, one.contract, 7)["x"][0].abs().max() == 0


def test_the_graph_holds_no_path_of_the_machine(tmp_path):
    export(library.load("digits-cd", device="cpu"), "onnx", tmp_path / "out")
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    for word in (b"site-packages", b"/src/", str(Path.cwd()).encode(), b'File "'):
        assert word not in content


def test_dropout_is_not_exported(files):
    net = ResidualMLP((2,), width=16, blocks=2, dropout=0.5)
    nn.init.normal_(net.last.weight)
    one = model(net, Flow(path=Linear()))
    one.denoiser.train()
    graph = evaluated(DenoiserGraph(one.denoiser))
    assert not any(part.training for part in graph.modules())


def test_weights_of_openvino_are_float32(tmp_path):
    one = model(ResidualMLP((2,), width=16, blocks=2), Flow(path=Linear()))
    with torch.no_grad():
        for p in one.denoiser.parameters():
            p.fill_(0.01)  # is no float16
    export(one, "openvino", tmp_path / "out")
    read = vino.Core().read_model(str(tmp_path / "out" / "model.xml"))
    kinds = {
        op.get_element_type().get_type_name()
        for op in read.get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().is_real()
    }
    assert kinds <= {"f32", "f64"}


def test_answers_that_differ_are_refused():
    right = torch.zeros(2, 2)
    assert difference(right + LARGEST_ERROR / 2, right) > 0
    for wrong in (right + 2 * LARGEST_ERROR, right + torch.nan, torch.zeros(1, 2)):
        with pytest.raises(UsageError, match="use the engine eager"):
            difference(wrong, right)


@pytest.fixture(scope="module")
def ragged():
    """A model whose samples have any length."""
    torch.manual_seed(0)
    sizes = {"widths": (8, 16), "embedding": 8, "kernel": 3}
    net = UNet1d((2, None), **sizes, vectors={"pose": 4}, masked=True)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model(net, mask=Mask(), pose=Vector(shape=(4,)))


def test_samples_of_any_length_come_from_one_graph(ragged, tmp_path):
    folder = ragged.save(tmp_path / "model")
    run = library.load(folder, engine="onnx")
    given = {"steps": 2, "cond": {"pose": torch.ones(4)}}
    for lengths in ([1], [2, 1], [16, 7, 3, 15, 1, 2, 9], [33, 32]):
        own = {"n": len(lengths), "lengths": lengths, **given}
        out, right = run.sample(**own), ragged.sample(**own)
        assert out.shape[2] == max(lengths)
        torch.testing.assert_close(out, right, atol=2e-5, rtol=0)
    # Both free axes have their names.
    (file,) = (folder / "engines").iterdir()
    x, *_ = open_onnx(file)._session.get_inputs()
    assert x.shape == ["batch", 2, "length"]


def test_a_graph_of_one_length_is_found_out(ragged, files):
    """The comparison has three lengths, so a graph that fixes one does not pass."""
    seen = examples(ragged.denoiser, ragged.contract, 2, 8)
    assert [tuple(seen[k].shape) for k in ("x", "mask")] == [(2, 2, 8), (2, 1, 8)]
    assert seen["mask"].sum((1, 2)).tolist() == [8, 4]
    assert seen["x"][1, :, 4:].abs().max() == 0
    lengths = set()

    def session(inputs):
        lengths.add(inputs["x"].shape[2])
        cond = {key: torch.from_numpy(inputs[key]) for key in ragged.denoiser.cond_keys}
        x = torch.from_numpy(inputs["x"][:, :, :13])
        cond["mask"] = cond["mask"][:, :, :13]
        with torch.no_grad():
            return ragged.denoiser(x, torch.from_numpy(inputs["t"]), None, cond).numpy()

    with pytest.raises(UsageError, match=r"answers .* where torch answers"):
        largest_error(ragged.denoiser, ragged.contract, session)
    assert {13, 1} <= lengths


class Neighbours(nn.Module):
    """A network of samples of any length that is exported in a second."""

    cond_keys, two_time = ("mask",), False

    def __init__(self) -> None:
        super().__init__()
        self.options = {"shape": (2, None)}
        self.layer = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return self.layer(x) * cond["mask"] * c_noise[:, None, None]


@pytest.mark.parametrize("to", ["torch", "openvino"])
def test_the_card_of_a_free_length_runs(to, tmp_path):
    one = model(Neighbours(), mask=Mask())
    export(one, to, tmp_path / "out")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    room: dict = {}
    exec(compile(code, "card", "exec"), room)
    assert room["x0"].shape == (4, 2, room["length"])
    x, t = torch.from_numpy(room["x"]).float(), torch.full((4,), 80.0)
    right = one.denoiser(x, t, None, {"mask": torch.ones(4, 1, room["length"])})
    np.testing.assert_allclose(room["x0"], right.detach().numpy(), atol=1e-4)
    with pytest.raises(UsageError, match="have a mask"):
        export(one, "onnx", tmp_path / "two", steps=2)


def test_a_missing_extra_is_named(monkeypatch, tmp_path, capsys):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in {"onnxscript", "onnxruntime", "openvino"}:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    import importlib

    monkeypatch.setattr(importlib, "import_module", lambda name: without(name))
    outcome = fewstep(capsys, "export", "digits-cd", "--to", "onnx", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "pip install 'fewstep[onnx]'" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def shipped(tmp_path):
    """A model folder of one's own."""
    return library.load("digits-cd", device="cpu").save(tmp_path / "model")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_same_call_gives_the_same_samples(engine, shipped, tmp_path, capsys):
    eager = library.load(shipped, device="cpu")
    run = library.load(shipped, engine=engine)
    given = {"n": 5, "steps": 2, "seed": 3, "label": 7}
    torch.testing.assert_close(run.sample(**given), eager.sample(**given), atol=2e-5, rtol=0)
    (graph,) = (shipped / "engines").iterdir()
    made = graph.stat().st_mtime_ns
    out = tmp_path / "x.npz"
    args = ("sample", shipped, "--engine", engine, "-n", 5, "--steps", 2, "--seed", 3)
    outcome = fewstep(capsys, *args, "--label", 7, "--out", out)
    assert outcome.code == 0, outcome.err
    assert graph.stat().st_mtime_ns == made  # exported once
    np.testing.assert_allclose(np.load(out)["x"], eager.sample(**given).numpy(), atol=2e-5)


def test_guidance_and_the_solver_work_through_an_engine(tmp_path):
    folder = library.load("digits-edm", device="cpu").save(tmp_path / "model")
    eager, run = library.load(folder, device="cpu"), library.load(folder, engine="onnx")
    given = {"n": 3, "steps": 4, "guidance": 2.0}
    torch.testing.assert_close(run.sample(**given), eager.sample(**given), atol=1e-4, rtol=0)


def test_a_graph_of_other_weights_is_not_used(shipped):
    library.load(shipped, engine="onnx")
    one = library.load(shipped, device="cpu")
    with torch.no_grad():
        for p in one.denoiser.parameters():
            p.mul_(1.1)
    (old,) = (shipped / "engines").iterdir()
    kept = old.read_bytes()
    one.save(shipped)
    (shipped / "engines").mkdir()
    old.write_bytes(kept)
    torch.testing.assert_close(
        library.load(shipped, engine="onnx").sample(2), one.sample(2), atol=2e-5, rtol=0
    )


def test_a_bundled_model_keeps_its_graph_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load("digits-cd", engine="onnx")
    assert len([*(tmp_path / "fewstep" / "engines").iterdir()]) == 1


def test_an_exported_engine_runs_on_the_cpu_alone():
    with pytest.raises(UsageError, match="runs on the CPU"):
        library.load("digits-cd", engine="onnx", device="cuda")


def test_engines_are_named():
    assert ENGINES == ("eager", "compile", "onnx", "openvino")
    one = library.load("digits-cd", device="cpu")
    with pytest.raises(UsageError, match="did you mean 'onnx'"):
        run_by("onxx", one.denoiser, one.contract, Path())
