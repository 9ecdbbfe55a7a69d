"""Runs that go wrong are told of, early and once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fewstep.core import Batch
from fewstep.data import toy
from fewstep.objectives.base import Loss
from fewstep.training.config import Run
from fewstep.training.health import BRIGHTNESS, IN_A_ROW, LAG, LEAST_SPREAD, MOST_SPREAD, Health
from fewstep.training.train import train
from generators import Matching
from ranks import mlp
from tiny import settings

WELL = {"loss": 1.0, "spread": 0.9, "brightness": 0.1, "lag": 0.2}
ILL = {
    "collapse": {"spread": LEAST_SPREAD / 2},
    "divergence": {"spread": MOST_SPREAD * 2},
    "brighter": {"brightness": 2 * BRIGHTNESS},
    "darker": {"brightness": -2 * BRIGHTNESS},
    "critic_updates": {"lag": 2 * LAG},
    "behind": {"lag": -2 * LAG},
}


def words(*rows: dict[str, float]) -> list[list[str]]:
    """Of rows no value of which is that of the row before."""
    health = Health()
    fresh = ({k: v * (1 + 1e-6 * i) for k, v in row.items()} for i, row in enumerate(rows))
    return [health.warnings(row) for row in fresh]


@pytest.mark.parametrize("sign", ILL)
def test_three_rows_in_a_row_are_told_of_once(sign):
    ill = {**WELL, **ILL[sign]}
    found = words(WELL, ill, ill, WELL, ill, ill, ill, ill, WELL, ill, ill, ill)
    assert [len(each) for each in found] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert sign in found[6][0]
    (name,) = ILL[sign]
    assert f"{ill[name]:.3g}" in found[6][0]


def test_rows_without_a_value_neither_count_nor_calm():
    ill, silent = {"spread": 0.01}, {"loss": 1.0}
    found = words(ill, silent, ill, silent, ill)
    assert [len(each) for each in found] == [0] * 4 + [1]


def test_old_values_do_not_count():
    health = Health()
    rows = [{"spread": v} for v in (0.1, 0.1, 0.1, 0.2, 0.2, 0.15, 0.15)]
    assert [len(health.warnings(row)) for row in rows] == [0, 0, 0, 0, 0, 1, 0]


def test_each_has_its_own_word():
    ill = {"spread": 0.01, "brightness": 1.0, "lag": 1.0}
    assert len(words(*[ill] * IN_A_ROW)[-1]) == 3
    assert words(*[WELL] * 9) == [[]] * 9
    assert words(*[{"lag": 1.0}, {"lag": -1.0}] * 9) == [[]] * 18


class Collapsed(Matching):
    def loss(self, batch: Batch, draws) -> Loss:
        found = super().loss(batch, draws)
        return replace(found, logs={**found.logs, "spread": found.logs["spread"] * 1e-9})


def test_a_run_says_so_while_it_trains(tmp_path, capsys):
    objective = Collapsed(mlp(0), mlp(1), mlp(2))
    run = Run(
        recipe="x",
        arguments={},
        objective=objective,
        data=toy("two-modes", 64),
        config=settings(steps=8, lr=1e-5),
    )
    train(run, tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if "collapse" in line]
    assert len(told) == 1
    assert told[0].startswith("step 5: spread is ")
