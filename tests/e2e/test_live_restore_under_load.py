"""A restore and its undo beside a web service under load: no request fails, and no acknowledged row is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.clients import busy_clients
from harness.command_line import wait_until
from harness.extent import sampled, slow
from harness.killing import kill
from harness.place import connected
from harness.webapp import THREADS, WORKERS, bookings, change_generation, create_content, generation, web_service

if TYPE_CHECKING:
    from pathlib import Path

_OLD, _NEW = "old", "new"
_REQUESTS = 25
_MODE = 0o640
_BUSY = 11
_FILES = {"app.db", "backupd.toml", "backups", "state"}


def _facts(database: Path) -> tuple[object, ...]:
    """What other programs know the file by, and how SQLite works with it."""
    status = database.stat()
    with closing(sqlite3.connect(database)) as connection:
        (journal_mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return status.st_ino, status.st_uid, status.st_gid, status.st_mode, journal_mode


@pytest.mark.parametrize(
    ("journal_mode", "megabytes"), sampled([("wal", 4), ("delete", 4), ("wal", 48)]), ids=["wal", "delete", "wal-48-MB"]
)
def test_restore_and_undo_beside_a_busy_service(tmp_path: Path, journal_mode: str, megabytes: int) -> None:
    """The connections stay open, and each restore gives exactly the rows that were acknowledged in its content."""
    backupd, database = CommandLine(tmp_path), tmp_path / "app.db"
    (tmp_path / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    create_content(database, _OLD, size_bytes=megabytes * 10**6, journal_mode=journal_mode)
    database.chmod(_MODE)
    backupd.run("now", "--tag", "before")
    change_generation(database, _NEW)
    facts = _facts(database)
    with web_service(database) as service, busy_clients(service) as account:
        account.wait_for_more(_NEW, _REQUESTS)
        for command, content in ((["restore", "before"], _OLD), (["undo"], _NEW)):
            restored = backupd.json(*command, "--yes")["restored"]
            assert restored["way"] == "live"
            assert 0 < restored["pause_seconds"] < restored["duration_seconds"]
            account.wait_for_more(content, _REQUESTS)
    assert account.failures == []
    assert 1 < len({answer.worker for answer in account.answers}) <= WORKERS
    assert max(answer.connections for answer in account.answers) <= THREADS
    assert bookings(database) == account.acknowledged(_NEW)
    backupd.run("undo", "--yes")
    assert bookings(database) == account.acknowledged(_OLD)
    assert _facts(database) == facts
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert {path.name for path in tmp_path.iterdir()} - _FILES <= {"app.db-wal", "app.db-shm"}


@slow
@pytest.mark.parametrize("journal_mode", sampled(["delete", "wal"]))
def test_killed_restore_beside_a_busy_service(tmp_path: Path, journal_mode: str) -> None:
    """The service goes on with the old content, to which it rolls back itself, or with the new, and loses no row."""
    backupd, database = CommandLine(tmp_path), tmp_path / "app.db"
    (tmp_path / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    create_content(database, _OLD, size_bytes=16 * 10**6, journal_mode=journal_mode)
    backupd.run("now", "--tag", "before")
    change_generation(database, _NEW)
    intent = tmp_path / ".app.db.backupd-restoring"
    with web_service(database) as service, busy_clients(service) as account:
        account.wait_for_more(_NEW, _REQUESTS)
        process = backupd.start("restore", "before", "--yes")
        wait_until(intent.exists)
        kill(process, after_seconds=0.03)
        account.wait_for_more(generation(database), _REQUESTS)
        backupd.run("now")
        assert not intent.exists()
    assert account.failures == []
    assert bookings(database) == account.acknowledged(generation(database))


@slow
def test_endless_reader_holds_up_no_other_connection(tmp_path: Path) -> None:
    """An endless reader in rollback mode makes the restore give up, without having stopped the service."""
    # Longer than the service's own patience, which is 5 s.
    backupd, database = CommandLine(tmp_path, BACKUPD_CAPTURE__LOCK_TIMEOUT="7s"), tmp_path / "app.db"
    (tmp_path / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    create_content(database, _OLD, size_bytes=10**6, journal_mode="delete")
    backupd.run("now", "--tag", "before")
    change_generation(database, _NEW)
    with web_service(database) as service, busy_clients(service, writers=0) as account:
        with connected(database, "BEGIN", "SELECT count(*) FROM page"):
            backupd.run("restore", "before", "--yes", code=_BUSY)
        assert {answer.generation for answer in account.reads} == {_NEW}
        backupd.run("restore", "before", "--yes")
        wait_until(lambda: account.reads[-1].generation == _OLD)
    assert account.failures == []
