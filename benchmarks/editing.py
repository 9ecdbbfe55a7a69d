"""How well edits restore held-out pictures: the tables of docs/editing.md.

    python benchmarks/editing.py --data digits --student digits-cd --teacher digits-edm -n 200

Each task hides a part of held-out pictures, of which the class is given, and every method restores
it. The columns are the peak signal-to-noise ratio (higher is better), the structural similarity
(Wang et al. 2004, higher), and for digits the distance to the truth in the learned features of the
library (lower). ``--pictures FILE`` draws the first pictures of all methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fewstep
from fewstep.data.catalogue import CATALOGUE
from fewstep.editing import Operator, deblur, enlarged, inpaint, optimise, restore, upscale
from fewstep.evaluation.pictures import rows
from fewstep.metrics import digits_features

Method = Callable[[Operator, Tensor], Tensor]


def tasks(x: Tensor) -> Iterator[tuple[str, Operator, Tensor]]:
    """Name, operator and measurement of each task."""
    side = x.shape[-1]
    box = torch.zeros(side, side, dtype=torch.bool)
    box[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    yield "inpaint the central quarter", inpaint(box), x
    right = torch.arange(side).expand(side, side) >= side // 2
    yield "inpaint the right half", inpaint(right), x
    factor = 2 if side < 16 else 4
    small = torch.nn.functional.avg_pool2d(x, factor)
    yield f"upscale by {factor}", upscale(factor), enlarged(small, factor)
    width = 1.0 if side < 16 else 2.0
    blur = deblur(width, x.shape)
    yield f"deblur, width {width:g}", blur, blur.forward(x)


def mean_fill(operator: Operator, y: Tensor) -> Tensor:
    """The mean of what is known in the place of what is missing.

    For means of patches and blurred pictures, this is what they determine alone.
    """
    start = operator.start(y)
    if operator.name != "inpaint":
        return start
    missing = operator.unknown  # pyright: ignore[reportAttributeAccessIssue]
    mean = (start * ~missing).sum((1, 2, 3)) / float((~missing).sum()) / start.shape[1]
    return torch.where(missing, mean[:, None, None, None], start)


def bicubic(operator: Operator, y: Tensor) -> Tensor:
    """Bicubic interpolation with Pillow's kernel, of the small picture."""
    factor = int(operator.name.rsplit(" ", 1)[1])
    small = torch.nn.functional.avg_pool2d(y, factor)
    size = [factor * side for side in small.shape[2:]]
    big = torch.nn.functional.interpolate(small, size=size, mode="bicubic", antialias=True)
    return operator.replace(big, y)


def total_variation(operator: Operator, y: Tensor, steps: int = 400) -> Tensor:
    """The agreeing picture of least (smoothed) total variation, by projected gradient steps."""
    x = mean_fill(operator, y).double()
    for i in range(steps):
        x.requires_grad_(True)
        down, across = x.diff(dim=2)[..., :-1], x.diff(dim=3)[..., :-1, :]
        variation = (down**2 + across**2 + 1e-4).sqrt().sum()
        (slope,) = torch.autograd.grad(variation, x)
        x = operator.replace(x.detach() - 0.05 * (1 - i / steps) * slope, y.double())
    return x


def methods(
    student: fewstep.Model, teacher: fewstep.Model, label: Tensor, calls: int, batch: int
) -> dict[str, Method]:
    """All methods by name; models have their calls in it."""
    given = {"label": label, "seed": 0, "batch": batch}

    def replacing(model: fewstep.Model, count: int) -> Method:
        return lambda operator, y: restore(model, operator, y, steps=count, **given)

    def searching(count: int) -> Method:
        return lambda operator, y: optimise(student, operator, y, steps=count // 2, **given)

    return {
        "mean fill": mean_fill,
        "bicubic": bicubic,
        "total variation": total_variation,
        "student, 4 calls": replacing(student, 4),
        f"student, {calls} calls": replacing(student, calls),
        f"student, search, {calls + 1} calls": searching(calls),
        "teacher, 4 calls": replacing(teacher, 4),
        f"teacher, {calls} calls": replacing(teacher, calls),
    }


def psnr(x: Tensor, truth: Tensor) -> float:
    """The mean peak signal-to-noise ratio in decibels, of a range of 2."""
    error = (x - truth).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * (4 / error).log10()).mean())


def ssim(x: Tensor, truth: Tensor) -> float:
    """The mean structural similarity (Wang et al. 2004, eq. 13), of a range of 2.

    The window is a Gaussian of deviation 1.5 on 11 x 11 pixels, or 7 x 7 of pictures of 8 x 8.
    """
    size = 11 if x.shape[-1] > 11 else 7
    place = torch.arange(size, dtype=torch.float64) - size // 2
    line = (-(place**2) / (2 * 1.5**2)).exp()
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def mean(values: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(values.flatten(0, 1)[:, None], window)

    a, b = mean(x), mean(truth)
    var_a, var_b = mean(x * x) - a**2, mean(truth * truth) - b**2
    both = mean(x * truth) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    top = (2 * a * b + c1) * (2 * both + c2)
    return float((top / ((a**2 + b**2 + c1) * (var_a + var_b + c2))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--student", default="digits-cd")
    parser.add_argument("--teacher", default="digits-edm")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--tasks", nargs="*", default=[], help="words of the tasks; all by default")
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    held_out = CATALOGUE[given.data].held_out
    assert held_out is not None
    truth = held_out(given.n).batch(np.arange(given.n))
    x, label = truth.x0, truth.cond["label"]
    student, teacher = (fewstep.load(m, device="cpu") for m in (given.student, given.teacher))
    each = methods(student, teacher, label, given.calls, given.batch)
    features = digits_features() if given.data == "digits" else None
    shown = []
    print("| task | method | PSNR | SSIM | features |\n| --- | --- | --- | --- | --- |")
    for task, operator, y in tasks(x):
        if given.tasks and not any(word in task for word in given.tasks):
            continue
        shown += [(f"{task}: known", operator.start(y)[:10])]
        for name, method in each.items():
            if name == "bicubic" and "upscale" not in task:
                continue
            out = method(operator, y).double().clamp(-1, 1)
            far = "" if features is None else f"{_distance(features, out, x):.2f}"
            values = f"{psnr(out, x.double()):.1f} | {ssim(out, x.double()):.3f} | {far}"
            print(f"| {task} | {name} | {values} |", flush=True)
            shown.append((name, out[:10].float()))
        shown.append(("truth", x[:10]))
    if given.pictures is not None:
        rows(shown, given.pictures)


def _distance(features: Callable[[Tensor], Tensor], x: Tensor, truth: Tensor) -> float:
    return float((features(x.float()) - features(truth)).norm(dim=1).mean())


if __name__ == "__main__":
    main()
