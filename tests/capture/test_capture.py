"""The capture of real databases, compared byte for byte with the file that SQLite itself leaves after a checkpoint."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import apsw
import pytest
from harness.capturing import Capturing, capture
from harness.extent import sampled, slow
from harness.kept_workers import children_that_capture

from backupd.capture.limits import StreamBase
from backupd.capture.process import Pinned
from backupd.errors import BusyError, SourceUnusableError
from backupd.format import lock_page

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.capture.process import Event

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
# Change counter, schema cookie and version-valid-for: SQLite's backup sets them, backupd sets them from the content.
_DERIVED = (slice(24, 28), slice(40, 44), slice(92, 96))


def _fill(path: Path, *setup: str, rows: int = 1500) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in setup:
            connection.execute(statement)
        connection.executescript(
            "CREATE TABLE t (a INTEGER PRIMARY KEY, b); CREATE TABLE w (k PRIMARY KEY) WITHOUT ROWID"
        )
        connection.executemany("INSERT INTO t (b) VALUES (?)", ((os.urandom(300),) for _ in range(rows)))
        connection.executemany("INSERT INTO w VALUES (?)", ((f"key {number}",) for number in range(300)))
        connection.execute("DELETE FROM t WHERE a % 3 = 0")


def _checkpointed(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


def _without_derived(image: bytes) -> bytes:
    masked = bytearray(image)
    for part in _DERIVED:
        masked[part] = bytes(4)
    return bytes(masked)


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
@pytest.mark.parametrize("page_size", sampled(PAGE_SIZES, fast={512, 4096, 65536}))
def test_image_equals_the_checkpointed_file(tmp_path: Path, page_size: int, journal_mode: str) -> None:
    """Every page size in both kinds of journal: what is captured is the file, but for three derived header fields."""
    database = tmp_path / "app.db"
    _fill(database, f"PRAGMA page_size = {page_size}", f"PRAGMA journal_mode = {journal_mode}")
    captured = capture(database, tmp_path / "spool")
    assert captured.page_size == page_size
    assert captured.facts.journal_mode == journal_mode
    assert _without_derived(captured.image()) == _without_derived(_checkpointed(database))


@pytest.mark.parametrize("pragma", ["auto_vacuum = FULL", "auto_vacuum = INCREMENTAL", "encoding = 'UTF-16be'"])
def test_unusual_layouts_are_captured_exactly(tmp_path: Path, pragma: str) -> None:
    """Pointer-map pages and UTF-16 text come through as they are."""
    database = tmp_path / "app.db"
    _fill(database, f"PRAGMA {pragma}")
    assert _without_derived(capture(database, tmp_path / "spool").image()) == _without_derived(database.read_bytes())


def test_reserved_bytes_at_the_end_of_pages_are_captured(tmp_path: Path) -> None:
    """Extensions keep checksums or nonces in them."""
    database = tmp_path / "app.db"
    with closing(apsw.Connection(str(database))) as connection:
        connection.reserve_bytes(reserve=32)
        connection.execute("CREATE TABLE t (a); INSERT INTO t VALUES (randomblob(9000))")
    image = capture(database, tmp_path / "spool").image()
    assert image[20] == 32
    assert _without_derived(image) == _without_derived(database.read_bytes())


def test_database_of_no_pages_is_a_valid_source(tmp_path: Path) -> None:
    """An application that has not written yet has a file of 0 bytes."""
    database = tmp_path / "app.db"
    database.touch()
    captured = capture(database, tmp_path / "spool")
    assert (captured.page_count, captured.image(), captured.hashes.read_bytes()) == (0, b"", b"")


@slow
def test_lock_byte_page_is_a_hole(tmp_path: Path) -> None:
    """Beyond 1 GiB there is one page that SQLite never writes and never delivers."""
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as connection:
        for pragma in ("page_size = 65536", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE t (a)")
        for _ in range(2):
            connection.execute("INSERT INTO t VALUES (zeroblob(540000000))")
        connection.commit()
    captured = capture(database, tmp_path / "spool")
    lock = lock_page(65536)
    assert captured.page_count > lock
    assert set(range(1, captured.page_count + 1)) - set(captured.streams[0]) == {lock}


def test_facts_are_those_of_the_captured_state(tmp_path: Path) -> None:
    """What a manifest says of the source comes from the same committed state as the pages."""
    database = tmp_path / "app.db"
    _fill(database, "PRAGMA user_version = 7", "PRAGMA application_id = 99", "PRAGMA journal_mode = WAL")
    with closing(sqlite3.connect(database)) as writer, writer:
        writer.execute("CREATE TABLE alembic_version (version_num)")
        writer.execute("INSERT INTO alembic_version VALUES ('b2'), ('a1')")

    def write_after_pin(event: Event | None) -> None:
        if isinstance(event, Pinned):
            with closing(sqlite3.connect(database)) as late, late:
                late.execute("UPDATE alembic_version SET version_num = 'late'")
                late.execute("CREATE TABLE late (a)")

    facts = capture(database, tmp_path / "spool", on_event=write_after_pin).facts
    assert (facts.user_version, facts.application_id) == (7, 99)
    assert facts.tables == ("alembic_version", "t", "w")
    assert facts.alembic_revisions == ("a1", "b2")
    assert facts.sqlite_version == sqlite3.sqlite_version


def test_same_content_gives_the_same_pages_whatever_was_written_between(tmp_path: Path) -> None:
    """A change that is undone leaves equal images: nothing has to be stored again."""
    database = tmp_path / "app.db"
    _fill(database)
    first = capture(database, tmp_path / "first")
    with closing(sqlite3.connect(database)) as connection:
        for value in (1, 0):
            connection.execute(f"PRAGMA user_version = {value}")
    base = StreamBase(first.page_size, str(first.hashes), ())
    assert capture(database, tmp_path / "second", streams=[base]).streams == [{}]


def test_changed_content_gives_another_change_counter(tmp_path: Path) -> None:
    """A page cache that compares counters never takes one content for another, even in WAL mode."""
    database = tmp_path / "app.db"
    _fill(database, "PRAGMA journal_mode = WAL")
    first = capture(database, tmp_path / "first").image()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE t SET b = 1 WHERE a = 1")
    assert capture(database, tmp_path / "second").image()[24:28] != first[24:28]


def _changed_pages(first: Capturing, second: Capturing) -> set[int]:
    before, after = first.hashes.read_bytes(), second.hashes.read_bytes()
    return {at // 16 + 1 for at in range(0, len(after), 16) if before[at : at + 16] != after[at : at + 16]}


def test_each_stream_gets_what_its_own_base_lacks(tmp_path: Path) -> None:
    """One capture serves a store that is up to date, one that is new, and one that lost a page."""
    database = tmp_path / "app.db"
    _fill(database)
    first = capture(database, tmp_path / "first")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE t SET b = 'changed' WHERE a = 700")
    lossy = bytearray(first.hashes.read_bytes())
    lossy[4 * 16 : 5 * 16] = bytes(16)
    (tmp_path / "lossy").write_bytes(lossy)
    bases = [
        StreamBase(first.page_size, str(first.hashes), ()),
        StreamBase(512, None, ()),
        StreamBase(first.page_size, str(tmp_path / "lossy"), ()),
    ]
    second = capture(database, tmp_path / "second", streams=bases)
    changed = _changed_pages(first, second)
    assert set(second.streams[0]) == changed
    assert set(second.streams[1]) == set(range(1, second.page_count + 1))
    assert set(second.streams[2]) == changed | {5}


def test_base_of_another_page_size_counts_for_nothing(tmp_path: Path) -> None:
    """VACUUM can change the page size; hashes of other pages then prove nothing."""
    database = tmp_path / "app.db"
    _fill(database, "PRAGMA page_size = 1024")
    first = capture(database, tmp_path / "first")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("VACUUM")
    base = StreamBase(first.page_size, str(first.hashes), (1, 2))
    second = capture(database, tmp_path / "second", streams=[base])
    assert set(second.streams[0]) == set(range(1, second.page_count + 1))


def test_pages_are_relocated_only_when_something_changed(tmp_path: Path) -> None:
    """Tidying up alone makes no snapshot, and the pages that were put aside for it do not stay in the spool."""
    database = tmp_path / "app.db"
    _fill(database)
    first = capture(database, tmp_path / "first")
    base = StreamBase(first.page_size, str(first.hashes), (3, 9, 10**6))
    assert capture(database, tmp_path / "second", streams=[base]).streams == [{}]
    assert {file.name for file in (tmp_path / "second").iterdir()} == {"hashes", "hashes.blocks"}
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE t SET b = 'changed' WHERE a = 700")
    third = capture(database, tmp_path / "third", streams=[base])
    assert set(third.streams[0]) == _changed_pages(first, third) | {3, 9}
    assert all(third.streams[0][number] == first.streams[0][number] for number in (3, 9))


def test_capture_writes_nothing_beside_a_rollback_database(tmp_path: Path) -> None:
    """An observer: the file, its times and its directory are as before."""
    database = tmp_path / "data" / "app.db"
    database.parent.mkdir()
    _fill(database)
    before = (database.read_bytes(), database.stat().st_mtime_ns, sorted(database.parent.iterdir()))
    capture(database, tmp_path / "spool")
    assert (database.read_bytes(), database.stat().st_mtime_ns, sorted(database.parent.iterdir())) == before


def test_capture_leaves_the_write_ahead_log_alone(tmp_path: Path) -> None:
    """A capture runs no checkpoint: the log and the main file keep their bytes."""
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (a)")
        wal = (tmp_path / "app.db-wal").read_bytes()
        main = database.read_bytes()
        assert len(capture(database, tmp_path / "spool").image()) == 2 * 4096
        assert ((tmp_path / "app.db-wal").read_bytes(), database.read_bytes()) == (wal, main)


def test_damaged_schema_is_still_captured(tmp_path: Path) -> None:
    """A damaged copy is better than none."""
    database = tmp_path / "app.db"
    _fill(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE TABEL' WHERE name = 't'")
    captured = capture(database, tmp_path / "spool")
    assert captured.facts.tables == ("t", "w")
    assert _without_derived(captured.image()) == _without_derived(database.read_bytes())


@pytest.mark.parametrize("value", [b"CREATE TABLE t (a, b) -- caf\xe9", b"\x00\xff"], ids=["latin-1", "blob"])
@pytest.mark.parametrize("stored_as", ["TEXT", "BLOB"])
def test_schema_that_is_no_text_is_still_captured(tmp_path: Path, value: bytes, stored_as: str) -> None:
    """Old programs wrote Latin-1 into comments; the facts then lack the tables, and the pages are all there."""
    database = tmp_path / "app.db"
    _fill(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(f"UPDATE sqlite_schema SET sql = CAST(? AS {stored_as}) WHERE name = 't'", (value,))
    captured = capture(database, tmp_path / "spool")
    assert captured.facts.schema_digest is None
    assert _without_derived(captured.image()) == _without_derived(database.read_bytes())


def test_lock_is_waited_for_up_to_the_limit(tmp_path: Path) -> None:
    """An exclusive lock that stays is an error that says what to do; one that goes away is waited for."""
    database = tmp_path / "app.db"
    _fill(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BusyError, match="stayed locked"):
            capture(database, tmp_path / "first", lock_timeout=0.2)
        captured = capture(
            database,
            tmp_path / "second",
            lock_timeout=30,
            on_event=lambda event: (
                connection.execute("COMMIT") if event is None and connection.in_transaction else None
            ),
        )
    assert captured.page_count > 0


def test_deadline_ends_a_capture(tmp_path: Path) -> None:
    """A capture that waits for a lock ends at its deadline."""
    database = tmp_path / "app.db"
    _fill(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BusyError, match="did not finish within"):
            capture(database, tmp_path / "spool", lock_timeout=30, deadline=0.5)


def _truncate(database: Path) -> None:
    os.truncate(database, 8192)


def _replace(database: Path) -> None:
    copy = database.with_name("copy.db")
    copy.write_bytes(database.read_bytes())
    copy.rename(database)


@pytest.mark.parametrize("meddle", [_truncate, _replace])
def test_file_that_changes_under_the_capture_fails_it(tmp_path: Path, meddle: object) -> None:
    """A truncation reads like success to SQLite, or kills the process by SIGBUS: both are one clear error."""
    database = tmp_path / "app.db"
    _fill(database, "PRAGMA journal_mode = WAL", rows=60_000)
    _checkpointed(database)

    def at_pinned(event: Event | None) -> None:
        if isinstance(event, Pinned):
            (child,) = children_that_capture()
            os.kill(child, signal.SIGSTOP)  # else it may be through before this process has its turn
            meddle(database)  # type: ignore[operator]
            os.kill(child, signal.SIGCONT)

    with pytest.raises(SourceUnusableError, match=r"truncated|replaced"):
        capture(database, tmp_path / "spool", on_event=at_pinned)


def test_checkpoint_that_shrinks_the_file_is_no_truncation(tmp_path: Path) -> None:
    """A checkpoint after a VACUUM may cut the file to the size that is being captured."""
    database = tmp_path / "app.db"
    _fill(database, "PRAGMA journal_mode = WAL", rows=20_000)
    _checkpointed(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("DELETE FROM t WHERE a > 100")
        connection.execute("VACUUM")
        checkpointed = []

        def checkpoint(event: Event | None) -> None:
            if isinstance(event, Pinned):
                checkpointed.extend(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())

        size = database.stat().st_size
        captured = capture(database, tmp_path / "spool", on_event=checkpoint)
    assert checkpointed
    assert database.stat().st_size == captured.page_size * captured.page_count < size
