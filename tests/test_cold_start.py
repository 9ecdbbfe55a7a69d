"""What loading and sampling do not import: torch's compiler, sympy, data sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from every_net import BUILDS
from fewstep.core import normal, uniform
from fewstep.models.nets.blocks import embedding_of

SLOW = ("torch._dynamo", "torch._inductor", "sympy", "scipy", "fewstep.data", "fewstep.objectives")
"""Modules that take long to import, and of which sampling needs none."""

SAMPLE = """
import sys
from fewstep.cli import main
main(["sample", sys.argv[2], "-n", "4", "--out", sys.argv[3]])
print("imported:", *(name for name in sys.argv[1].split(",") if name in sys.modules))
"""

BUILD = """
import sys
import torch
from every_net import BUILDS
for kind, make in BUILDS.items():
    with torch.device("meta"):
        net = make()
    assert all(value.is_meta for value in net.state_dict().values()), kind
    print(kind, *(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
"""


def run(code: str, *args: object) -> str:
    """The last lines of a new process."""
    folder = Path(__file__).parent
    command = [sys.executable, "-c", code, ",".join(SLOW), *map(str, args)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sampling_imports_nothing_slow(tmp_path: Path):
    last = run(SAMPLE, "digits-cd", tmp_path / "x.png").splitlines()[-1]
    assert last == "imported:", last


def test_no_network_needs_the_compiler_to_be_built_for_loading():
    lines = run(BUILD).splitlines()
    assert len(lines) == len(BUILDS)
    assert [line for line in lines if " " in line] == []


def test_first_weights_without_memory_have_their_sizes():
    with torch.device("meta"):
        made = [normal(3, 4), uniform(5, scale=2.0), embedding_of(3, 4).weight]
    assert [tuple(one.shape) for one in made] == [(3, 4), (5,), (3, 4)]
    assert all(one.is_meta for one in made)


def test_first_weights_are_those_of_randn():
    for shape in ((3,), (16,), (40, 5), (2, 3, 3, 3)):
        torch.manual_seed(1)
        wanted = 0.3 * torch.randn(*shape), 2 * torch.rand(7), torch.nn.Embedding(7, 5).weight
        torch.manual_seed(1)
        made = normal(*shape, scale=0.3), uniform(7, scale=2.0), embedding_of(7, 5).weight
        assert all(torch.equal(a, b) for a, b in zip(made, wanted, strict=True))
