"""Text-to-image models in one file name the door by which they come in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fewstep import UsageError, import_checkpoint
from fewstep.importing.single_files import MARKS, NETWORK, STOCK
from tiny import fewstep


@pytest.mark.parametrize("model", [*MARKS])
@pytest.mark.parametrize("prefix", ["", NETWORK])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_one_file_as_comfyui_has_it(model, prefix, dtype, tmp_path, capsys):
    tensors = {f"{prefix}{name}": torch.zeros(2, 2, dtype=dtype) for name in MARKS[model]}
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    done = fewstep(capsys, "import", tmp_path / "model.safetensors", "--out", tmp_path / "out")
    assert done.code == 2
    assert f"holds a {model} model as one file, as ComfyUI reads it" in done.err
    assert "give the folder of its pipeline in the form of" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", [*STOCK])
def test_the_weights_alone_of_a_stock_network(model, tmp_path):
    tensors = {name: torch.zeros(2, 2) for name in STOCK[model]}
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match=f"holds a {model} model as the network alone"):
        import_checkpoint(tmp_path / "diffusion_pytorch_model.safetensors")


def test_a_ckpt_of_lightning(tmp_path):
    name = f"{NETWORK}{MARKS['Stable Diffusion'][0]}"
    torch.save({"state_dict": {name: torch.zeros(2, 2)}, "global_step": 3}, tmp_path / "a.ckpt")
    with pytest.raises(UsageError, match="holds a Stable Diffusion model as one file"):
        import_checkpoint(tmp_path / "a.ckpt")


def test_numbers_of_eight_bits_are_read(tmp_path):
    """A diffusion transformer in float8 has the weights of its rounded numbers."""
    from fewstep.importing.archives import open_archive
    from fewstep.importing.storages import checked

    right = torch.linspace(-2, 2, 9).to(torch.float8_e4m3fn)
    save_file({"a": right, "b": torch.full((1,), torch.nan).to(torch.float8_e5m2)}, tmp_path / "w")
    content = open_archive(tmp_path / "w").content
    assert torch.equal(checked("a", content["a"]), right.float())
    with pytest.raises(UsageError, match="b holds numbers that are not finite"):
        checked("b", content["b"])
