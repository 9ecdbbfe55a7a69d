"""Comparisons of policies: rewards instead of distances, and more is better."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fewstep.compare import Budget, Plan
from fewstep.compare.measures import DISTANCES, REWARDS, measures_of
from fewstep.compare.report import write_report
from fewstep.compare.table import clear_best
from fewstep.control import Rewards
from fewstep.core import UsageError
from point_env import point_environment, point_policy

COMMON = {
    "calls": 35,
    "teacher": {"reward": 0.75, "success": 0.5},
    "floor": {},
    "parameters": 1000,
    "device": "cpu",
    "threads": 1,
    "torch": "2.0",
}


def result(reward: float) -> dict[str, Any]:
    by_steps = {"1": reward}
    costs = {"seconds": 40.0, "samples": 2000, "nonfinite": 0, "spikes": 0}
    made = {"date": "2026-03-01", "fewstep": "0.1.0"}
    values = dict.fromkeys(("reward", "success", "p50", "images_per_second"), by_steps)
    return {**values, **costs, **made, "curve": [[40.0, reward]], "settings": [{"recipe": "one"}]}


def test_data_says_what_decides():
    assert measures_of("pusht") is REWARDS
    assert measures_of("digits") is measures_of("some/folder") is DISTANCES


def test_the_larger_reward_is_the_best():
    entries = {"cd": (0.5, 0.01), "ctm": (0.7, 0.02), "meanflow": (0.6, 0.01)}
    methods = {k: {"reward": {"1": v}, "spread": {"1": s}} for k, (v, s) in entries.items()}
    assert clear_best(methods, 1, REWARDS) == "ctm"
    methods["meanflow"]["reward"]["1"] = 0.68
    assert clear_best(methods, 1, REWARDS) is None


def test_the_page_of_rewards(tmp_path):
    given = {"data": "pusht", "methods": ("cd", "ctm"), "budget": Budget.of("40s")}
    plan = Plan(**given, seeds=2, steps=(1,))
    for name, values in {"cd": (0.5, 0.52), "ctm": (0.7, 0.72)}.items():
        for seed, value in enumerate(values, plan.first_seed):
            place = tmp_path / name / f"seed-{seed}"
            place.mkdir(parents=True)
            (place / "result.json").write_text(json.dumps(result(value)))
    write_report(plan, COMMON, tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())["methods"]
    assert told["ctm"]["reward"] == {"1": pytest.approx(0.71)}
    assert told["ctm"]["spread"] == {"1": pytest.approx(0.01)}
    page = (tmp_path / "report.html").read_text()
    for text in ("reward, 1 step", "success", '<td class="best">0.710 ± 0.010</td>', "0.750"):
        assert text in page
    assert "Frechet distance" not in page


def test_methods_without_a_recipe_for_policies():
    with pytest.raises(UsageError, match="kd has no recipe on Push-T; take --methods "):
        Plan(data="pusht", methods=("cd", "kd"), budget=Budget.of("40s"))


def test_policies_are_judged_on_the_same_episodes():
    judge = Rewards(point_environment(), range(10))
    judge.check()
    found = judge.judge(point_policy(), 1)
    assert found["success"] == 1.0
    assert found["reward"] > 0.6
    assert found["p50"] <= found["p95"]
    assert judge.quick().seeds == range(8)
    assert judge.floor() == {}
