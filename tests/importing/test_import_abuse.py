"""Files made to break the importer: one message each, nothing executed, nothing written."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as dump_tensors

from fewstep import ImportOptions, UsageError, import_checkpoint
from fewstep.cli import main
from tiny_checkpoints import openai_state

LIMIT = 288 * 2**20
"""Bytes of address space that one reading may add."""
OUT_OF_MEMORY = "needs more memory|MemoryError|malloc|realloc|bad_alloc|can't allocate"
READING = ImportOptions(reading="consistency", resolution=8, heads=1)


@pytest.fixture(autouse=True)
def little_memory(tmp_path, monkeypatch) -> Iterator[None]:
    """Whoever asks for much more than a small file needs gets a MemoryError."""
    monkeypatch.chdir(tmp_path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Trace:
    """Unpickling this with pickle would make a folder beside the test's files."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


class Getting:
    """Unpickling this with pickle would look up an attribute."""

    def __reduce__(self):
        return getattr, ("text", "upper")


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezipped(
    data: bytes, change: Callable[[str, bytes], bytes], packing: int = 0, extra: str | None = None
) -> bytes:
    """A file of torch.save with other members."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", packing, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        if extra is not None:
            new.writestr(extra, b"")
    return buffer.getvalue()


def storage_of(count: int) -> bytes:
    """A file whose one storage declares that many numbers, and holds four."""
    data = saved({"a": torch.zeros(4)})
    # BININT1 4 is the count, and the size of the tensor.
    number = b"\x8a\x08" + struct.pack("<q", count)
    return rezipped(
        data, lambda name, old: old.replace(b"K\x04", number) if name.endswith("data.pkl") else old
    )


def stepping(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def persistent(name: str, state: bytes) -> bytes:
    """An object of that class of NVIDIA's, whose state is given as instructions."""
    pairs = word("type") + word("class") + word("class_name") + word(name) + word("state") + state
    pairs += word("module_src") + word("import os; os.mkdir('executed')")
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    return call + b"(}(" + pairs + b"utR"


def module_state(children: bytes = b"}") -> bytes:
    empty = word("_parameters") + b"}" + word("_buffers") + b"}"
    return b"}(" + empty + word("_modules") + children + b"u"


def endless() -> bytes:
    """A module that is its own child."""
    inner = b"}(" + word("_parameters") + b"}" + word("_buffers") + b"}" + word("_modules")
    pairs = word("type") + word("class") + word("class_name") + word("EDMPrecond") + word("state")
    call = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
    children = b"}q\x01u"
    whole = call + b"(}(" + pairs + inner + children + b"utRq\x02"
    return stepping(
        b"}(" + word("ema") + whole + b"u",
        b"0h\x01" + word("model") + b"h\x02s0}(" + word("ema") + b"h\x02u",
    )


def safetensors_that_claims(**header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


STATE = openai_state()
GOOD = saved(STATE)


def changed(**changes: torch.Tensor | None) -> bytes:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    state = {**STATE, **names}
    return saved({name: value for name, value in state.items() if value is not None})


def flipped() -> bytes:
    at = GOOD.index(b"data.pkl") + 200
    return GOOD[:at] + bytes([GOOD[at] ^ 255]) + GOOD[at + 1 :]


def zip_that_claims(size: int) -> bytes:
    """A file of torch.save whose directory says that of its last member."""
    at = GOOD.rindex(b"PK\x01\x02") + 20
    return GOOD[:at] + struct.pack("<II", size, size) + GOOD[at + 8 :]


FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the file is empty"),
    "text": (b"not a checkpoint, but long enough for any header", "begins like no checkpoint"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "begins like no checkpoint"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "begins like no checkpoint"),
    "packed": (gzip.compress(GOOD), "gunzip"),
    "pickle that calls": (pickle.dumps(Trace()), "mkdir', which is not among the names"),
    "torch file that calls": (saved({"a": Trace()}), "mkdir', which is not among the names"),
    "legacy file that calls": (
        saved({"a": Trace()}, _use_new_zipfile_serialization=False),
        "mkdir', which is not among the names",
    ),
    "getattr of a text": (pickle.dumps(Getting()), "no checkpoint of a known format"),
    "eval": (stepping(b"c__builtin__\neval\n", b"(", word("1"), b"tR"), "'__builtin__.eval'"),
    "source text": (
        stepping(b"}(", word("ema"), persistent("EDMPrecond", module_state()), b"u"),
        "expected SongUNet or DhariwalUNet",
    ),
    "unknown class": (
        stepping(b"}(", word("ema"), persistent("Net", module_state()), b"u"),
        "no checkpoint of a known format",
    ),
    "module within itself": (endless(), "module is expected"),
    "instance by an old instruction": (stepping(b"(iposix\nmkdir\n"), "instruction 0x69"),
    "registered extension": (stepping(b"\x82\x01"), "instruction 0x82"),
    "byte array of 2^60": (stepping(b"\x96", struct.pack("<Q", 2**60)), "instruction 0x96"),
    "text of 2^60": (stepping(b"\x8d", struct.pack("<Q", 2**60)), "declares"),
    "bytes of 4 GB": (stepping(b"B", struct.pack("<I", 2**32 - 1)), "declares"),
    "memory of 4 billion": (stepping(b"N", b"r", struct.pack("<I", 2**32 - 1), b"0"), "damaged"),
    "million of lists": (stepping(b"]" * 2_100_000), "more than"),
    "marks that do not match": (stepping(b"t"), "damaged|marks"),
    "pickle without an end": (b"\x80\x02}(", "damaged"),
    "zip cut short": (GOOD[: len(GOOD) // 2], "cannot be read"),
    "zip with a damaged member": (flipped(), "cannot be read"),
    "zip of other things": (
        rezipped(GOOD, lambda name, old: old).replace(b"data.pkl", b"data.plk"),
        "none of torch.save",
    ),
    "zip with packed members": (
        rezipped(GOOD, lambda name, old: old, zipfile.ZIP_DEFLATED),
        "is packed, which torch never does",
    ),
    "zip bomb": (
        rezipped(GOOD, lambda name, old: bytes(2**27) if name.endswith("/0") else old, 8),
        "is packed, which torch never does",
    ),
    "torchscript": (
        rezipped(GOOD, lambda name, old: old, extra="archive/constants.pkl"),
        "TorchScript",
    ),
    "zip that claims 2 GB": (zip_that_claims(2**31), "declare more bytes than the file has"),
    "storage of 2^60": (storage_of(2**60), "declares"),
    "storage of -1": (storage_of(-1), "declares|damaged"),
    "legacy file cut short": (
        saved(STATE, _use_new_zipfile_serialization=False)[:-100],
        "ends within a storage",
    ),
    "repeated numbers": (
        saved({"a": torch.zeros(1).expand(2**20, 2**10)}),
        "larger than its storage|damaged",
    ),
    "nan": (changed(out__2__weight=STATE["out.2.weight"] * float("nan")), "not finite"),
    "infinity": (changed(out__2__bias=torch.full((3,), float("inf"))), "not finite"),
    "missing tensor": (changed(out__0__bias=None), "nothing becomes last_norm.bias"),
    "unexpected tensor": (changed(rogue=torch.zeros(2)), r"unexpected: rogue \(2,\)"),
    "wrong shape": (
        changed(time_embed__2__weight=torch.zeros(7, 9)),
        r"wrong shape: time_embed.2.weight \(7, 9\)",
    ),
    "wrong rank": (changed(input_blocks__0__0__weight=torch.zeros(8)), "expected 4 sizes above 0"),
    "huge block number": (changed(input_blocks__9999__0__op__weight=torch.zeros(2)), "numbered"),
    "safetensors header of 2^60": (struct.pack("<Q", 2**60) + b"{}" + bytes(20), "begins like no"),
    "safetensors that claims more": (
        safetensors_that_claims(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        "cannot be read",
    ),
    "safetensors that overlap": (
        safetensors_that_claims(
            a={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            b={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        ),
        "cannot be read",
    ),
    "safetensors of something else": (
        dump_tensors({"a": torch.zeros(2)}),
        "no checkpoint of a known format",
    ),
    "a list": (saved([1, 2, 3]), "no checkpoint of a known format"),
    "a tensor": (saved(torch.zeros(3)), "no checkpoint of a known format"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_by_a_message(name, tmp_path):
    data, message = FILES[name]
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        import_checkpoint(path, READING)
    assert not re.search(OUT_OF_MEMORY, str(caught.value))
    assert len(str(caught.value)) < 4000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.pkl"]


def test_tensors_that_share_their_numbers_are_not_multiplied(tmp_path):
    """A small file whose many tensors are one storage would become a large model."""
    base = torch.randn(max(value.numel() for value in STATE.values()))
    shared = {name: base[: value.numel()].view(value.shape) for name, value in STATE.items()}
    (tmp_path / "file.pt").write_bytes(saved(shared))
    with pytest.raises(UsageError, match="damaged: its tensors would have"):
        import_checkpoint(tmp_path / "file.pt", READING)


def test_the_tests_own_good_file_is_read(tmp_path):
    (tmp_path / "good.pt").write_bytes(GOOD)
    legacy = saved(STATE, _use_new_zipfile_serialization=False)
    (tmp_path / "legacy.pt").write_bytes(legacy)
    (tmp_path / "safe").write_bytes(dump_tensors({k: v.contiguous() for k, v in STATE.items()}))
    wanted = None
    for name in ("good.pt", "legacy.pt", "safe"):
        found = import_checkpoint(tmp_path / name, READING).model.denoiser.net.state_dict()
        wanted = wanted or found
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_only_the_class_of_ordered_dictionaries_is_known_of_collections(tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(saved(OrderedDict(a=torch.zeros(1), b=1)))
    with pytest.raises(UsageError, match="known format"):
        import_checkpoint(path)
    path.write_bytes(pickle.dumps(__import__("collections").deque([1])))
    with pytest.raises(UsageError, match=r"collections\.deque"):
        import_checkpoint(path)


def test_names_that_are_known_are_never_called(tmp_path):
    """Bound methods and sets, which official files have, stay what they are."""
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"a": {1, 2}, "b": frozenset()}, protocol=2))
    with pytest.raises(UsageError):
        import_checkpoint(path)
    call = stepping(
        b"}(", word("a"), b"c__builtin__\ngetattr\n(", word("x"), word("y"), b"tR", b"u"
    )
    path.write_bytes(call)
    with pytest.raises(UsageError, match="known format"):
        import_checkpoint(path)


@pytest.mark.parametrize("name", ["missing", "empty folder", "pickle that calls", "nan"])
def test_the_command_says_one_line_and_writes_nothing(name, tmp_path, capsys):
    source = tmp_path / "source"
    if name == "empty folder":
        source.mkdir()
    elif name != "missing":
        source.write_bytes(FILES[name][0])
    before = sorted(tmp_path.rglob("*"))
    arguments = ["import", str(source), "--out", str(tmp_path / "m"), "--as", "consistency"]
    arguments += ["--resolution", "8", "--heads", "1", "--report", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fewstep: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_importer_never_imports_what_a_file_names(tmp_path):
    """A module that is on the path, and whose import would leave a trace."""
    (tmp_path / "torch_utils.py").write_text("open('executed', 'w').close()")
    path = tmp_path / "file.pkl"
    path.write_bytes(FILES["source text"][0])
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from fewstep import import_checkpoint, UsageError\n"
        "try:\n    import_checkpoint('file.pkl')\n"
        "except UsageError:\n    print('refused')\n"
    )
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "refused\n", done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "other"}, "--as must be one of"),
        ({"sigma_data": 0.0}, "--sigma-data must be finite and above 0"),
        ({"resolution": -8}, "--resolution must be finite and above 0"),
        ({"sigma_max": float("nan")}, "--sigma-max must be finite"),
        ({"heads": 1, "head_channels": 2}, "say the same"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "--sigma-min must be below"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        ImportOptions(**options)


def test_a_resolution_that_the_network_cannot_have(tmp_path):
    (tmp_path / "good.pt").write_bytes(GOOD)
    for resolution, message in ((7, "divisible by"), (2**30, "out of range")):
        with pytest.raises(UsageError, match=message):
            import_checkpoint(
                tmp_path / "good.pt",
                ImportOptions(reading="edm", resolution=resolution, heads=1),
            )
