"""What messages say of things that Python's own words describe badly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.errors import UsageError, in_words, nearest
from fewstep.model import load
from fewstep.paths import VarianceExploding
from fewstep.recipes import rebuild
from fewstep.schedule import in_order, times
from fewstep.system.status import status
from tiny import fewstep


def raised(act) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
        act()
    return caught.value


def missing() -> None:
    Path("nowhere/at/all").read_text()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: json.loads(""), "it is empty"),
        (lambda: json.loads('{"a": [1, '), "it is cut short"),
        (lambda: json.loads('{\n "a": x}'), "it is no JSON from line 2, column 7 on"),
        (lambda: b"ab\xff".decode(), "byte 2 is no text"),
        (lambda: {}["run"], "it has no entry 'run'"),
        (lambda: [][3], "it is cut short, or a part of it is missing"),
        (lambda: len(3), "a part of it is of another kind than expected"),
        (lambda: None.get("run"), "a part of it is of another kind than expected"),
        (missing, "No such file or directory"),
        (lambda: int("two"), "invalid literal for int() with base 10: 'two'"),
        (lambda: nearest(None, None), "a part of it is of another kind than expected"),
    ],
)
def test_exceptions_in_words(act, words):
    assert in_words(raised(act)) == words


def test_our_own_messages_stay_as_they_are():
    assert in_words(UsageError("two\nlines")) == "two\nlines"
    assert in_words(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "it is empty"), ('{"run": ', "it is cut short"), ("[]", "another kind")],
)
def test_damaged_records_are_described(text, words, tmp_path):
    (tmp_path / "run.json").write_text(text)
    for read in (rebuild, status):
        with pytest.raises(UsageError, match=words) as caught:
            read(tmp_path)
        assert "Error" not in str(caught.value)
        assert "char" not in str(caught.value)


def test_a_damaged_model_is_described(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="holds no readable model: it is cut short"):
        load(tmp_path)


def test_times_in_words():
    sampling = Sampling(
        start=Start(t=80.0, std=80.0), kind="renoise", times={2: (80.0, 0.821), 1: (80.0,)}
    )
    assert in_order(sampling) == "80 (1 step); 80, 0.821 (2 steps)"
    contract = Contract(method="cd", data=DataSpec(shape=(2,)), sampling=sampling)
    with pytest.raises(UsageError, match="made for 1 or 2 steps, got 5; take one of these"):
        times(contract, VarianceExploding(), 5)


def test_a_contract_without_times_allows_no_steps():
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise")
    contract = Contract(method="cd", data=DataSpec(shape=(2,)), sampling=sampling)
    with pytest.raises(UsageError, match="made for no number of steps, got 1"):
        times(contract, VarianceExploding())


def test_an_unknown_solver_is_refused_with_the_known_ones(tmp_path, capsys):
    pairs = ("data", "pairs", "digits-edm", "-n", 2, "--out", tmp_path / "p")
    for words in (("sample", "digits-edm"), pairs):
        outcome = fewstep(capsys, *words, "--solver", "hoin")
        assert (outcome.code, outcome.out) == (2, "")
        assert "--solver 'hoin' is none; did you mean 'heun'?" in outcome.err
        assert "None" not in outcome.err
    assert not (tmp_path / "p").exists()
