"""Teacher and student in the plane, where both can be drawn: paths of the ODE, and jumps.

python examples/two_modes.py        # writes docs/pictures/two_modes.png (extra: plot)
"""

from __future__ import annotations

from pathlib import Path

import torch

import fewstep
from fewstep import solvers
from fewstep.times import karras, to_zero


def main(
    steps: int = 3000,
    out: Path = Path("runs/example-two-modes"),
    plot: Path | None = Path("docs/pictures/two_modes.png"),
) -> torch.Tensor:
    teacher_run, student_run = out / "teacher", out / "student"
    few = {"steps": steps}
    teacher = fewstep.train(fewstep.recipe("toy-edm", train=few), teacher_run)
    distilled = fewstep.recipe("toy-cd", teacher=teacher_run, train=few)
    student = fewstep.train(distilled, student_run)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        draw(teacher, student, plot)
    return student.sample(2000)


def draw(teacher: fewstep.Model, student: fewstep.Model, path: Path) -> None:
    import matplotlib.pyplot as plt

    times = to_zero(karras(18, 0.002, 80.0))
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 80
    trail = [x]
    for k in range(len(times) - 1):
        trail.append(solvers.ode(teacher.denoiser, trail[-1], times[k : k + 2]))
    late = torch.stack(trail)[8:]  # from sigma = 3.3 on, where the paths bend
    ends = solvers.one_step(student.denoiser, x, times[:1])
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
    axes[0].plot(late[..., 0], late[..., 1], color="tab:blue", lw=0.6)
    axes[0].set_title("teacher: 35 calls a path")
    axes[1].plot(*torch.stack([late[0], ends]).permute(2, 0, 1), color="tab:orange", lw=0.6)
    axes[1].scatter(*ends.T, s=8, color="tab:orange", zorder=2)
    axes[1].scatter(*late[-1].T, s=8, facecolors="none", edgecolors="tab:blue", zorder=3)
    axes[1].set_title("student: one call (dots); teacher's ends (rings)")
    axes[2].scatter(*student.sample(2000).T, s=1, color="tab:orange")
    axes[2].set(title="2,000 one-call samples", xlim=(-3, 3), ylim=(-3, 3))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
