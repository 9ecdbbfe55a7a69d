"""When a bar is shown, and where."""

import io
import sys
import time

import pytest

from fewstep.system.bars import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """In place of stderr; pytest puts its own back between a fixture and the test."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return shown


def test_nothing_is_shown_off_a_terminal(capsys):
    with bar("making", "pairs", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_shown_on_stderr_only(monkeypatch, capsys):
    shown = terminal(monkeypatch)
    with bar("making", "pairs", 3) as advance:
        advance(3)
    assert "making" in shown.getvalue()
    assert "3/3" in shown.getvalue()
    assert capsys.readouterr().out == ""


def test_a_short_block_has_no_bar(monkeypatch):
    shown = terminal(monkeypatch)
    with bar("evaluating", "draws", 5, after=60.0) as advance:
        advance(5)
    assert "evaluating" not in shown.getvalue()


def test_a_long_block_has_one_before_its_first_thing_is_done(monkeypatch):
    shown = terminal(monkeypatch)
    with bar("evaluating", "draws", 5, after=0.05):
        end = time.monotonic() + 20
        while "0/5" not in shown.getvalue() and time.monotonic() < end:
            time.sleep(0.02)
        assert "0/5" in shown.getvalue()


def test_an_error_ends_the_bar(monkeypatch):
    shown = terminal(monkeypatch)

    def fail():
        with bar("evaluating", "draws", 5):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    # The cursor is visible again.
    assert "\x1b[?25l" in shown.getvalue()
    assert shown.getvalue().rstrip().endswith("\x1b[?25h")
