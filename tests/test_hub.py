"""Models on the Hub: loaded, pinned, kept, pushed, imported, and every refusal in one message."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

import fewstep as library
import tiny_pipelines
from captioned import tokenizer, vae
from fewstep import UsageError, hub, recipe
from fewstep.card_text import Card, front_matter
from fewstep.frontends import Frontend
from fewstep.model import Model
from hub_server import TOKEN, Hub
from tiny import fewstep, settings, trained
from tiny_checkpoints import openai_state

constants = pytest.importorskip("huggingface_hub.constants")

# huggingface_hub's own words to the library that carries its requests.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")

ASSETS = Path(str(resources.files("fewstep") / "assets"))
NAME = "someone/digits"


def files_of(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, an empty cache, and nobody logged in."""
    made = Hub()
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    patched = {
        "ENDPOINT": made.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }
    for name, value in patched.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # Requests that fail are repeated after a while.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield made
    made.close()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two diffusion models of the same points."""
    root = tmp_path_factory.mktemp("teachers")
    first, second = (trained(root / f"{n}", "toy-edm", steps=n) for n in (1, 2))
    return first / "model", second / "model"


def equal(one: library.Model, other: library.Model) -> bool:
    mine, theirs = one.denoiser.state_dict(), other.denoiser.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_model_of_the_hub_is_the_same_model(server: Hub):
    code = {"modeling.py": b"raise SystemExit('executed')", "large.bin": b"never asked for"}
    server.repository(NAME, files_of(ASSETS / "digits-cd") | code)
    model = library.load(f"hub:{NAME}", device="cpu")
    local = library.load("digits-cd", device="cpu")
    assert equal(model, local)
    assert model.contract == local.contract
    assert torch.equal(model.sample(4), local.sample(4))
    asked = "\n".join(server.requests)
    assert "model.safetensors" in asked
    assert "modeling.py" not in asked
    assert "large.bin" not in asked


def test_a_revision_means_its_commit(server: Hub, teachers: tuple[Path, Path]):
    repository = server.repository(NAME, files_of(teachers[0]))
    first = repository.commits[0][0]
    repository.commit(files_of(teachers[1]))
    repository.tags["v1"] = first
    old, new = (library.load(teacher, device="cpu") for teacher in teachers)
    assert not equal(old, new)
    assert equal(library.load(f"hub:{NAME}", device="cpu"), new)
    assert equal(library.load(f"hub:{NAME}@{first}", device="cpu"), old)
    assert equal(library.load(f"hub:{NAME}@v1", device="cpu"), old)
    assert hub.pinned(f"hub:{NAME}@v1") == f"hub:{NAME}@{first}"


def test_a_second_load_needs_no_server(server: Hub, monkeypatch: pytest.MonkeyPatch):
    sha = server.repository(NAME, files_of(ASSETS / "digits-cd")).commits[0][0]
    before = library.load(f"hub:{NAME}", device="cpu")
    count = len(server.requests)
    assert equal(library.load(f"hub:{NAME}@{sha}", device="cpu"), before)
    assert len(server.requests) == count, "a commit in the cache is asked for again"
    server.close()
    assert equal(library.load(f"hub:{NAME}", device="cpu"), before)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal(library.load(f"hub:{NAME}", device="cpu"), before)


def test_offline_nothing_is_asked(server: Hub, monkeypatch: pytest.MonkeyPatch):
    server.repository(NAME, files_of(ASSETS / "digits-cd"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"not in the cache .* HF_HUB_OFFLINE forbids"):
        library.load(f"hub:{NAME}")
    assert server.requests == []


def test_the_environment_is_honoured(server: Hub, tmp_path: Path):
    """As people set it: endpoint, cache and offline mode by variables of a new process."""
    server.repository(NAME, files_of(ASSETS / "digits-cd"))
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def sample(out: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fewstep", "sample", f"hub:{NAME}", "-n", "4"]
        environment = {**os.environ, **own, **more}
        return subprocess.run(
            [*command, "--out", str(tmp_path / out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    online = sample("online.png")
    assert online.returncode == 0, online.stderr
    server.close()
    offline = sample("offline.png", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("online", "offline")]
    assert pictures[0] == pictures[1]
    elsewhere = sample("none.png", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "other"))
    assert elsewhere.returncode == 2
    assert elsewhere.stderr.count("\n") == 1


def student(out: Path, **train: Any) -> library.Model:
    own = settings(batch=8, **train)
    wanted = recipe("toy-cd", teacher=f"hub:{NAME}", train=own)
    return library.train(wanted, out)


@pytest.mark.parametrize("command", [False, True])
def test_a_resumed_run_has_the_teacher_that_it_began_with(
    server: Hub,
    teachers: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: bool,
):
    repository = server.repository(NAME, files_of(teachers[0]))
    first = repository.commits[0][0]
    out = tmp_path / "run"
    words = ["toy-cd", "--teacher", f"hub:{NAME}", "--out", out, "--train.batch", 8]
    words += ["--train.sample-every", 0, "--train.lr", 1e-3, "--train.log-every", 1]

    def go_on(steps: int) -> None:
        if command:
            assert fewstep(capsys, "train", *words, "--train.steps", steps).code == 0
        else:
            student(out, steps=steps)

    go_on(2)
    record = json.loads((out / "run.json").read_text())
    assert record["commits"] == {f"hub:{NAME}": first}
    assert record["run"]["arguments"]["teacher"] == f"hub:{NAME}@{first}"
    frozen = record["frozen"]
    repository.commit(files_of(teachers[1]))
    for steps in (3, 4):  # a resumed run is resumed again
        go_on(steps)
        record = json.loads((out / "run.json").read_text())
        assert record["commits"] == {f"hub:{NAME}": first}
        assert record["frozen"] == frozen
        assert record["delivered"] == steps
    if not command:
        library.train(
            recipe("toy-cd", teacher=f"hub:{NAME}", train=settings(batch=8, steps=1)),
            out,
            fresh=True,
        )
        assert json.loads((out / "run.json").read_text())["frozen"] != frozen


def test_another_revision_is_another_run(server: Hub, teachers: tuple[Path, Path], tmp_path: Path):
    repository = server.repository(NAME, files_of(teachers[0]))
    student(tmp_path / "run", steps=1)
    repository.tags["v2"] = repository.commit(files_of(teachers[1]))
    other = recipe("toy-cd", teacher=f"hub:{NAME}@v2", train=settings(batch=8, steps=2))
    with pytest.raises(UsageError, match="holds a run with other arguments"):
        library.train(other, tmp_path / "run")


def test_what_is_pushed_is_what_is_loaded(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    model = library.load("digits-cd", device="cpu")
    address = model.push_to_hub("someone/copy", token=TOKEN, private=True, message="First digits")
    repository = server.repositories["someone/copy"]
    sha, files = repository.commits[-1]
    assert address.endswith(f"/someone/copy/commit/{sha}")
    assert repository.private
    assert repository.messages == ["First digits"]
    assert {*files} == {"config.json", "model.safetensors", "README.md", "samples.png"}
    folder = model.save(tmp_path / "saved")
    for name in ("config.json", "model.safetensors", "samples.png"):
        assert files[name] == (folder / name).read_bytes(), name
    card = files["README.md"].decode()
    head = card.split("---\n")[1]
    assert "library_name: fewstep" in head
    assert '- "cd"' in head
    assert 'fewstep.load("hub:someone/copy")' in card
    assert str(tmp_path) not in card
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    again = library.load("hub:someone/copy", device="cpu")
    assert equal(again, model)
    again.push_to_hub("someone/copy")
    assert len(repository.commits) == 2, "a second push is a second commit"


def test_a_pushed_model_brings_its_encoders(server: Hub):
    base = library.load("digits-cd", device="cpu")
    frontend = Frontend(vae(), tokenizer())
    whole = Model(base.denoiser, base.contract, base.card, frontend)
    whole.push_to_hub("someone/texts", token=TOKEN)
    assert library.load("hub:someone/texts", device="cpu").frontend.digests == frontend.digests


def test_the_command_pushes_a_run_with_its_numbers(
    server: Hub,
    teachers: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = teachers[0].parent
    (run / "metrics.json").write_text(json.dumps({"student": {"1": {"swd": 0.125}}}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = fewstep(capsys, "push", run, "someone/points", "--licence", "CC-BY-4.0")
    assert done.code == 0, done.err
    assert "hub:someone/points" in done.out
    card = server.repositories["someone/points"].commits[-1][1]["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "| student, 1 call | 0.125 |" in card


def test_front_matter_is_yaml():
    yaml = pytest.importorskip("yaml")
    contract = library.load("digits-cd").contract
    for licence, expected in {
        "": {},
        "Apache-2.0": {"license": "apache-2.0"},
        "Ask: the authors!": {"license": "other", "license_name": "ask-the-authors"},
    }.items():
        text = front_matter(Card(licence=licence), contract)
        assert text.startswith("---\n")
        assert text.endswith("\n---")
        assert yaml.safe_load(text.strip("-\n")) == {
            **expected,
            "library_name": "fewstep",
            "tags": ["fewstep", "cd", "image-generation"],
        }


def saved(tmp_path: Path, value: Any) -> bytes:
    torch.save(value, tmp_path / "checkpoint")
    return (tmp_path / "checkpoint").read_bytes()


def test_a_foreign_checkpoint_is_imported(
    server: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    data = saved(tmp_path, openai_state())
    (tmp_path / "local.pt").write_bytes(data)
    repository = server.repository("other/weights", {"ema.pt": data, "train.py": b"1/0"})
    sha = repository.commits[0][0]
    for i, name in enumerate(("other/weights", f"other/weights@{sha}")):
        out = tmp_path / f"model{i}"
        done = fewstep(capsys, "import", f"hub:{name}", "--out", out, *options())
        assert done.code == 0, done.err
        assert f"downloaded as hub:other/weights@{sha}" in done.out
    fewstep(capsys, "import", tmp_path / "local.pt", "--out", tmp_path / "local", *options())
    local = library.load(tmp_path / "local", device="cpu")
    assert equal(library.load(tmp_path / "model0", device="cpu"), local)
    assert not any("train.py" in one for one in server.requests)
    server.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = fewstep(capsys, "import", "hub:other/weights", "--out", tmp_path / "third", *options())
    assert done.code == 0, done.err


def options() -> tuple[object, ...]:
    return ("--as", "consistency", "--head-channels", 32, "--resolution", 16)


def test_one_of_several_checkpoints_is_named(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = saved(tmp_path, openai_state())
    server.repository("other/weights", {"a/one.pt": data, "two.pt": b"never asked for"})
    out = tmp_path / "model"
    done = fewstep(capsys, "import", "hub:other/weights", "--out", out, *options())
    assert done.code == 2
    assert "several checkpoints (a/one.pt, two.pt)" in done.err
    assert not any("resolve" in one for one in server.requests), "downloaded before it refused"
    name = "hub:other/weights/a/one.pt"
    assert name in done.err
    done = fewstep(capsys, "import", name, "--out", out, *options())
    assert done.code == 0, done.err
    assert not any("two.pt" in one for one in server.requests)


def test_a_pipeline_is_imported(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its tokenizers' files are downloaded, and nothing that is not read."""
    tiny_pipelines.library()
    folder = tiny_pipelines.saved(tiny_pipelines.sd(), tmp_path / "pipeline")
    files = {
        one.relative_to(folder).as_posix(): one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file()
    }
    merges = json.loads(files["tokenizer/tokenizer.json"])["model"]
    # As pipelines of earlier years have it.
    files["tokenizer/vocab.json"] = json.dumps(merges["vocab"]).encode()
    pairs = "".join(f"{a} {b}\n" for a, b in merges["merges"])
    files["tokenizer/merges.txt"] = f"#version: 0.2\n{pairs}".encode()
    del files["tokenizer/tokenizer.json"]
    unused = {
        "whole.safetensors": b"x",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
        "safety_checker/model.safetensors": b"x",
    }
    server.repository("other/pipeline", files | unused)
    done = fewstep(capsys, "import", "hub:other/pipeline", "--out", tmp_path / "model")
    assert done.code == 0, done.err
    local = fewstep(capsys, "import", folder, "--out", tmp_path / "same")
    assert local.code == 0, local.err
    x, y = (
        library.load(tmp_path / name, device="cpu").sample(1, prompts="a cat", steps=1)
        for name in ("model", "same")
    )
    assert torch.allclose(x, y, atol=1e-5)
    for name in unused:
        assert not any(name in one for one in server.requests), name


def empty(server: Hub) -> None:
    server.repository(NAME, {"README.md": b"nothing"})


def foreign(server: Hub) -> None:
    server.repository(NAME, {"config.json": b'{"model_type": "x"}', "model.safetensors": b"x"})


def gated(server: Hub) -> None:
    server.repository(NAME, files_of(ASSETS / "digits-cd")).gated = True


def damaged(server: Hub) -> None:
    files = files_of(ASSETS / "digits-cd")
    server.repository(NAME, files | {"model.safetensors": files["model.safetensors"][:-1]})


def weightless(server: Hub) -> None:
    files = files_of(ASSETS / "digits-cd")
    del files["model.safetensors"]
    server.repository(NAME, files)


REFUSALS: Mapping[str, tuple[Callable[[Hub], Any], str, str]] = {
    "no repository": (lambda server: None, NAME, "there is no .*someone/digits, or it is private"),
    "no revision": (lambda s: foreign(s), f"{NAME}@v9", "has no revision 'v9'"),
    "gated": (gated, NAME, "is gated: ask for access at .*hf auth login"),
    "no description": (empty, NAME, "no file config.json; .* fewstep import hub:someone/digits"),
    "another project's": (foreign, NAME, "no model of fewstep.* fewstep import"),
    "damaged": (damaged, NAME, "safetensors|sha256|hash"),
    "no weights": (weightless, NAME, "holds no readable model"),
    "no network": (lambda server: server.close(), NAME, "not in the cache .*cannot be reached"),
    "a name alone": (lambda server: None, "digits", "named hub:OWNER/NAME"),
    "upwards": (lambda server: None, "a/b/../c", "named hub:OWNER/NAME"),
    "a file": (lambda server: None, "a/b/c.pt", "names a file"),
}


@pytest.mark.parametrize("case", [*REFUSALS])
def test_each_refusal_is_one_message(
    case: str, server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prepare, name, message = REFUSALS[case]
    prepare(server)
    out = tmp_path / "x.png"
    done = fewstep(capsys, "sample", f"hub:{name}", "--out", out)
    assert done.code == 2, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("fewstep: ")]
    assert len(lines) == 1, done.err
    assert re.search(message, lines[0]), lines[0]
    assert not out.exists()
    if case in {"another project's", "gated"}:
        assert not any("model.safetensors" in one for one in server.requests)


def test_a_push_that_is_refused_is_one_message(
    server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    missing = fewstep(capsys, "push", "digits-cd", "someone/copy")
    assert missing.code == 2
    assert "needs a token: log in with hf auth login, or set HF_TOKEN" in missing.err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    wrong = fewstep(capsys, "push", "digits-cd", "someone/copy")
    assert wrong.code == 2
    assert "may write there" in wrong.err
    assert server.repositories == {}
    server.close()
    gone = fewstep(capsys, "push", "digits-cd", "someone/copy")
    assert gone.code == 2
    assert "cannot be reached" in gone.err
    name = fewstep(capsys, "push", "digits-cd", "copy")
    assert name.code == 2
    assert "OWNER/NAME" in name.err


def test_what_cannot_be_asked_of_a_model_of_the_hub(server: Hub):
    server.repository(NAME, files_of(ASSETS / "digits-cd"))
    with pytest.raises(UsageError, match="leave --average and --step out"):
        library.load(f"hub:{NAME}", average="ema-0.99")
    with pytest.raises(UsageError, match="hub:OWNER/NAME"):
        library.load("some/one")


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[hub\]'"):
        library.load(f"hub:{NAME}")
