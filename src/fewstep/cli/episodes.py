"""``fewstep evaluate --env``: a policy in closed loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewstep.cli.values import replaced
from fewstep.errors import UsageError

EPISODES = 50


def evaluate_policy(
    model: str,
    env: str,
    steps: Sequence[int] | None,
    n: int | None,
    *,
    solver: str | None = None,
    average: str | None = None,
    step: int | None = None,
    device: str | None = None,
    out: Path | None = None,
    gif: Path | None = None,
) -> None:
    """Roll a policy out and print its score.

    Args:
        model: the policy.
        env: the name of the environment.
        steps: step counts; by default those that the model is evaluated at.
        n: episodes.
        solver: of a diffusion model.
        average: another of the run's averages than its first.
        step: the run's model as it was at this training step.
        device: where the model runs.
        out: a JSON file for the numbers.
        gif: a film of the first episode at the first step count.
    """
    from fewstep import control
    from fewstep.control.environments import FIRST_SEED
    from fewstep.evaluation import write_metrics
    from fewstep.evaluation.report import usual_steps
    from fewstep.model import find, load
    from fewstep.system.bars import bar

    place = control.environment(env)
    episodes = EPISODES if n is None else n
    if gif is not None and gif.suffix.lower() != ".gif":
        raise UsageError(f"--gif must name a .gif file, got {gif}")
    loaded = load(find(model, average, step), device=device)
    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    rows: dict[str, dict[str, Any]] = {}
    frames: list[Any] | None = None if gif is None else []
    lines = [("", "reward", "95 %", "success", "95 %", "p50 ms", "p95 ms")]
    for count in steps or usual_steps(loaded):
        policy = control.Policy(loaded, steps=count, solver=solver)
        with bar(f"{count} steps", "episodes", episodes) as advance:
            shot = frames if not rows else None
            ran = control.roll(policy, place, seeds, watch=advance, frames=shot)
        score = control.score(ran)
        speed = control.latency(policy, place)
        rows[str(policy.calls)] = {
            **asdict(score),
            "latency_ms": asdict(speed),
            "rewards": [one.reward for one in ran],
        }
        lines.append(
            (
                f"{policy.calls} call{'s' * (policy.calls != 1)}",
                f"{score.reward:.3f}",
                "{:.3f} to {:.3f}".format(*score.reward_interval),
                f"{score.success:.2f}",
                "{:.2f} to {:.2f}".format(*score.success_interval),
                f"{speed.p50:.1f}",
                f"{speed.p95:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *cells in lines:
        padded = [cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *padded]))
    print(
        f"\n{place.title}: {episodes} episodes from the seeds {seeds[0]} to {seeds[-1]}; reward: "
        "mean of each episode's\nlargest reward (bootstrap); success: share of episodes (Wilson); "
        "ms: a decision of one robot"
    )
    if gif is not None:
        assert frames is not None
        before = replaced(gif)
        control.film(frames, gif, place.rate)
        print(f"wrote {gif}{before}")
    if out is not None:
        before = replaced(out)
        write_metrics(out, {"environment": env, "seeds": [seeds[0], seeds[-1]], "policy": rows})
        print(f"wrote {out}{before}")
