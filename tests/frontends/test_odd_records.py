"""Records of codecs, readers, encoded data and adapters, field by field: one message, or none."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny_pipelines
from captioned import tokenizer, vae, write_pictures, write_taesd
from fewstep.adapters import Adapter, Factors, read_adapter, write_adapter
from fewstep.data.captioned import opened
from fewstep.data.encoded import Encoded
from fewstep.encoding import encode
from fewstep.errors import UsageError
from fewstep.frontends import Codec, Frontend, open_codec, open_text
from tiny_pipelines import saved

ODD: list[Any] = [None, "x", -1, 10**12, float("nan"), [{}], {"x": [None]}]
"""What stands in a field; besides, it is left out."""


def spoiled(record: Any, depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Each change of one field, and of one below it."""
    for name, value in record.items():
        yield f"without {name}", {k: v for k, v in record.items() if k != name}
        for odd in ODD:
            if odd != value or type(odd) is not type(value):
                yield f"{name} = {odd!r}", {**record, name: odd}
        if isinstance(value, dict) and depth > 1:
            for what, inner in spoiled(value, depth - 1):
                yield f"{name}: {what}", {**record, name: inner}


def read_all(record: Path, read: Callable[[], Any], depth: int = 2) -> dict[str, str]:
    """What each change of a record is answered with; nothing where it can be read nevertheless."""
    content = json.loads(record.read_text())
    said: dict[str, str] = {}
    for what, changed in spoiled(content, depth):
        record.write_text(json.dumps(changed))
        try:
            read()
        except UsageError as error:
            said[what] = str(error)
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        else:
            said[what] = ""
    record.write_text(json.dumps(content))
    read()
    return said


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", n=3)
    pictures = opened(tmp_path / "pictures", captioned=True, resolution=16)
    encode(pictures, tmp_path / "out", codec=vae(), text=tokenizer(), shard_size=2, normalise=True)
    return tmp_path / "out"


def test_text_json_of_tokens(encoded):
    said = read_all(encoded / "text" / "text.json", lambda: open_text(encoded))
    assert "has the length None of texts" in said["without length"]
    assert "has the length 1000000000000" in said["length = 1000000000000"]
    assert all(said.values())


def test_text_json_of_encoders(tmp_path):
    folder = saved(tiny_pipelines.sd(), tmp_path / "p")
    Frontend(text=open_text(folder)).write(tmp_path)
    said = read_all(tmp_path / "text" / "text.json", lambda: open_text(tmp_path / "text"), 1)
    for name in ("family", "length", "width", "zeros", "encoders", "conditions", "sha256", "kind"):
        assert said[f"without {name}"], name
    assert said["length = 1000000000000"]


@pytest.mark.parametrize("kind", ["vae", "taesd", "diffusers"])
def test_codec_json(kind, tmp_path):
    codec = vae() if kind == "vae" else Codec(write_taesd(tmp_path / "t"))
    if kind == "diffusers":
        codec = open_codec(saved(tiny_pipelines.vae(), tmp_path / "v"))
    Frontend(codec).write(tmp_path)
    said = read_all(tmp_path / "codec" / "codec.json", lambda: open_codec(tmp_path))
    for name in ("kind", "options", "shift", "scale", "sha256"):
        assert said[f"without {name}"], name
    if kind != "diffusers":
        assert said["options: channels = -1"]
        assert said["options: channels = 1000000000000"]


def test_encoded_json(encoded):
    def read() -> None:
        data = Encoded(encoded, verify=True)
        data.batch(range(len(data)))
        assert data.sigma_data is None or data.sigma_data >= 0

    said = read_all(encoded / "encoded.json", read)
    for name in ("source", "spec", "frontend", "stored", "shard_size", "n", "sha256"):
        assert said[f"without {name}"], name
    assert said["n = 1000000000000"]


def test_headers_of_adapters(tmp_path):
    """peft's configuration, and diffusers' entry in the header of the file."""
    down, up = torch.ones(2, 3), torch.ones(4, 2)
    layers = {"a": Factors(down, up, 4.0), "b": Factors(down, up, 3.0)}
    write_adapter(Adapter(layers), tmp_path / "peft")
    said = read_all(
        tmp_path / "peft" / "adapter_config.json", lambda: read_adapter(tmp_path / "peft")
    )
    for name in ("peft_type", "r", "lora_alpha"):
        assert said[f"without {name}"], name
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors = {
        f"unet.{n}.lora_{x}.weight": value.clone()
        for n in "ab"
        for x, value in (("A", down), ("B", up))
    }
    file = tmp_path / "d.safetensors"
    refused = 0
    for what, changed in spoiled({f"unet.{key}": value for key, value in config.items()}):
        save_file(tensors, file, {"lora_adapter_metadata": json.dumps(changed)})
        try:
            read_adapter(file)
        except UsageError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
    assert refused > 20


NUMBER, NONE = torch.tensor(1.0), torch.zeros(0)
PARTS = ("lora_down.weight", "lora_up.weight", "alpha")
VALUES = (NUMBER, NONE, torch.ones(2), torch.ones(3, 3, 3), torch.ones(2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("prefix", ["lora_unet_a.", "unet.a.", "base_model.model.a."])
def test_tensors_of_adapters_of_odd_shapes(prefix, tmp_path):
    names = PARTS if prefix.startswith("lora") else ("lora_A.weight", "lora_B.weight", "alpha")
    good = dict(zip(names, (torch.ones(2, 3), torch.ones(4, 2), torch.tensor(2.0)), strict=True))
    file = tmp_path / "adapter_model.safetensors"
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for name in names:
        for value in VALUES:
            tensors = {prefix + key: one for key, one in {**good, name: value}.items()}
            save_file({key: one.clone() for key, one in tensors.items()}, file)
            try:
                read_adapter(file)
            except UsageError:
                continue
            assert name == "alpha", (name, value)
            assert value is NUMBER or prefix.startswith("base"), value


# Files outside of the folder.


def watched(monkeypatch: pytest.MonkeyPatch, outside: Path) -> list[str]:
    """Which of the files outside are opened, however that is done in Python."""
    opened_: list[str] = []
    read = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if outside in self.resolve().parents:
            opened_.append(str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return opened_


@pytest.mark.parametrize(
    "entry",
    [
        *({name: "OUTSIDE/vocab.json"} for name in ("vocab_file", "merges_file", "tokenizer_file")),
        {"vocab": "OUTSIDE/vocab.json", "merges": "OUTSIDE/merges.txt"},
        {"fast_tokenizer_files": ["../../outside/tokenizer.1.0.0.json"]},
        {"spm_file": "../../outside/vocab.json"},
        {"auto_map": {"AutoTokenizer": ["outside.Tokenizer", None]}},
        {"vocab_file": "/dev/null"},
    ],
)
def test_a_tokenizer_that_names_files_outside(entry, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = saved(tiny_pipelines.sd(), tmp_path / "p")
    path = folder / "tokenizer" / "tokenizer_config.json"
    entry = json.loads(json.dumps(entry).replace("OUTSIDE", str(outside)))
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    with pytest.raises(UsageError, match=r"names (the file|code)"):
        open_text(folder)


def test_a_tokenizer_that_names_its_own_files(tmp_path):
    folder = saved(tiny_pipelines.sd(), tmp_path / "p")
    path = folder / "tokenizer" / "tokenizer_config.json"
    own = {
        "special_tokens_map_file": "/home/nobody/special_tokens_map.json",
        "tokenizer_file": None,
        "vocab_file": "./vocab.json",
        "name_or_path": "/home/nobody/clip",
    }
    want = open_text(folder).encode(["a cat"])["text"]
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    assert torch.equal(open_text(folder).encode(["a cat"])["text"], want)


def test_a_text_folder_that_names_files_outside(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    Frontend(text=open_text(saved(tiny_pipelines.sd(), tmp_path / "p"))).write(tmp_path / "m")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "letter").write_text("dear")
    path = tmp_path / "m" / "text" / "text.json"
    content = json.loads(path.read_text())
    seen = watched(monkeypatch, outside)
    for name in (
        "../../outside/letter",
        str(outside / "letter"),
        "text_encoder/../../../outside/letter",
    ):
        about = copy.deepcopy(content)
        about["sha256"][name] = "0" * 64
        path.write_text(json.dumps(about))
        with pytest.raises(UsageError, match="do not agree on"):
            open_text(tmp_path / "m")
    assert not seen
    # A file that no digest covers is refused too.
    path.write_text(json.dumps(content))
    shutil.copy(path, tmp_path / "m" / "text" / "tokenizer" / "added_tokens.json")
    with pytest.raises(UsageError, match=r"do not agree on 'tokenizer/added_tokens.json'"):
        open_text(tmp_path / "m")
