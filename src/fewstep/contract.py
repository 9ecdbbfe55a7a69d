"""The contract between a model's training and its sampling: what ``config.json`` says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor

from fewstep import conditions as kinds
from fewstep.conditions import Condition, Label, Mask
from fewstep.errors import UsageError, nearest


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSpec(_Strict):
    """What one sample is, and what it depends on.

    ``labels=k`` is short for the condition ``label`` of k classes, and is how format 1 of
    ``config.json`` says it.

    Args:
        shape: of a sample, channels first. The last axis may be None: samples differ in length.
        range: of the values; None if they are unbounded.
        conditions: by name; ``label`` is a :class:`~fewstep.conditions.Label`, ``mask`` a
            :class:`~fewstep.conditions.Mask`.
    """

    shape: tuple[PositiveInt | None, ...] = Field(min_length=1)
    range: tuple[float, float] | None = (-1.0, 1.0)
    conditions: dict[str, Condition] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _labels_are_a_condition(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "labels" not in given:
            return given
        rest = {key: value for key, value in given.items() if key != "labels"}
        labels, own = given["labels"], rest.get("conditions") or {}
        if not isinstance(labels, int) or isinstance(labels, bool) or labels < 0 or "label" in own:
            raise ValueError(
                f"labels must be the number of classes of the one condition label, got {labels!r}"
            )
        return {**rest, "conditions": {**own, "label": Label(classes=labels)}} if labels else rest

    @model_validator(mode="after")
    def _conditions_fit(self) -> DataSpec:
        keys: list[str] = []
        for name, one in self.conditions.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"a condition is named by letters, digits and _, got {name!r}")
            if isinstance(one, Mask) != (name == "mask") or (
                name == "label" and not isinstance(one, Label)
            ):
                raise ValueError(f"the condition {name!r} cannot be a {one.kind}")
            keys += [name, *([f"{name}_mask"] if isinstance(one, kinds.OF_TOKENS) else [])]
        if len({*keys}) < len(keys):
            raise ValueError(f"two conditions share a key: {', '.join(keys)}")
        if None in self.shape[:-1] or self.shape == (None,):
            raise ValueError(f"only the last axis, after the channels, may be free: {self.shape}")
        if self.masked and len(self.shape) < 2:
            raise ValueError(f"a mask needs an axis after the channels, got the shape {self.shape}")
        if None in self.shape and not self.masked:
            raise ValueError("samples of several lengths need the condition mask")
        return self

    @property
    def labels(self) -> int:
        """The number of classes of the condition ``label``; 0 where there is none."""
        label = self.conditions.get("label")
        return label.classes if isinstance(label, Label) else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty where they have none."""
        label = self.conditions.get("label")
        return (label.names or ()) if isinstance(label, Label) else ()

    @property
    def masked(self) -> bool:
        """Whether some positions of a sample may not be real."""
        return "mask" in self.conditions

    @property
    def nulls(self) -> dict[str, Tensor]:
        """What stands for "no condition", without a batch, by key."""
        nulls = (one.null(name).items() for name, one in self.conditions.items())
        return {key: value for each in nulls for key, value in each}

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all conditions among the tensors that a network reads."""
        return (*self.nulls, *(["mask"] if self.masked else []))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether samples of this shape are such samples."""
        return len(shape) == len(self.shape) and all(
            own in (None, size) for size, own in zip(shape, self.shape, strict=True)
        )

    def agrees(self, other: DataSpec) -> bool:
        """Whether samples and conditions are of the same kinds.

        Classes agree by their names; where one side has none, by their number.
        """
        named = self.class_names and other.class_names

        def kinds_of(spec: DataSpec) -> dict[str, Condition]:
            plain = {"label": Label(classes=spec.labels)} if spec.labels and not named else {}
            return {**spec.conditions, **plain}

        return self.shape == other.shape and kinds_of(self) == kinds_of(other)

    def summary(self) -> str:
        """Shape and conditions in words: ``(1, 8, 8), 10 labels``."""
        names = f" ({', '.join(self.class_names[:5])})" if self.class_names else ""
        parts = [str(self.shape), f"{self.labels or 'no'} labels{names}"]
        for name, one in self.conditions.items():
            if isinstance(one, Mask):
                parts.append("masked")
            elif name != "label":
                size = {"label": "classes", "text": "length"}.get(one.kind, "shape")
                parts.append(f"{name} {getattr(one, size)}")
        return ", ".join(parts)

    def defaults(self, own: Sequence[int], given: Sequence[str] = ()) -> dict[str, Tensor]:
        """The conditions of samples for which nobody gives any, batch first.

        Args:
            own: the samples' own numbers, by which the classes take turns.
            given: names of conditions that have values already.

        Raises:
            UsageError: samples have no length of their own.
        """
        values: dict[str, Tensor] = {}
        for name, one in self.conditions.items():
            if name not in given:
                space = {"space": self.shape[1:]} if isinstance(one, Mask) else {}
                values |= one.default(name, own, **space)
        return values

    def convert(self, cond: Mapping[str, Any], n: int) -> dict[str, Tensor]:
        """Given conditions as the tensors that a network reads, each ``(n, ...)``.

        Args:
            cond: by name: tensors, arrays, lists or numbers, one row for all samples or one each;
                names of classes; tokens, or tokens and mask in a pair or under ``NAME_mask``.
            n: samples.

        Raises:
            UsageError: an unknown name, or a value of another shape, kind or range.
        """
        given = dict(cond)
        for name, one in self.conditions.items():
            key = f"{name}_mask"
            if isinstance(one, kinds.OF_TOKENS) and name in given and key in given:
                given[name] = (given[name], given.pop(key))
        values: dict[str, Tensor] = {}
        for name, value in given.items():
            one = self._known(name)
            space = {"space": self.shape[1:]} if isinstance(one, Mask) else {}
            values |= one.convert(name, value, n, **space)
        return values

    def parse(self, texts: Sequence[str], label: str | None = None) -> dict[str, Any]:
        """What ``--cond NAME=VALUE`` and ``--label`` give, by name.

        Args:
            texts: of the form NAME=VALUE; see :func:`fewstep.conditions.parse`.
            label: the number or the name of a class.

        Raises:
            UsageError: a text is not of that form, or cannot be read.
        """
        values: dict[str, Any] = {}
        if label is not None:
            if not self.labels:
                raise UsageError(f"this model has no labels, got label={label}; leave it out")
            values["label"] = kinds.parse("label", label, self.conditions["label"])
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not value:
                raise UsageError(f"--cond must look like NAME=VALUE, got {text!r}")
            if name in values:
                raise UsageError(f"--cond gives {name} twice; give it once")
            values[name] = kinds.parse(name, value, self._known(name))
        return values

    def _known(self, name: str) -> Any:
        if name in self.conditions:
            return self.conditions[name]
        if not self.conditions:
            raise UsageError(f"this model has no conditions, got {name!r}; leave it out")
        raise UsageError(f"unknown condition {name!r}; {nearest(name, self.conditions)}")


class Start(_Strict):
    """Sampling starts at time ``t`` from Gaussian noise of that standard deviation."""

    t: float = Field(gt=0)
    std: float = Field(gt=0)


class Guidance(_Strict):
    """Scales of guidance that the model can be sampled with; 1 is none.

    Args:
        kind: ``classifier_free`` calls the network twice; ``embedded`` is for a network that reads
            the scale as a condition, and whose samples have the lowest scale by default.
        min: the lowest scale.
        max: the highest scale.
        keys: of the conditions that training left out for a share of the samples, and guidance
            leaves out in its unconditional half; None if they are all.
    """

    kind: Literal["classifier_free", "embedded"] = "classifier_free"
    min: float = 0.0
    max: float = 20.0
    keys: tuple[str, ...] | None = None

    @property
    def embedded(self) -> bool:
        """Whether the network reads the scale."""
        return self.kind == "embedded"


class Sampling(_Strict):
    """How a model may be sampled.

    Args:
        start: where.
        kind: ``renoise`` (consistency models), ``deterministic`` (flow maps), ``gamma`` (flow maps,
            with noise between jumps), ``ode`` (diffusion).
        times: for a number of steps, the times at which the model is called.
        any_times: whether other times than those are allowed.
        grid: rule for the times of step counts that ``times`` does not list.
        shift: of a uniform grid on [0, 1]: a time t becomes s t / (1 + (s - 1) t), so that more
            steps are spent near noise (Esser et al. 2024, eq. 23); 1 shifts nothing.
        guidance: None if the model cannot be guided.
        gamma: of kind ``gamma``: the share of noise, 0 is ``deterministic`` and 1 ``renoise``.
    """

    start: Start
    kind: Literal["renoise", "deterministic", "gamma", "ode"]
    times: dict[int, tuple[float, ...]] = Field(default_factory=dict)
    any_times: bool = False
    grid: Literal["karras", "uniform"] = "karras"
    shift: float = Field(default=1.0, gt=0)
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


def data_spec(shape: Sequence[int | None], labels: int, image: bool) -> DataSpec:
    """The data part of a contract, of data that has at most labels for conditions."""
    conditions: dict[str, Condition] = {"label": Label(classes=labels)} if labels else {}
    if None in shape:
        conditions["mask"] = Mask()
    return DataSpec(shape=tuple(shape), range=(-1.0, 1.0) if image else None, conditions=conditions)
