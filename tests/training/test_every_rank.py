"""Two processes are one with two shards, for every objective; a script and its test.

``torchrun --nproc-per-node 2 tests/training/test_every_rank.py OUT`` writes what two ranks learn.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resume import OBJECTIVES

from fewstep.core import UsageError
from fewstep.data import toy
from fewstep.system.processes import ALONE, World, joined
from fewstep.training.averages import constant
from fewstep.training.distribution import full
from fewstep.training.trainer import Trainer
from tiny import WithPairs, settings

STEPS = 3
REFUSED = {(name, "fsdp") for name in ("dmd2 with adapters", "adversarial ctm")}
"""Adapters share weights, which are not sharded twice; CTM's loss takes a gradient."""


def learnt(name: str, parallel: str, world: World) -> dict[str, torch.Tensor]:
    """Weights of everything after some steps, and of an average."""
    config = settings(batch=8, accumulation=2, parallel=parallel)
    data, rules = WithPairs(toy("two-modes", 64)), {"main": constant(0.9)}
    made = Trainer(OBJECTIVES[name](), data, config, rules, torch.device("cpu"), world)
    for _ in range(STEPS):
        made.advance()
    assert made.skipped == 0
    modules = {"objective": made.objective, **made.averages.copies}
    return {
        f"{key}.{k}": full(v.detach()).clone()
        for key, module in modules.items()
        for k, v in module.state_dict().items()
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    from test_distribution import torchrun

    out = tmp_path_factory.mktemp("ranks")
    tests = Path(__file__).parents[1]
    path = f"{tests}:{Path(__file__).parent}"
    done = torchrun(__file__, out, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    return out


# Adam divides by the root of the second moment: rounding in a gradient near zero moves a weight by
# a share of the learning rate (0.001).
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_are_two_shards(name, parallel, both):
    if (name, parallel) in REFUSED:
        assert "take --train.parallel ddp" in (both / f"{name}-{parallel}.txt").read_text()
        return
    alone, found = learnt(name, "ddp", ALONE), load_file(both / f"{name}-{parallel}.safetensors")
    assert alone.keys() == found.keys()
    assert max(float((found[k] - v).abs().max()) for k, v in alone.items()) < 2e-6


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    with joined() as world:
        for name in OBJECTIVES:
            for parallel in ("ddp", "fsdp"):
                try:
                    found = learnt(name, parallel, world)
                except UsageError as error:
                    (out / f"{name}-{parallel}.txt").write_text(str(error))
                    continue
                if world.first:
                    save_file(found, out / f"{name}-{parallel}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
