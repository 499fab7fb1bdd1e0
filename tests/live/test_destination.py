from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.extent import slow
from harness.place import connected, content_digest, create_database

from backupd.capture.source import pinned
from backupd.errors import BusyError, SourceUnusableError, TargetUnwritableError
from backupd.live.destination import LiveDatabase, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_WRITE, _READ = "UPDATE report SET title = 'written' WHERE id = 1", "SELECT count(*) FROM report"
_APPLICATION = """
import itertools, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
for number in itertools.count():
    started = time.monotonic()
    try:
        connection.execute(sys.argv[2]).fetchall()
        break
    except sqlite3.OperationalError:
        last = started
        if number == 0:
            first = time.monotonic()
        if number == 100:
            print("waits", flush=True)
print(last - first, flush=True)
"""
"""Tries a statement until it succeeds; prints that it has to wait, and then for how many seconds it waited at least."""

MODES = pytest.mark.parametrize("journal_mode", ["wal", "delete"])


def _nothing(_done: int, _pages: int) -> None:
    """Ignore the progress."""


def _is_replaced(
    database: LiveDatabase, image: Path, version: int, stepped: Callable[[int, int], None] = _nothing
) -> bool:
    with database.opened(image) as opened:
        return database.replace_content(opened, version, stepped)


@contextmanager
def _application(live: Path, statement: str) -> Iterator[Callable[[], float]]:
    """A process that is kept waiting with `statement`. Gives what waits for its end: for how many seconds it waited."""
    command = [sys.executable, "-c", _APPLICATION, str(live), statement]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            yield lambda: float(process.communicate()[0])
        finally:
            process.kill()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What is to come in: 40 rows, in WAL mode by its own header."""
    file = tmp_path / "image.db"
    create_database(file, rows=40, journal_mode="wal")
    return file


def _live(tmp_path: Path, journal_mode: str) -> Path:
    file = tmp_path / "app.db"
    create_database(file, rows=10, journal_mode=journal_mode)
    return file


@MODES
def test_content_changes_and_the_journal_mode_stays(tmp_path: Path, image: Path, journal_mode: str) -> None:
    """An open connection sees the new rows, in its own journal mode, and can write at once."""
    live = _live(tmp_path, journal_mode)
    expected = content_digest(image)
    with connected(live, "SELECT count(*) FROM report"):
        with LiveDatabase(live, lock_timeout=1) as database:
            assert _is_replaced(database, image, database.version())
        with closing(sqlite3.connect(live)) as connection, connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == (journal_mode,)
            assert connection.execute("SELECT count(*) FROM report").fetchone() == (40,)
            connection.execute("UPDATE report SET title = title")
    settle(live, lock_timeout=5)
    assert content_digest(live) == expected


@MODES
def test_failure_on_the_way_leaves_the_old_content(tmp_path: Path, journal_mode: str) -> None:
    """A failure leaves the old content, even after pages have been written."""
    live, image = _live(tmp_path, journal_mode), tmp_path / "large.db"
    create_database(image, rows=5000)
    before = content_digest(live)

    def fail(done: int, pages: int) -> None:
        assert 0 < done < pages
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), LiveDatabase(live, lock_timeout=1) as database:
        _is_replaced(database, image, database.version(), fail)
    assert content_digest(live) == before


@MODES
def test_commit_before_the_lock_prevents_the_replacement(tmp_path: Path, image: Path, journal_mode: str) -> None:
    """When another connection writes between the safety snapshot and the lock, nothing is replaced."""
    live = _live(tmp_path, journal_mode)
    with LiveDatabase(live, lock_timeout=1) as database:
        version = database.version()
        with connected(live, "DELETE FROM report WHERE id = 1"):
            assert not _is_replaced(database, image, version)
            assert database.version() != version
        assert _is_replaced(database, image, database.version())


@MODES
def test_writers_wait_and_are_let_go_in_time(tmp_path: Path, journal_mode: str) -> None:
    """No writer gets in during the block; a block that takes too long releases them before its end."""
    live = _live(tmp_path, journal_mode)
    statement = "UPDATE report SET title = 'new' WHERE id = 1"
    with LiveDatabase(live, lock_timeout=1) as database:
        with database.writers_waiting(most_seconds=60):
            _expect_locked(live, statement)
        with (
            database.writers_waiting(most_seconds=0.01),
            connected(live, "PRAGMA busy_timeout = 20000", statement),
        ):
            pass


@MODES
def test_writers_are_let_go_in_time_while_the_database_is_asked(tmp_path: Path, journal_mode: str) -> None:
    """The timer and the caller use one connection, and neither fails by the other."""
    live = _live(tmp_path, journal_mode)
    is_over = threading.Event()
    with LiveDatabase(live, lock_timeout=1) as database, ExitStack() as asking:
        with database.writers_waiting(most_seconds=0.2):
            failures: list[BaseException] = []

            def ask() -> None:
                try:
                    while not is_over.is_set():
                        database.identity()
                        database.version()
                except BaseException as error:  # noqa: BLE001  (raised below)
                    failures.append(error)

            thread = threading.Thread(target=ask)
            thread.start()
            asking.callback(thread.join)
            asking.callback(is_over.set)
            with connected(live, "PRAGMA busy_timeout = 20000", "UPDATE report SET title = 'new' WHERE id = 1"):
                pass
            is_over.set()
            thread.join()
        assert failures == []


def _expect_locked(live: Path, statement: str) -> None:
    with pytest.raises(AssertionError), connected(live, "PRAGMA busy_timeout = 0", statement):
        pass


@MODES
def test_application_that_keeps_the_lock_is_reported(tmp_path: Path, image: Path, journal_mode: str) -> None:
    """An application that keeps the lock for longer than allowed is reported."""
    live = _live(tmp_path, journal_mode)
    with connected(live, "BEGIN IMMEDIATE"), LiveDatabase(live, lock_timeout=0.1) as database:
        with pytest.raises(BusyError, match="stayed locked"):
            _is_replaced(database, image, database.version())
        with pytest.raises(BusyError), database.writers_waiting(most_seconds=1):
            pass


@slow
def test_reader_that_ends_in_time_is_waited_for(tmp_path: Path, image: Path) -> None:
    """A reader in rollback mode is waited for, without keeping other readers waiting as long."""
    live = _live(tmp_path, "delete")
    with connected(live, "BEGIN", "SELECT count(*) FROM report") as reader:
        ending = threading.Timer(2.5, reader.kill)
        ending.start()
        with LiveDatabase(live, lock_timeout=20) as database:
            started = time.monotonic()
            assert _is_replaced(database, image, database.version())
            assert database.pause_seconds < 2 < time.monotonic() - started
        ending.join()
    with closing(sqlite3.connect(live)) as connection:
        assert connection.execute("SELECT count(*) FROM report").fetchone() == (40,)


@MODES
def test_pause_is_at_least_what_a_writer_waited(tmp_path: Path, image: Path, journal_mode: str) -> None:
    """The pause begins when writers have to wait, which is before the content is replaced."""
    live = _live(tmp_path, journal_mode)
    with LiveDatabase(live, lock_timeout=20) as database, ExitStack() as applications:
        with database.writers_waiting(most_seconds=60):
            waited = applications.enter_context(_application(live, _WRITE))
        while not _is_replaced(database, image, database.version()):
            pass
        assert 0 < waited() <= database.pause_seconds


def test_pause_goes_on_while_a_lock_is_taken_again_at_once(tmp_path: Path) -> None:
    """An application that tries ten times a second does not get in between."""
    live = _live(tmp_path, "delete")
    with LiveDatabase(live, lock_timeout=20) as database:
        times = []
        for _ in range(2):
            with database.writers_waiting(most_seconds=60):
                times.append(time.monotonic())
                with connected(live, _READ):
                    pass
                times.append(time.monotonic())
        assert database.pause_seconds >= times[-1] - times[0]


def test_pause_is_at_least_what_a_reader_waited_and_ends_with_the_commit(tmp_path: Path) -> None:
    """The pause in rollback mode covers what a reader waited, and ends when the content is replaced."""
    live, image = _live(tmp_path, "delete"), tmp_path / "image.db"
    create_database(image, rows=6, row_bytes=1 << 20)
    readers: list[Callable[[], float]] = []
    with LiveDatabase(live, lock_timeout=20) as database, ExitStack() as applications:
        started = time.monotonic()
        committed = []

        def stepped(done: int, pages: int) -> None:
            if not readers:
                readers.append(applications.enter_context(_application(live, _READ)))
            if done == pages:
                committed.append(time.monotonic())
                assert 0 < readers[0]() <= database.pause_seconds

        assert _is_replaced(database, image, database.version(), stepped)
        assert database.pause_seconds <= committed[0] - started


@pytest.mark.parametrize(("megabytes", "is_written_early"), [(8, False), (24, True)])
def test_pages_stay_in_memory_until_the_commit_as_far_as_a_small_cache_goes(
    tmp_path: Path, megabytes: int, *, is_written_early: bool
) -> None:
    """Pages stay in memory until the commit as long as they fit into the cache."""
    live, image = tmp_path / "app.db", tmp_path / "image.db"
    create_database(live, rows=megabytes, row_bytes=1 << 20)
    shutil.copy(live, image)
    os.utime(live, (0, 0))
    times = []
    with LiveDatabase(live, lock_timeout=20) as database:
        assert _is_replaced(database, image, database.version(), lambda *_: times.append(live.stat().st_mtime))
    assert len(times) >= megabytes // 2
    assert any(times[:-1]) == is_written_early
    assert times[-1] > 0


def test_page_size_that_sqlite_refuses_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """SQLite calls it "not an error"."""
    live = _live(tmp_path, "wal")
    image = tmp_path / "image.db"
    with closing(sqlite3.connect(image)) as connection:
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("CREATE TABLE t (a)")
    with (
        LiveDatabase(live, lock_timeout=1) as database,
        pytest.raises(TargetUnwritableError, match="cannot be written"),
    ):
        _is_replaced(database, image, database.version())


def test_empty_database_can_be_restored_and_restored_to(tmp_path: Path, image: Path) -> None:
    """A file of 0 bytes is a database without tables."""
    (tmp_path / "empty.db").touch()
    with LiveDatabase(tmp_path / "empty.db", lock_timeout=1) as database:
        assert _is_replaced(database, image, database.version())
    assert content_digest(tmp_path / "empty.db") == content_digest(image)
    (tmp_path / "nothing.db").touch()
    with LiveDatabase(image, lock_timeout=1) as database:
        assert _is_replaced(database, tmp_path / "nothing.db", database.version())
    with closing(sqlite3.connect(image)) as connection:
        assert connection.execute("SELECT * FROM sqlite_schema").fetchall() == []


def test_file_that_a_planted_journal_names_stays(tmp_path: Path) -> None:
    """SQLite once deleted what a hot journal named as its super-journal, with the rights of root.

    Source: https://www.sqlite.org/src/file/src/pager.c, "readSuperJournal": page of the lock byte, name, its length,
    the sum of its bytes, and the magic at the end.
    """
    live, victim = tmp_path / "app.db", tmp_path / "victim"
    victim.write_text("precious")
    create_database(live, rows=50)
    with connected(live, "PRAGMA cache_size = 1", "BEGIN", "UPDATE report SET body = zeroblob(2000)") as application:
        application.kill()
        application.wait()
    with closing(sqlite3.connect(f"file:{live}?mode=ro&immutable=1", uri=True)) as connection:
        ((page_size,),) = connection.execute("PRAGMA page_size").fetchall()
    name = os.fsencode(victim)
    with (tmp_path / "app.db-journal").open("ab") as journal:
        journal.write(struct.pack(">I", (1 << 30) // page_size + 1) + name)
        journal.write(struct.pack(">II", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7"))
    settle(live, lock_timeout=5)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "app.db-journal").exists()


def test_link_that_came_in_meanwhile_is_not_followed(tmp_path: Path) -> None:
    """The path was looked at, and then another user put a link into their directory."""
    create_database(tmp_path / "other.db", rows=1)
    (tmp_path / "theirs").symlink_to(tmp_path)
    for path in (tmp_path / "app.db", tmp_path / "theirs/other.db"):
        if path.name == "app.db":
            path.symlink_to("other.db")
        with (
            pytest.raises(TargetUnwritableError, match="cannot be written"),
            LiveDatabase(path, lock_timeout=1),
        ):
            pass
        with (
            pytest.raises(SourceUnusableError, match="a symbolic link has come into its path"),
            pinned(os.fspath(path), lock_timeout=1),
        ):
            pass
