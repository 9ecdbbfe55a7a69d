"""The commands of the page for people who come from other code, on files of that code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from checkpoint_files import official
from fewstep import load
from tiny import fewstep
from tiny_checkpoints import openai_state

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
COMMANDS = {
    shlex.split(line)[2]: shlex.split(line)
    for line in re.findall(r"^fewstep import .*", PAGE.read_text(), re.M)
}
TOPICS = {
    "cd_imagenet64_l2.pt": ("openai_classcond", ".pt"),
    "edm_imagenet64_ema.pt": ("openai_uncond", ".pt"),
    "edm-cifar10-32x32-cond-vp.pkl": ("edm_vp_ddpmpp", ".pkl"),
    "edm2-img64-s-1073741-0.075.pkl": ("edm2_rgb_cond", ".pkl"),
    "network-snapshot-latest.pkl": ("ect_ecm", "network-snapshot"),
    "training-state-latest.pt": ("ect_ecm", "training-state"),
    "tcm-stage2.pkl": ("tcm_two_stage", "stage2-network"),
    "ctm-cifar10.pt": ("ctm_cifar", ".pt"),
    "ctm-imagenet64.pt": ("ctm_unet", ".pt"),
    "fastgen-cm/0001500.pth": ("fastgen_cm", "0001500"),
    "fastgen-meanflow/0001500.pth": ("fastgen_meanflow", "0001500"),
}
"""For each file that the page names, the topic of official files and the part of a name."""


def imported(words: list[str], file: Path, sizes: dict[str, int], tmp_path: Path, capsys) -> None:
    """Run a command of the page on another file, with its sizes in place of the page's."""
    words = [*words[1:2], str(file), *words[3:]]
    for option, size in sizes.items():
        words[words.index(option) + 1] = str(size)
    words[words.index("--out") + 1] = str(tmp_path / "model")
    done = fewstep(capsys, *words)
    assert done.code == 0, done.err
    assert load(tmp_path / "model", device="cpu").sample(2).isfinite().all()


@pytest.mark.parametrize("name", [*TOPICS])
def test_the_page_s_command_is_enough(name, tmp_path, capsys):
    topic = official(TOPICS[name][0], tmp_path)
    words, of = COMMANDS[name], topic.settings
    sizes = of.get("flags") or of.get("constructor") or {}
    given = {"--resolution": "image_size", "--head-channels": "num_head_channels"}
    own = {option: sizes[key] for option, key in given.items() if option in words}
    if "--below" in words:
        words = [*words]
        words[words.index("--below") + 1] = str(topic.file("stage1-network"))
        own["--at"] = of["transition_t"]
    imported(words, topic.file(TOPICS[name][1]), own, tmp_path, capsys)


def test_guided_diffusion_s_command_is_enough(tmp_path, capsys):
    torch.save(openai_state(), tmp_path / "a.pt")
    words = COMMANDS["64x64_diffusion.pt"]
    sizes = {"--resolution": 16, "--head-channels": 32}
    imported(words, tmp_path / "a.pt", sizes, tmp_path, capsys)


def test_every_option_of_a_command_is_needed(tmp_path, capsys):
    """What the page says must be said is asked for where it is missing."""
    torch.save(openai_state(), tmp_path / "a.pt")
    words = [*COMMANDS["cd_imagenet64_l2.pt"]]
    for option in ("--as", "--resolution", "--head-channels"):
        fewer = [*words]
        at = fewer.index(option)
        del fewer[at : at + 2]
        fewer[2] = str(tmp_path / "a.pt")
        fewer[fewer.index("--out") + 1] = str(tmp_path / "model")
        done = fewstep(capsys, *fewer[1:])
        assert done.code == 2
        assert option in done.err
