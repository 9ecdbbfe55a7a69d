"""How a run is evaluated: while it trains, and at its end in a table, a picture, metrics.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from fewstep.data import Dataset
from fewstep.data.catalogue import has_held_out, judging_features, with_held_out
from fewstep.evaluation import Protocol, table, write_metrics
from fewstep.evaluation.named import FEATURES, protocol_of
from fewstep.evaluation.pictures import rows
from fewstep.model import Model

TEACHER_STEPS = 18
"""Heun steps of a diffusion model: 35 network calls."""

HELD_OUT = 2000
"""Held-out samples that are compared, at most."""


def evaluator(train: Dataset, data: str, unseen: Dataset | None) -> Callable[[], Protocol] | None:
    """A function that makes the protocol of a run when it is first called.

    Args:
        train: what the run learns from.
        data: its name or path, which decides the features.
        unseen: what the run does not see; if not given, the data's own held-out data.

    Returns:
        The function; None where there is no held-out data.
    """
    if unseen is None and not has_held_out(data):
        return None

    @cache
    def protocol() -> Protocol:
        other = with_held_out(train, data, None, HELD_OUT)[1] if unseen is None else unseen
        assert other is not None
        return protocol_of(train, other, HELD_OUT, FEATURES[judging_features(data)]())

    return protocol


def report(
    protocol_for: Callable[[], Protocol], teacher: Model | None, began: float
) -> Callable[[Path, Model], None]:
    """A function that judges a finished run, beside its teacher where it has one.

    Args:
        protocol_for: of the run, by :func:`evaluator`.
        teacher: a diffusion model.
        began: clock reading in seconds at which the command began.
    """

    def finish(folder: Path, model: Model) -> None:
        protocol = protocol_for()
        diffusion = model if is_diffusion(model) else teacher
        judged: list[tuple[str, Model, int]] = []
        if diffusion is not None:
            judged.append(("teacher", diffusion.to(model.device), TEACHER_STEPS))
        if diffusion is not model:
            judged += [("student", model, steps) for steps in served(model)]
        if diffusion is not None:
            judged.append(("undistilled", diffusion, 1))
        metrics: dict[str, dict[str, object]] = {}
        lines, pictures = [], []
        for who, one, steps in judged:
            calls = one.calls(steps)
            row, caption = protocol.judge(one, steps), f"{who}, {calls} call{'s' * (calls > 1)}"
            metrics.setdefault(who, {})[str(calls)] = row
            lines.append((caption, row))
            pictures.append((caption, one.sample(20, steps=steps, seed=0)))
        floor = protocol.floor()
        print(table([*lines, ("floor", floor)], min(r["images_per_second"] for _, r in lines)))
        rows(pictures, folder / "samples" / "comparison.png")
        seconds = time.perf_counter() - began
        write_metrics(folder / "metrics.json", {**metrics, "floor": floor, "seconds": seconds})
        print(f"wrote {folder}/metrics.json, {folder}/samples/comparison.png, {folder}/model")

    return finish


@dataclass(frozen=True)
class Watch:
    """What :func:`watch` returns.

    Args:
        protocol: makes the protocol when it is asked first.
        metrics: the names of the numbers, before the number of network calls.
    """

    protocol: Callable[[], Protocol]
    metrics: tuple[str, ...] = ("fd", "swd", "nn")

    def __call__(self, model: Model) -> dict[str, float]:
        """The distances by name and network calls, such as ``fd/1``."""
        steps = TEACHER_STEPS if is_diffusion(model) else served(model)[0]
        row = self.protocol().judge(model, steps)
        return {f"{name}/{model.calls(steps)}": row[name] for name in self.metrics}


def watch(protocol_for: Callable[[], Protocol]) -> Watch:
    """A function that takes the distances of one draw of samples, for the log of a training.

    Args:
        protocol_for: of the run, by :func:`evaluator`.
    """
    return Watch(cache(lambda: replace(protocol_for(), draws=1)))


def is_diffusion(model: Model) -> bool:
    """Whether it is sampled along its ODE."""
    return model.contract.sampling.kind == "ode"


def usual_steps(model: Model) -> list[int]:
    """The numbers of steps that a model is evaluated at unless others are asked for.

    A diffusion model has those of its samples, a few-step model one and two.
    """
    return [len(model.times())] if is_diffusion(model) else served(model)


def served(model: Model, wanted: Sequence[int] = (1, 2)) -> list[int]:
    """The numbers of steps of those wanted that the model serves, else the fewest that it does."""
    return [n for n in wanted if model.serves(n)] or [len(model.times())]
