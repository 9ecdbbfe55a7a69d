"""A step of LCM-LoRA beside one that is written with the classes of diffusers and peft.

python benchmarks/lcm_step.py [--steps 5] [--batch 4] [--width 64] [--side 16] [--rank 16]

Both sides have the same U-Net (of Stable Diffusion 1.5's shape, small and random), the same layers
under adapters, the same batch, AdamW and a gradient of norm 1. The other side computes what the
script train_lcm_distill_lora_sd_wds.py of diffusers does in a step, in words of our own: a student
and a teacher, two calls of the teacher, and one of the student as its own target. Encoders are left
out, as their work is the same. Prints JSON: the ratio of the times of steps that take turns in one
process, by the clock and by its processor time (the aim is at most 1.0), and the ratio of the peaks
of two fresh processes, without the memory of the libraries (the aim is at most 0.9).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]

HUBER, SCALES = 0.001, (6.0, 16.0)
"""The constant of the Huber distance; g = w + 1, of the script's w in [5, 15]."""


def network(width: int, side: int) -> dict[str, Any]:
    """The arguments of a small U-Net of Stable Diffusion 1.5's shape."""
    return {
        "sample_size": side,
        "block_out_channels": [width, 2 * width, 2 * width],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
        "norm_num_groups": 32,
    }


class Latents:
    """One batch of latents and embeddings, again and again."""

    labels, image = 0, False

    def __init__(self, batch: int, side: int) -> None:
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 4, side, side, generator=rng)
        self.text = torch.randn(batch, 77, 64, generator=rng)
        self.null = torch.randn(77, 64, generator=rng)
        self.shape = tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Sequence[int]) -> Any:
        """Some of the samples."""
        from fewstep.core import Batch

        return Batch(self.x[list(indices)], {"text": self.text[list(indices)]})


def ours(options: argparse.Namespace) -> Step:
    """A step of the trainer."""
    from fewstep.models import Denoiser, Guided, LatentBoundary
    from fewstep.models.low_rank import learn_adapters, share_base
    from fewstep.models.nets.stock import UNET, StockNetwork
    from fewstep.models.predictions import NoisePrediction
    from fewstep.objectives.lcm import LatentConsistency, TeacherStep
    from fewstep.objectives.shared.distances import Huber
    from fewstep.paths import DiscreteVariancePreserving
    from fewstep.steps import ddim
    from fewstep.times import Uniform, strided
    from fewstep.training.config import TrainConfig
    from fewstep.training.trainer import Trainer

    torch.manual_seed(0)
    data = Latents(options.batch, options.side)
    teacher = StockNetwork(UNET, network(options.width, options.side))
    student = copy.deepcopy(teacher)
    learn_adapters(student, options.rank)
    path = DiscreteVariancePreserving(t_min=0.0, t_max=999.0)
    noise = NoisePrediction(path=path)
    objective = LatentConsistency(
        Denoiser(student, LatentBoundary(inner=noise, path=path)),
        TeacherStep(Guided(Denoiser(teacher, noise), {"text": data.null}), ddim),
        grid=strided(50),
        guidance=Uniform(*SCALES),
        distance=Huber(HUBER),
    )
    share_base(objective, objective.step)  # as recipes do
    config = TrainConfig(
        steps=10**6, batch=options.batch, lr=1e-4, optimizer="adamw", weight_decay=0.01, clip=1.0
    )
    return Trainer(objective, data, config, {}, torch.device("cpu")).advance


def theirs(options: argparse.Namespace) -> Step:
    """A step as a script would have it."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig

    from fewstep.models.nets.stock import LCM_TARGETS

    torch.manual_seed(0)
    data = Latents(options.batch, options.side)
    teacher = UNet2DConditionModel(**network(options.width, options.side)).requires_grad_(False)
    student = copy.deepcopy(teacher)
    student.add_adapter(
        LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=[*LCM_TARGETS])
    )
    learned = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.01)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    kept = scheduler.alphas_cumprod
    alphas, sigmas = kept.sqrt(), (1 - kept).sqrt()
    times = torch.arange(1, 51) * 20 - 1
    null = data.null.expand(options.batch, -1, -1)

    def at(table: Tensor, t: Tensor) -> Tensor:
        return table[t].reshape(-1, 1, 1, 1)

    def clean(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return (x - at(sigmas, t) * noise) / at(alphas, t)

    def boundary(x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        scaled = (10.0 * t).reshape(-1, 1, 1, 1)
        return x * 0.25 / (scaled**2 + 0.25) + x0 * scaled / (scaled**2 + 0.25) ** 0.5

    def step() -> float:
        x0, text = data.x, data.text
        noise = torch.randn_like(x0)
        index = torch.randint(0, len(times), (len(x0),))
        start = times[index]
        earlier = (start - 20).clamp(min=0)
        noisy = scheduler.add_noise(x0, noise, start)
        low, high = SCALES
        scale = (low + (high - low) * torch.rand(len(x0))).reshape(-1, 1, 1, 1) - 1
        answer = student(noisy, start, encoder_hidden_states=text).sample
        online = boundary(noisy, clean(noisy, answer, start), start)
        with torch.no_grad():
            with_text = teacher(noisy, start, encoder_hidden_states=text).sample
            without = teacher(noisy, start, encoder_hidden_states=null).sample
            sure, free = (clean(noisy, each, start) for each in (with_text, without))
            guided = sure + scale * (sure - free)
            error = with_text + scale * (with_text - without)
            before = at(alphas, earlier) * guided + at(sigmas, earlier) * error
            answer = student(before, earlier, encoder_hidden_states=text).sample
            target = boundary(before, clean(before, answer, earlier), earlier)
        loss = (((online - target) ** 2 + HUBER**2).sqrt() - HUBER).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


SIDES: dict[str, Callable[[argparse.Namespace], Step]] = {"ours": ours, "theirs": theirs}


def timed(work: Step) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def peak(side: str, options: argparse.Namespace) -> float:
    """MiB that a fresh process needed for some steps, beyond what it had with its libraries."""
    words = [f"--{name}={getattr(options, name)}" for name in ("batch", "width", "side", "rank")]
    done = subprocess.run(
        [sys.executable, __file__, "--peak", side, *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=[*SIDES, ""], default="")
    for name, value in {"steps": 5, "batch": 4, "width": 64, "side": 16, "rank": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    if options.peak:
        from fewstep.training.memory import MIB, most_resident, resident

        small = argparse.Namespace(batch=1, width=32, side=8, rank=1)
        SIDES[options.peak](small)()  # imports, and kernels
        before = resident()
        step = SIDES[options.peak](options)
        for _ in range(3):
            step()
        print((most_resident() - before) / MIB)
        return
    steps = {name: make(options) for name, make in SIDES.items()}
    for step in steps.values():
        step()
    times = [{name: timed(step) for name, step in steps.items()} for _ in range(options.steps)]
    result: dict[str, object] = {"load": round(os.getloadavg()[0], 1)}
    for kind, i in (("clock", 0), ("cpu", 1)):
        mine, other = (statistics.median(row[name][i] for row in times) for name in SIDES)
        result[f"{kind}_s"] = [round(mine, 3), round(other, 3)]
        ratios = [row["ours"][i] / row["theirs"][i] for row in times]
        result[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
    mine, other = (peak(name, options) for name in SIDES)
    result["peak_mib"] = [round(mine, 1), round(other, 1)]
    result["peak_ratio"] = round(mine / other, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
