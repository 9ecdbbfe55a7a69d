"""Whether data brings what a method's networks read, and the conditions of a run's pictures."""

from __future__ import annotations

from torch import Tensor

from fewstep.conditions import Label, Text
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data import Dataset
from fewstep.data.checks import check_batch, first_batch
from fewstep.data.specs import MADE, conditions_of, spec_of
from fewstep.errors import nearest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Objective


def check_conditions(objective: Objective, data: Dataset) -> None:
    """That the first samples are what the data declares, and hold what the networks read.

    Args:
        objective: with its student and whatever other denoisers it asks.
        data: that it learns from.

    Raises:
        UsageError: they are not, or a condition is missing or not declared.
    """
    spec = spec_of(data)
    batch = first_batch(data)
    n = len(batch)
    check_batch(batch, spec)
    _check_mask(batch, spec)
    for key in batch.cond:
        if key not in (*spec.keys, *MADE):
            raise UsageError(
                f"the data holds the condition {key!r}, which its spec does not declare; "
                f"{nearest(key, spec.keys) if spec.keys else 'it declares none'}"
            )
    missing = [key for key in spec.keys if key not in batch.cond]
    # A mask that no network reads need not be a condition: losses take it from the batch.
    if missing and missing != ["mask"]:
        raise UsageError(
            f"the data's spec declares the condition(s) {missing}, which its batches do not hold; "
            f"they hold {sorted(batch.cond)}"
        )
    converted = spec.convert({k: v for k, v in conditions_of(batch).items() if k in spec.keys}, n)
    for key, value in converted.items():
        if key not in batch.cond:
            continue
        if value.shape != batch.cond[key].shape or (
            value.is_floating_point() != batch.cond[key].is_floating_point() and key != "mask"
        ):
            raise UsageError(
                f"the data holds the condition {key!r} as {batch.cond[key].dtype} of shape "
                f"{tuple(batch.cond[key].shape)}; its spec says {value.dtype} of shape "
                f"{tuple(value.shape)}"
            )
    _check_networks(objective, batch)


def _check_mask(batch: Batch, spec: DataSpec) -> None:
    if spec.masked and batch.mask is None:
        raise UsageError(
            "the data's spec declares a mask, which its batches do not hold; give Batch(mask=...)"
        )
    if "mask" in conditions_of(batch) and not spec.masked:
        raise UsageError(
            "the data's batches hold a mask, which its spec does not declare; add "
            "conditions={'mask': Mask()}"
        )


def _check_networks(objective: Objective, batch: Batch) -> None:
    for module in objective.modules():
        if not isinstance(module, AbstractDenoiser):
            continue
        missing = [key for key in module.cond_keys if key not in (*batch.cond, *MADE)]
        if missing:
            who = "the student" if module is objective.student else f"a {type(module).__name__}"
            advice = " (put Batch.mask into cond['mask'] too)" if missing == ["mask"] else ""
            raise UsageError(
                f"{who} reads the condition(s) {missing}, which the data does not hold{advice}; it "
                f"holds {sorted(batch.cond) or 'none'}"
            )


def picture_conditions(data: Dataset, n: int) -> dict[str, Tensor]:
    """The conditions of n samples to look at: those of the data's first samples.

    Where samples depend on texts, they are samples spread evenly over the data instead.

    Classes take turns instead where they are all that samples depend on.

    Args:
        data: with at least one sample; it is repeated where there are fewer than n.
        n: samples.
    """
    spec = spec_of(data)
    if all(isinstance(one, Label) for one in spec.conditions.values()):
        return {}
    # Texts of neighbours are often alike.
    texts = any(isinstance(one, Text) for one in spec.conditions.values())
    spread = [i * len(data) // n if texts else i % len(data) for i in range(n)]
    batch = data.batch(spread)
    return {key: value for key, value in conditions_of(batch).items() if key in spec.keys}
