"""Disks that cannot flush and file systems without locks: work goes on, and it is said once."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest

from fewstep.core import UsageError
from fewstep.system import files
from fewstep.system.files import locked, whole_file, whole_folder
from fewstep.training.train import train
from own_networks import Net, made, run_of
from survive import held_by_another


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(files, "_warned", set())


def unflushable(monkeypatch, number: int, folders_only: bool = True) -> None:
    fsync = os.fsync

    def fails(handle: int) -> None:
        if not folders_only or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fails)


def lockless(monkeypatch, number: int) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fails)


@pytest.mark.parametrize("folders_only", [True, False])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_what_cannot_be_flushed_is_written(number, folders_only, tmp_path, monkeypatch, capsys):
    unflushable(monkeypatch, number, folders_only)
    for k in range(2):
        with whole_folder(tmp_path / f"{k}") as fresh:
            (fresh / "x").write_text("y")
        with whole_file(tmp_path / f"{k}.txt") as fresh:
            fresh.write_text("y")
    assert (tmp_path / "1" / "x").read_text() == (tmp_path / "1.txt").read_text() == "y"
    said = capsys.readouterr().err
    assert said.count("cannot flush what is written") == 1
    assert "a power cut may lose the newest files" in said


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_flush_is_an_error(number, tmp_path, monkeypatch):
    unflushable(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)), whole_folder(tmp_path / "x"):
        pass
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL]
)
def test_no_locks_are_no_other_process(number, tmp_path, monkeypatch, capsys):
    lockless(monkeypatch, number)
    for _ in range(2):
        with locked(tmp_path, "busy"):
            pass
    said = capsys.readouterr().err
    assert said.count("this file system has no locks") == 1
    assert str(tmp_path) in said
    assert "start one process here at a time" in said


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_held_lock_is_another_process(number, tmp_path, monkeypatch):
    lockless(monkeypatch, number)
    with pytest.raises(UsageError, match="busy"), locked(tmp_path, "busy"):
        pass


def test_other_errors_of_locks_are_told(tmp_path, monkeypatch):
    lockless(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(tmp_path, "busy"):
        pass


def test_locks_keep_others_out(tmp_path):
    with (
        held_by_another(tmp_path),
        pytest.raises(UsageError, match="busy"),
        locked(tmp_path, "busy"),
    ):
        pass
    with locked(tmp_path, "busy"):
        pass


def test_a_system_without_the_module(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "import_module", _none)
    with locked(tmp_path, "busy"), (tmp_path / "x").open("w") as handle:
        assert files.lock(handle, 3, 1, wait=True)
        files.unlock(handle, 3, 1)
    assert "this system has no file locks" in capsys.readouterr().err


def _none(name: str) -> object:
    raise ImportError(name)


def test_a_run_on_such_a_disk_trains(tmp_path, monkeypatch, capsys):
    unflushable(monkeypatch, errno.EINVAL)
    lockless(monkeypatch, errno.ENOLCK)
    train(run_of(made(Net)), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("cannot flush") == said.count("has no locks") == 1
    assert (tmp_path / "run/model/config.json").exists()
