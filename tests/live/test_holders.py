from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.place import connected, create_database

from backupd.live.contents import holders

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("journal_mode", "statements", "is_seen"),
    [
        ("wal", ("SELECT count(*) FROM report",), True),
        ("delete", ("BEGIN IMMEDIATE",), True),
        ("delete", ("BEGIN", "SELECT count(*) FROM report"), True),
        ("delete", ("SELECT count(*) FROM report",), False),
    ],
)
def test_holders_are_all_connections_in_wal_mode_and_busy_ones_otherwise(
    tmp_path: Path, journal_mode: str, statements: tuple[str, ...], *, is_seen: bool
) -> None:
    """Every connection in WAL mode and busy ones in rollback mode, but no idle one there: so people are asked."""
    database = tmp_path / "app.db"
    create_database(database, rows=3, journal_mode=journal_mode)
    with connected(database, *statements) as application:
        assert holders(database) == ({application.pid} if is_seen else set())
    application.wait()
    assert holders(database) == set()


def test_looking_drops_no_lock_of_another_process(tmp_path: Path) -> None:
    """The writer still keeps others out afterwards."""
    database = tmp_path / "app.db"
    create_database(database, rows=3)
    with connected(database, "BEGIN EXCLUSIVE"):
        holders(database)
        with closing(sqlite3.connect(database, timeout=0)) as other, pytest.raises(sqlite3.OperationalError):
            other.execute("SELECT count(*) FROM report")
