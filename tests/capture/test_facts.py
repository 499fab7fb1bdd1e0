"""Schemas made to keep their reader busy for ever: the pages are captured nevertheless, and soon."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.capturing import NOTHING, capture
from harness.extent import sampled, slow

from backupd.capture.limits import CaptureRequest
from backupd.capture.process import Capture, Pinned
from backupd.errors import BusyError, SourceUnusableError
from backupd.live.soundness import why_unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOON_SECONDS = 20.0
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x AS version_num FROM r"


def _forged(connection: sqlite3.Connection, sql: str, *, name: str = "alembic_version", count: int = 1) -> None:
    """Rows of the schema that no CREATE statement would make: tables, as they say, with `sql`."""
    connection.execute("PRAGMA writable_schema = ON")
    rows = (
        (f"{name}{number or ''}", sql.replace("alembic_version", f"{name}{number or ''}")) for number in range(count)
    )
    connection.executemany("INSERT INTO sqlite_schema VALUES ('table', ?1, ?1, 2, ?2)", rows)


def _endless_view(connection: sqlite3.Connection) -> None:
    _forged(connection, f"CREATE VIEW alembic_version AS {ENDLESS}")


def _endless_view_of_another_name(connection: sqlite3.Connection) -> None:
    _forged(connection, "CREATE TABLE alembic_version(version_num)", name="alembic_version")
    connection.execute(
        "INSERT INTO sqlite_schema(rowid, type, name, tbl_name, rootpage, sql) VALUES (-1, 'table', 'x', 'x', 2, ?)",
        (f"CREATE VIEW alembic_version AS {ENDLESS}",),
    )


def _computed_column(connection: sqlite3.Connection) -> None:
    pattern = "%a" * 18
    computed = f"printf('%.49000c', 'a') LIKE '{pattern}%b'"
    connection.execute(f"CREATE TABLE alembic_version(x, version_num AS ({computed}))")
    connection.execute("INSERT INTO alembic_version VALUES (1)")


def _many_rows(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE alembic_version(version_num)")
    numbers = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 200000)"
    connection.execute(f"INSERT INTO alembic_version {numbers} SELECT x FROM r")


def _long_values(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE alembic_version(version_num)")
    connection.execute("INSERT INTO alembic_version VALUES (zeroblob(3000000))")


def _many_tables(connection: sqlite3.Connection) -> None:
    _forged(connection, "CREATE TABLE alembic_version(x)", name="t", count=300_000)


def _many_views(connection: sqlite3.Connection) -> None:
    """Views whose rows are read at once, and whose parsing takes a time that grows with the square of their number."""
    connection.execute("PRAGMA writable_schema = ON")
    sql = "INSERT INTO sqlite_schema VALUES ('view', ?1, ?1, 0, 'CREATE VIEW ' || ?1 || ' AS SELECT 1')"
    connection.executemany(sql, ((f"v{number}",) for number in range(130_000)))


def _long_statement(connection: sqlite3.Connection) -> None:
    comment = "x" * 3_000_000
    _forged(connection, f"CREATE TABLE alembic_version(version_num /* {comment} */)")


HOSTILE: dict[Callable[[sqlite3.Connection], None], str] = {
    _endless_view: "its Alembic revisions are left out",
    _endless_view_of_another_name: "",
    _computed_column: "its Alembic revisions are left out",
    _many_rows: "its Alembic revisions are left out",
    _long_values: "its Alembic revisions are left out",
    _many_tables: "its tables are left out",
    _many_views: "",
    _long_statement: "its tables are left out",
}


def _database(path: Path, make: Callable[[sqlite3.Connection], None], journal_mode: str = "delete") -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE t (x)")
        make(connection)
    return path


@pytest.mark.parametrize("journal_mode", sampled(["delete", "wal"]))
@pytest.mark.parametrize("make", sampled(HOSTILE, fast=4), ids=lambda make: make.__name__.strip("_"))
def test_hostile_schema_keeps_no_page_from_being_captured(
    tmp_path: Path, make: Callable[[sqlite3.Connection], None], journal_mode: str
) -> None:
    """The facts that would have taken too long are left out, which is said, and all others are there."""
    database = _database(tmp_path / "app.db", make, journal_mode)
    began = time.monotonic()
    captured = capture(database, tmp_path / "spool", deadline=SOON_SECONDS, max_lock=3.0)
    assert time.monotonic() - began < SOON_SECONDS
    pinned = next(event for event in captured.events if isinstance(event, Pinned))
    assert pinned.is_schema_readable
    assert (pinned.facts.journal_mode, pinned.facts.encoding) == (journal_mode, "UTF-8")
    assert not pinned.facts.alembic_revisions
    left_out = "".join(pinned.left_out)
    assert left_out.startswith(HOSTILE[make])
    # A slow machine may not even read the rows of many views in time.
    assert (pinned.facts.tables is None) == ("its tables" in left_out)
    assert captured.image()[100:] == database.read_bytes()[100:]


@slow
def test_restored_image_with_a_hostile_schema_is_opened_in_bounded_time(tmp_path: Path) -> None:
    """A restore, and a test restore in the daemon, look at it in their own process."""
    image = _database(tmp_path / "app.db", _many_views)
    pages = image.stat().st_size // 4096
    began = time.monotonic()
    assert why_unreadable(image, pages, needs_schema=True) is None
    assert why_unreadable(image, pages + 1, needs_schema=False) is not None
    assert time.monotonic() - began < SOON_SECONDS / 2


@pytest.mark.parametrize("make", sampled(HOSTILE, fast=2), ids=lambda make: make.__name__.strip("_"))
def test_hostile_schema_holds_no_writer_up(tmp_path: Path, make: Callable[[sqlite3.Connection], None]) -> None:
    """A hostile schema never makes writers in rollback mode wait for longer than `max_lock`."""
    database = _database(tmp_path / "app.db", make)
    longest, is_over = [0.0], threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(database, timeout=SOON_SECONDS, isolation_level=None)) as connection:
            while not is_over.wait(0.3):
                began = time.monotonic()
                connection.execute("BEGIN EXCLUSIVE")  # which waits as a commit does, and reads no schema
                connection.execute("ROLLBACK")
                longest.append(time.monotonic() - began)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        capture(database, tmp_path / "spool", deadline=SOON_SECONDS, max_lock=3.0)
    finally:
        is_over.set()
        writer.join()
    assert max(longest) < 3.0


def test_process_that_shows_no_sign_of_life_is_ended(tmp_path: Path) -> None:
    """A disk or a file system that hangs looks like this: long before the deadline of a capture that goes on."""
    database = _database(tmp_path / "app.db", lambda _: None)
    (tmp_path / "spool").mkdir()
    request = CaptureRequest(
        path=str(database),
        spool=str(tmp_path / "spool"),
        streams=(NOTHING,),
        level=1,
        slots=4,
        lock_timeout=0,
        max_lock=3,
    )
    began = time.monotonic()
    with Capture() as running:
        worker = running._worker
        assert worker is not None
        os.killpg(worker.pid, signal.SIGSTOP)
        with pytest.raises(BusyError, match=r"has made no progress for [12] s"):
            deque(running.events(request, deadline=60, patience=1.0), maxlen=0)
    assert time.monotonic() - began < SOON_SECONDS
    assert not worker.is_usable


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_file_that_is_longer_than_its_database_is_captured(tmp_path: Path, journal_mode: str) -> None:
    """SQLite goes by the header; what is behind is nothing, and costs nothing."""
    database = _database(tmp_path / "app.db", lambda _: None, journal_mode)
    sound = database.read_bytes()
    os.truncate(database, 8 << 40)
    captured = capture(database, tmp_path / "spool", deadline=SOON_SECONDS)
    assert captured.page_count * captured.page_size == len(sound)
    assert captured.image()[100:] == sound[100:]


def test_database_that_is_nearly_all_hole_is_refused(tmp_path: Path) -> None:
    """A sparse file is refused even if its header claims the size: 200 GiB of zeros are not worth reading."""
    database = _database(tmp_path / "app.db", lambda _: None)
    os.truncate(database, 200 << 30)
    with database.open("r+b") as file:
        file.seek(28)
        file.write(((200 << 30) // 4096).to_bytes(4, "big"))
    with pytest.raises(SourceUnusableError, match=r"says that it has 200 GiB, and takes .* on the disk"):
        capture(database, tmp_path / "spool", deadline=SOON_SECONDS)
