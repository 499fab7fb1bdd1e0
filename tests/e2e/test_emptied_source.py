"""A main file that was emptied or removed beside a log that still holds committed rows: no command destroys the log."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.cli import side_files, tree
from harness.extent import sampled, slow
from harness.place import connected
from harness.surroundings import killed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.place import Place

USAGE, SOURCE_UNUSABLE = 2, 13
_REPLACE = ("restore", "latest", "--replace", "--app-stopped", "--yes")
_LATE = "INSERT INTO report (title) VALUES ('late')"


def _empty(database: Path) -> None:
    os.truncate(database, 0)


_ENDS: dict[str, Callable[[Path], object]] = {"emptied": _empty, "removed": os.unlink}


@pytest.fixture
def place(place: Place) -> Place:
    """The database is configured."""
    (place.home / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    return place


@pytest.fixture
def lost(place: Place) -> Place:
    """The newest snapshot was taken while the log was written; the row `late` is in the log alone."""
    killed(
        place.database, "PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "UPDATE report SET title = 'x'"
    )
    place.backupd.run("now", "app.db")
    killed(place.database, "PRAGMA wal_autocheckpoint = 0", _LATE)
    place.database.with_name("app.db-shm").unlink()
    return place


def _log(place: Place) -> Path:
    return place.database.with_name("app.db-wal")


@slow
@pytest.mark.parametrize("end", sampled(_ENDS))
def test_commands_that_look_keep_the_log(lost: Place, end: str) -> None:
    """Commands that look at an emptied database change nothing beside it, and `now` refuses to store nothing."""
    _ENDS[end](lost.database)
    snapshots = len(lost.backupd.json("list")["snapshots"])
    before = tree(lost.home, without=lost.backupd.state)
    result = lost.backupd.refusal("now", "app.db", code=SOURCE_UNUSABLE, names=[lost.database, "app.db-wal ("])
    assert f"copy {_log(lost)} to a safe place" in result.reported("hint")[0]
    examined = lost.backupd.run("doctor", code=SOURCE_UNUSABLE)
    assert "app.db-wal (" in examined.stdout
    lost.backupd.run("restore", "latest", "--dry-run")
    lost.backupd.refusal("restore", "latest", "--yes", code=USAGE, names=[lost.database])
    assert tree(lost.home, without=lost.backupd.state) == before
    assert len(lost.backupd.json("list")["snapshots"]) == snapshots


@pytest.mark.parametrize("end", _ENDS)
def test_restore_keeps_the_log_that_it_replaces(lost: Place, end: str) -> None:
    """A restore keeps the log under a dated name, together with what is left of the main file."""
    _ENDS[end](lost.database)
    log = _log(lost).read_bytes()
    lost.backupd.run(*_REPLACE)
    assert not _log(lost).exists()
    kept = {file.stat().st_size: file for file in lost.home.glob("app.db*.before-restore-*")}
    assert set(kept) == ({0, len(log)} if end == "emptied" else {len(log)})
    assert kept[len(log)].read_bytes() == log
    with closing(sqlite3.connect(lost.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_restore_keeps_a_file_that_is_no_database_beside_its_log(lost: Place) -> None:
    """A restore over a file that is no database keeps the file and its log, without letting SQLite apply it."""
    foreign = b"no database" * 500
    lost.database.write_bytes(foreign)
    log = _log(lost).read_bytes()
    lost.backupd.run(*_REPLACE)
    kept = {file.read_bytes() for file in lost.home.glob("app.db.before-restore-*") if not file.name.endswith("-shm")}
    assert kept == {foreign, log}


def test_log_joined_with_the_newest_snapshot_has_every_row(lost: Place) -> None:
    """The way that docs/restore.md shows."""
    os.truncate(lost.database, 0)
    joined = lost.home / "joined.db"
    lost.backupd.run("restore", "latest", "--to", joined)
    shutil.copyfile(_log(lost), f"{joined}-wal")
    with closing(sqlite3.connect(joined)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM report WHERE title = 'late'").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM report WHERE title = 'x'").fetchone() == (300,)


@slow
def test_clean_up_after_a_killed_restore_keeps_the_log(lost: Place) -> None:
    """A restore that was killed left its intent; then the main file was emptied."""
    os.truncate(lost.database, 0)
    log = _log(lost).read_bytes()
    intent = lost.home / ".app.db.backupd-restoring"
    intent.write_text('{"version": 1, "replacement": null}')
    intent.chmod(0o600)
    lost.backupd.run("now", "app.db", code=SOURCE_UNUSABLE)
    assert _log(lost).read_bytes() == log


def test_journal_beside_an_emptied_file_is_kept(place: Place) -> None:
    """A transaction was killed, then the file was emptied."""
    with connected(
        place.database, "PRAGMA cache_size = 5", "BEGIN IMMEDIATE", "UPDATE report SET body = randomblob(900)"
    ) as application:
        application.kill()
        application.wait()
    os.truncate(place.database, 0)
    journal = place.database.with_name("app.db-journal")
    content = journal.read_bytes()
    place.backupd.refusal("now", "app.db", code=SOURCE_UNUSABLE, names=[place.database, "app.db-journal ("])
    place.backupd.run(*_REPLACE)
    (kept,) = place.home.glob("app.db.before-restore-*-journal")
    assert kept.read_bytes() == content
    assert side_files(place.database) == []


@slow
def test_fifo_beside_the_database_holds_no_command_up(place: Place) -> None:
    """A FIFO beside the database is reported at once by every command."""
    fifo = place.database.with_name("app.db-journal")
    os.mkfifo(fifo)
    place.backupd.refusals(
        [
            (command, SOURCE_UNUSABLE, [fifo, "is a FIFO"])
            for command in (["now", "app.db"], ["restore", "latest", "--dry-run"], ["restore", "latest", "--yes"])
        ]
    )
    assert "is a FIFO" in place.backupd.run("doctor", code=SOURCE_UNUSABLE).stdout
    os.mkfifo(place.home / "other.db-journal")
    place.backupd.refusal("restore", "latest", "--to", "other.db", code=USAGE, names=["other.db-journal"])


@slow
def test_database_that_its_header_makes_read_only_is_replaced(place: Place) -> None:
    """SQLite reads it, and refuses to write to it while the application runs."""
    with place.database.open("r+b") as file:
        file.seek(18)
        file.write(b"\3\1")
    place.backupd.refusal("restore", "first", "--yes", code=USAGE, names=[place.database, "read-only"])
    place.backupd.run("restore", "first", "--replace", "--app-stopped", "--yes")
    (kept,) = place.home.glob("app.db.before-restore-*")
    assert kept.read_bytes()[18:20] == b"\3\1"
    place.backupd.run("undo", "--yes", "--replace", "--app-stopped")
    assert place.database.read_bytes()[18:20] == b"\3\1"
