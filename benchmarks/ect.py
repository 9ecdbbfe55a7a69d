"""A step of consistency training here beside one of ECT's code, on the same network.

git clone https://github.com/locuslab/ect
python benchmarks/ect.py ect [--pairs 15]

Prints JSON: the median ratio of interleaved pairs, ours over theirs, with Adam and with RAdam, and
the raw milliseconds. The network is that of `fewstep bench`, on a CPU. Their step is their network
and loss, then what their loop does: gradients without NaN, the optimiser, one average.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from statistics import median

import torch

from fewstep import bench


def theirs(clone: Path, kind: type[torch.optim.Optimizer]) -> bench.Work:
    """A whole step of their code."""
    sys.path.insert(0, str(clone))
    from training.loss import ECMLoss  # pyright: ignore[reportMissingImports]
    from training.networks import ECMPrecond  # pyright: ignore[reportMissingImports]

    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    channels, *size = bench.SHAPE
    net = ECMPrecond(
        size[0],
        channels,
        use_fp16=False,
        sigma_data=0.5,
        model_type="SongUNet",
        model_channels=bench.CHANNELS,
        channel_mult=[1, 2, 2],
        num_blocks=2,
        attn_resolutions=[16],
        dropout=0.0,
    )
    average = copy.deepcopy(net).requires_grad_(False)
    weights = [*net.parameters()]
    optimizer = kind(weights, lr=1e-6)  # pyright: ignore[reportCallIssue]
    loss = ECMLoss()
    loss.update_schedule(3)
    images = torch.rand(bench.BATCH, *bench.SHAPE) * 2 - 1

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(net=net, images=images).mean().backward()
        for weight in weights:
            if weight.grad is not None:
                torch.nan_to_num(weight.grad, nan=0, posinf=1e5, neginf=-1e5, out=weight.grad)
        optimizer.step()
        for old, new in zip(average.parameters(), weights, strict=True):
            old.copy_(new.detach().lerp(old, 0.999))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    subjects = bench.Subjects()
    found = {}
    for name, kind in (("adam", torch.optim.Adam), ("radam", torch.optim.RAdam)):
        a, b = bench.interleaved(subjects.step(name), theirs(args.clone, kind), args.pairs)
        found[name] = {
            "ours_over_theirs": median(x / y for x, y in zip(a, b, strict=True)),
            "milliseconds": [[round(1e3 * x, 1) for x in side] for side in (a, b)],
        }
    print(json.dumps({"threads": torch.get_num_threads(), **found}, indent=2))


if __name__ == "__main__":
    main()
