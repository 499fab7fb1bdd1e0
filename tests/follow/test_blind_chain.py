"""A log that cannot be read is reported, even if it never could be."""

from __future__ import annotations

import itertools
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.booking import book, connect

from backupd.config import Database
from backupd.follow.chain import Chain, WindowBegan, WindowEnded

if TYPE_CHECKING:
    from pathlib import Path


def test_a_log_that_cannot_be_read_is_reported_once(tmp_path: Path) -> None:
    """What is in the place of the log may be of another user; commits are not seen then."""
    path, spool, log = tmp_path / "app.db", tmp_path / "spool", tmp_path / "app.db-wal"
    spool.mkdir()
    log.symlink_to(tmp_path / "elsewhere")
    chain = Chain(Database("app", path), spool, interval=60, most_bytes=10**6)
    (end,) = [*chain.poll()]
    assert isinstance(end, WindowEnded)
    assert end.is_blind
    assert "the log cannot be read" in end.reason
    assert [*chain.poll()] == []
    log.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        assert [type(each) for each in chain.poll()] == [WindowBegan]
    *_, end = chain.poll()
    assert isinstance(end, WindowEnded)
    assert not end.is_blind
    chain.close()


@pytest.mark.parametrize("call", ["open", "lstat"])
def test_a_log_that_is_removed_during_a_poll_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """An application that closes its last connection before the log is opened, or just after, is no blindness."""
    path, log = tmp_path / "app.db", tmp_path / "app.db-wal"
    chain = Chain(Database("app", path), tmp_path / "spool", interval=60, most_bytes=10**6)
    with closing(connect(path)) as connection:
        book(connection)
        _remove_before(monkeypatch, log, call, times=1 if call == "open" else 2)
        assert [*chain.poll()] == []
    assert not log.exists()
    with closing(connect(path)) as connection:
        book(connection)
        assert [type(each) for each in chain.poll()] == [WindowBegan]
    chain.close()


def _remove_before(monkeypatch: pytest.MonkeyPatch, log: Path, call: str, *, times: int) -> None:
    """Remove the log just before a system call asks for it for the nth time."""
    real, calls = getattr(os, call), itertools.count(1)

    def removing(path: str, *arguments: object, **options: object) -> object:
        if path == str(log) and next(calls) == times:
            log.unlink()
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, removing)
