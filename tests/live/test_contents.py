from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from harness.place import connected, create_database

from backupd.errors import BusyError, NotADatabaseError
from backupd.live.contents import contents_of_image, contents_of_live


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_contents_are_rows_schema_and_revision(tmp_path: Path, journal_mode: str) -> None:
    """The contents are rows, schema and revision of all tables but SQLite's own, whatever their names."""
    database = tmp_path / "app.db"
    create_database(database, rows=7, journal_mode=journal_mode)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute('CREATE TABLE "odd ""name" (id INTEGER PRIMARY KEY AUTOINCREMENT)')
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('5f3a9b')")
    contents = contents_of_live(database, lock_timeout=1)
    assert contents.rows == {"alembic_version": 1, 'odd "name': 0, "report": 7}
    assert set(contents.schema) == {
        "index report_title",
        "table alembic_version",
        'table odd "name',
        "table report",
    }
    assert (contents.journal_mode, contents.encoding, contents.alembic_revisions) == (
        journal_mode,
        "UTF-8",
        ("5f3a9b",),
    )


def test_counting_holds_no_writer_up_in_rollback_mode(tmp_path: Path) -> None:
    """Between two tables the lock is free, and after the look the writer goes on."""
    database = tmp_path / "app.db"
    create_database(database, rows=7)
    with connected(database, "BEGIN IMMEDIATE", "DELETE FROM report"):
        assert contents_of_live(database, lock_timeout=1).rows == {"report": 7}


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_table_that_is_an_endless_view_costs_nothing(tmp_path: Path, journal_mode: str) -> None:
    """A table that is an endless view is not counted and has no revision, and the others are counted."""
    database = tmp_path / "app.db"
    create_database(database, rows=7, journal_mode=journal_mode)
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x AS version_num FROM r"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "INSERT INTO sqlite_schema VALUES ('table', 'alembic_version', 'alembic_version', 2, ?)",
            (f"CREATE VIEW alembic_version AS {endless}",),
        )
    began = time.monotonic()
    contents = contents_of_live(database, lock_timeout=1)
    assert time.monotonic() - began < 5
    assert contents.rows == {"alembic_version": None, "report": 7}
    assert contents.alembic_revisions is None


def test_reading_that_hangs_is_ended(tmp_path: Path) -> None:
    """Reading is done by another process, which is ended at its deadline wherever it hangs."""
    database = tmp_path / "app.db"
    create_database(database, rows=7)
    is_over = threading.Event()

    def stop() -> None:
        while not is_over.wait(0.001):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):
                    # Not before it runs its program: until then, this process may have to wait for it.
                    if b"backupd.live.contents" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGSTOP)

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        with pytest.raises(BusyError, match=r"app\.db could not be inspected within 0\.5 s"):
            contents_of_live(database, lock_timeout=0, looking_seconds=0.5)
    finally:
        is_over.set()
        stopping.join()


def test_reading_an_image_leaves_no_files(tmp_path: Path) -> None:
    """Reading an image, even one in WAL mode, leaves no files beside it."""
    image = tmp_path / "image.db"
    create_database(image, rows=7, journal_mode="wal")
    assert contents_of_image(image).rows == {"report": 7}
    assert [path.name for path in tmp_path.iterdir()] == ["image.db"]


def test_file_that_is_no_database_is_reported_as_such(tmp_path: Path) -> None:
    """Garbage, and a database that lost its second half, need a replacement."""
    database = tmp_path / "app.db"
    database.write_bytes(b"garbage" * 1000)
    with pytest.raises(NotADatabaseError):
        contents_of_live(database, lock_timeout=1)
    database.unlink()
    create_database(database, rows=50)
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 8192 * 4096])
    with pytest.raises(NotADatabaseError):
        contents_of_live(database, lock_timeout=1)
