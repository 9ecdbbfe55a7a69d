"""Early words on runs that go wrong while every number in them is finite.

Methods that match distributions log how bright their samples are beside the data, how much they
vary as a share of how much the data does, and how far the critic has fallen behind the generator.
All three leave their usual places long before pictures are worth looking at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

IN_A_ROW = 3
"""Rows that must agree: statistics of one batch are noisy."""
LEAST_SPREAD = 0.25
"""Smallest spread of samples, as a share of the data's: a quarter is left without most modes."""
MOST_SPREAD = 4.0
"""Largest spread of samples, as a share of the data's: above it they leave the data's range."""
BRIGHTNESS = 0.5
"""Largest difference in brightness, in a range of [-1, 1]: batches of data differ by a tenth."""
LAG = 0.4
"""A correlation, 0 but for chance where the critic keeps up with the generator.

On the digits it is 0.2 to 0.5 with a critic that lags and 0.0 to 0.2 with one that does not.
"""
BEHIND = "the critic has fallen behind the generator; raise critic_updates, or lower --train.lr"


@dataclass(frozen=True)
class Sign:
    """A value of a row that should not be there, what it says and what may help."""

    name: str
    wrong: Callable[[float], bool]
    says: str


SIGNS = (
    Sign(
        "spread",
        lambda v: v < LEAST_SPREAD,
        "samples hardly differ from each other (collapse); lower --train.lr, or give the critic "
        "more updates",
    ),
    Sign(
        "spread",
        lambda v: v > MOST_SPREAD,
        "samples vary far more than the data (divergence); lower --train.lr, or clip with "
        "--train.clip 1",
    ),
    Sign(
        "brightness",
        lambda v: abs(v) > BRIGHTNESS,
        "samples are far brighter or darker than the data; lower --train.lr, or give the critic "
        "more updates",
    ),
    Sign("lag", lambda v: v > LAG, BEHIND),
    Sign("lag", lambda v: v < -LAG, BEHIND),
)


class Health:
    """What logged rows say, each sign once.

    A value that is the same to the bit is the one of the row before: its phase was not due since.
    """

    def __init__(self) -> None:
        self.seen = [0] * len(SIGNS)
        self.last: Mapping[str, float] = {}

    def warnings(self, row: Mapping[str, float]) -> list[str]:
        """The warnings after this row; a sign without a new value in the row gives none."""
        words, last, self.last = [], self.last, dict(row)
        for i, sign in enumerate(SIGNS):
            if sign.name not in row or row[sign.name] == last.get(sign.name):
                continue
            if sign.wrong(row[sign.name]):
                self.seen[i] += 1
                if self.seen[i] == IN_A_ROW:
                    words.append(f"{sign.name} is {row[sign.name]:.3g}: {sign.says}")
            elif self.seen[i] < IN_A_ROW:
                self.seen[i] = 0
        return words
