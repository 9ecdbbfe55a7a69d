"""The contract between a model's training and its sampling: what ``config.json`` says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewstep.errors import UsageError


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSpec(_Strict):
    """What a sample is: event shape, range of values (None: unbounded), number of labels."""

    shape: tuple[int, ...] = Field(min_length=1)
    range: tuple[float, float] | None = (-1.0, 1.0)
    labels: int = Field(default=0, ge=0)


class Start(_Strict):
    """Sampling starts at time ``t`` from Gaussian noise of that standard deviation."""

    t: float = Field(gt=0)
    std: float = Field(gt=0)


class Guidance(_Strict):
    """Scales of classifier-free guidance that the model can be sampled with; 1 is none."""

    kind: Literal["classifier_free"] = "classifier_free"
    min: float = 0.0
    max: float = 20.0


class Sampling(_Strict):
    """How a model may be sampled.

    Args:
        start: where.
        kind: ``renoise`` (consistency models), ``deterministic`` (flow maps), ``gamma`` (flow maps,
            with noise between jumps), ``ode`` (diffusion).
        times: for a number of steps, the times at which the model is called.
        any_times: whether other times than those are allowed.
        grid: rule for the times of step counts that ``times`` does not list.
        guidance: None if the model cannot be guided.
        gamma: of kind ``gamma``: the share of noise, 0 is ``deterministic`` and 1 ``renoise``.
    """

    start: Start
    kind: Literal["renoise", "deterministic", "gamma", "ode"]
    times: dict[int, tuple[float, ...]] = Field(default_factory=dict)
    any_times: bool = False
    grid: Literal["karras", "uniform"] = "karras"
    guidance: Guidance | None = None
    gamma: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _gamma_belongs_to_its_kind(self) -> Sampling:
        if (self.kind == "gamma") != (self.gamma is not None):
            raise ValueError(
                f"kind gamma, and no other, has a gamma; got {self.kind}, {self.gamma}"
            )
        return self

    @model_validator(mode="after")
    def _times_start_at_the_start(self) -> Sampling:
        for steps, times in self.times.items():
            descending = all(a > b for a, b in pairwise(times))
            if len(times) != steps or not descending or times[0] != self.start.t or times[-1] <= 0:
                raise ValueError(
                    f"the times of {steps} step(s) must be as many, descend from {self.start.t} "
                    f"and stay above 0, got {times}"
                )
        return self


class Contract(_Strict):
    """Method, data and sampling of a model: everything but its weights."""

    method: str
    data: DataSpec
    sampling: Sampling

    def with_times(self, times: Mapping[int, Sequence[float]]) -> Contract:
        """The same contract, with these times for these numbers of calls.

        Args:
            times: for a number of calls as many descending times, in the path's own unit.

        Raises:
            UsageError: the times do not fit, or the model allows none but its own.
        """
        own = self.sampling
        if not times:
            return self
        given = {**own.times, **{calls: tuple(each) for calls, each in times.items()}}
        if not own.any_times and given != own.times:
            raise UsageError(
                f"a model of the method {self.method} generates at the times {own.times} only, "
                f"got {dict(times)}; leave out the sampling times"
            )
        try:
            sampling = Sampling.model_validate({**own.model_dump(), "times": given})
        except ValidationError as error:
            raise UsageError(
                "the sampling times do not fit: " + "; ".join(e["msg"] for e in error.errors())
            ) from error
        return Contract(method=self.method, data=self.data, sampling=sampling)


def data_spec(shape: Sequence[int], labels: int, image: bool) -> DataSpec:
    """The data part of a contract."""
    return DataSpec(shape=tuple(shape), range=(-1.0, 1.0) if image else None, labels=labels)
