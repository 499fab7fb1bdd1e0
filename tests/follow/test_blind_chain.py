"""A log that cannot be read is reported, even if it never could be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

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
