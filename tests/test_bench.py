"""The bench compares what it says it compares, and tells it in the words that are promised."""

from __future__ import annotations

import json

import pytest

from fewstep import bench
from fewstep.models import LowRank
from tiny import fewstep

PROMISED = {
    "overhead",
    "ct_over_passes",
    "sample_over_forward",
    "ct_peak_mib",
    "dmd2_peak_mib",
    "dmd2_lora_peak_mib",
    "sct_peak_mib",
    "meanflow_peak_mib",
    "bf16_forward_speedup",
    "jvp_over_forward",
    "jvp_backward_over_passes",
}


@pytest.fixture
def quick(monkeypatch):
    """A network of the same kind that takes milliseconds, and no other process."""
    monkeypatch.setattr(bench, "SHAPE", (3, 8, 8))
    monkeypatch.setattr(bench, "CHANNELS", 8)
    monkeypatch.setattr(bench, "_in_a_fresh_process", lambda threads, kind: 1.0)


def test_the_command_prints_json(quick, capsys):
    outcome = fewstep(capsys, "bench", "--json", "--threads", 1, "--pairs", 3)
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found.keys() > PROMISED
    assert bench.TARGETS.keys() == PROMISED
    assert (found["threads"], found["pairs"]) == (1, 3)
    for sides in found["milliseconds"].values():
        assert [len(times) for times in sides.values()] == [3, 3]
        assert min(min(times) for times in sides.values()) > 0


def test_the_table_names_the_aims(quick, capsys):
    outcome = fewstep(capsys, "bench", "--threads", 1, "--pairs", 1)
    for name, (limit, kind) in bench.TARGETS.items():
        line = next(x for x in outcome.out.splitlines() if x.startswith(f"{name} "))
        assert line.endswith(f"{kind} {limit:g}")


def test_adapters_are_what_the_smaller_figure_is_of(quick):
    whole, lora = (bench.dmd2(True, lora).__self__.objective for lora in (False, True))
    assert not isinstance(whole.critic["fake"], LowRank)
    theirs = {id(p) for p in lora.teacher.parameters()}
    assert theirs <= {id(p) for p in lora.critic["fake"].net.parameters()}


def test_ratios_are_of_pairs():
    assert bench._ratio([1.0, 2.0, 9.0], [1.0, 4.0, 3.0]) == 1.0


def test_a_side_that_is_hopelessly_slow_is_called_twice(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(seconds):
        def call():
            calls.append(seconds)
            now[0] += seconds

        return call

    times = bench.interleaved(takes(60.0), takes(1.0), 15, bench.SLOW)
    assert times == ([60.0], [1.0])
    assert calls.count(60.0) == 2
    assert len(bench.interleaved(takes(3.0), takes(1.0), 15, bench.SLOW)[0]) == 15


def test_the_parts_are_those_of_the_method(quick):
    made = bench.Subjects()
    calls = []
    made.net.register_forward_hook(lambda *_: calls.append(made.net.training))
    made.passes()
    bare = len(calls)
    made.loss()
    assert (bare, len(calls)) == (2, 4)
    made.step("adam")()
    assert len(calls) == 6
    made.sample()
    assert len(calls) == 7


@pytest.mark.parametrize("kind", bench.PEAKS)
def test_the_peak_is_of_whole_steps(quick, kind):
    assert bench.peak(1, kind, steps=1) > 100


@pytest.mark.parametrize("option", ["--threads", "--pairs"])
def test_bad_counts(option, capsys):
    assert fewstep(capsys, "bench", option, 0).code == 2
