import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewstep.core import UsageError
from fewstep.metrics.pretrained import (
    digest,
    imagenet_normalised,
    loaded,
    pixels,
    read_tensors,
    resized,
)


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_pixels_of_8_bit_data_come_back():
    whole = torch.arange(256.0).reshape(1, 1, 16, 16)
    assert torch.equal(pixels(whole / 127.5 - 1), whole.expand(1, 3, 16, 16))


def test_pixels_are_rounded_and_cut():
    # EDM: clip(127.5 x + 128, 0, 255), cut off.
    x = torch.tensor([-3.0, -1.0, -0.9961, -0.996, 0.0, 0.0001, 0.999, 1.0, 7.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 128.0, 128.0, 255.0, 255.0, 255.0])
    assert torch.equal(pixels(x.reshape(1, 1, 3, 3))[0, 0].flatten(), expected)
    assert pixels(x.double().reshape(1, 1, 3, 3)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 2), (2, 4, 8, 8), (3, 8, 8)])
def test_other_data_is_refused(shape):
    with pytest.raises(UsageError, match="take images"):
        pixels(torch.zeros(shape))


def test_resizing():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resized(x, 32), x)
    # Without antialiasing every other pixel would be seen, and stripes would stay stripes.
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    assert (resized(stripes, 16) - 0.5).abs().max() < 0.1
    # A straight line is what cubic interpolation reproduces, away from the border.
    line = torch.arange(32.0).expand(1, 1, 32, 32)
    wanted = (torch.arange(64.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(resized(line, 64)[0, 0, 5, 8:-8], wanted[8:-8])


def test_normalised_by_the_constants_of_imagenet():
    got = imagenet_normalised(torch.full((1, 3, 1, 1), 255.0)).flatten()
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]  # noqa: B905
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "nested"])
def test_files_of_tensors(kind, tmp_path):
    state = net().state_dict()
    if kind == "safetensors":
        file = tmp_path / "w.safetensors"
        save_file(state, file)
    else:
        file = tmp_path / "w.th"
        nested = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best": 91.7}
        torch.save(nested if kind == "nested" else state, file)
    found = read_tensors(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)
    target = net()
    loaded(target, file)
    assert digest(target) == digest_of(state)
    assert not target.training
    assert not any(p.requires_grad for p in target.parameters())


def digest_of(state):
    target = net()
    target.load_state_dict(state)
    return digest(target)


def test_the_digest_sees_values_and_names_and_no_counter():
    network = net()
    before = digest(network)
    network[1].num_batches_tracked += 1
    assert digest(network) == before
    network[1].running_var[0] += 1
    assert digest(network) != before
    torch.manual_seed(0)
    left = nn.ModuleDict({"a": nn.Linear(2, 2)})
    right = nn.ModuleDict({"b": left["a"]})
    assert digest(left) != digest(right)


def test_a_file_without_counters(tmp_path):
    state = {k: v for k, v in net().state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.th")
    loaded(net(), tmp_path / "w.th")


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a file ran",))


def test_refusals(tmp_path):
    file = tmp_path / "w.th"
    with pytest.raises(UsageError, match=r"w\.th: cannot be read"):
        read_tensors(file)
    file.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(UsageError, match=r"w\.th: cannot be read"):
        read_tensors(file)
    torch.save({"a": 3}, file)
    with pytest.raises(UsageError, match="other things than tensors"):
        read_tensors(file)
    torch.save(nn.Linear(2, 3).state_dict(), file)
    with pytest.raises(UsageError, match=r"missing 0\.weight"):
        loaded(net(), file)
    damaged = tmp_path / "w.safetensors"
    damaged.write_bytes(b"\0" * 30)
    with pytest.raises(UsageError, match=r"w\.safetensors: cannot be read"):
        read_tensors(damaged)
