from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.place import connected, content_digest, create_database

from backupd.errors import BusyError, TargetUnwritableError
from backupd.live.destination import LiveDatabase, settle

if TYPE_CHECKING:
    from pathlib import Path

MODES = pytest.mark.parametrize("journal_mode", ["wal", "delete"])


def _nothing(_done: int, _pages: int) -> None:
    """Progress that nobody looks at."""


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
            assert database.replace_content(image, database.version(), _nothing)
        with closing(sqlite3.connect(live)) as connection, connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == (journal_mode,)
            assert connection.execute("SELECT count(*) FROM report").fetchone() == (40,)
            connection.execute("UPDATE report SET title = title")
    settle(live, lock_timeout=5)
    assert content_digest(live) == expected


@MODES
def test_failure_on_the_way_leaves_the_old_content(tmp_path: Path, journal_mode: str) -> None:
    """Whatever the reason, also after pages have been written."""
    live, image = _live(tmp_path, journal_mode), tmp_path / "large.db"
    create_database(image, rows=5000)
    before = content_digest(live)

    def fail(done: int, pages: int) -> None:
        assert 0 < done < pages
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), LiveDatabase(live, lock_timeout=1) as database:
        database.replace_content(image, database.version(), fail)
    assert content_digest(live) == before


@MODES
def test_commit_that_slipped_in_is_noticed(tmp_path: Path, image: Path, journal_mode: str) -> None:
    """Between the safety snapshot and the lock somebody wrote: nothing is replaced."""
    live = _live(tmp_path, journal_mode)
    with LiveDatabase(live, lock_timeout=1) as database:
        version = database.version()
        with connected(live, "DELETE FROM report WHERE id = 1"):
            assert not database.replace_content(image, version, _nothing)
            assert database.version() != version
        assert database.replace_content(image, database.version(), _nothing)


@MODES
def test_writers_wait_and_are_let_go_in_time(tmp_path: Path, journal_mode: str) -> None:
    """Nobody writes inside the block; a block that takes too long lets them go before its end."""
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


def _expect_locked(live: Path, statement: str) -> None:
    with pytest.raises(AssertionError), connected(live, "PRAGMA busy_timeout = 0", statement):
        pass


@MODES
def test_application_that_keeps_the_lock_is_reported(tmp_path: Path, image: Path, journal_mode: str) -> None:
    """After the time that was allowed, with the database as it was."""
    live = _live(tmp_path, journal_mode)
    with connected(live, "BEGIN IMMEDIATE"), LiveDatabase(live, lock_timeout=0.1) as database:
        with pytest.raises(BusyError, match="stayed locked"):
            database.replace_content(image, database.version(), _nothing)
        with pytest.raises(BusyError), database.writers_waiting(most_seconds=1):
            pass


def test_reader_that_ends_in_time_is_waited_for(tmp_path: Path, image: Path) -> None:
    """In rollback mode, for longer than one try takes."""
    live = _live(tmp_path, "delete")
    with connected(live, "BEGIN", "SELECT count(*) FROM report") as reader:
        ending = threading.Timer(2.5, reader.kill)
        ending.start()
        with LiveDatabase(live, lock_timeout=20) as database:
            assert database.replace_content(image, database.version(), _nothing)
        ending.join()
    with closing(sqlite3.connect(live)) as connection:
        assert connection.execute("SELECT count(*) FROM report").fetchone() == (40,)


def test_page_size_that_sqlite_refuses_is_an_error_in_words(tmp_path: Path) -> None:
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
        database.replace_content(image, database.version(), _nothing)


def test_empty_database_takes_and_gives_everything(tmp_path: Path, image: Path) -> None:
    """A file of 0 bytes is a database without tables."""
    (tmp_path / "empty.db").touch()
    with LiveDatabase(tmp_path / "empty.db", lock_timeout=1) as database:
        assert database.replace_content(image, database.version(), _nothing)
    assert content_digest(tmp_path / "empty.db") == content_digest(image)
    (tmp_path / "nothing.db").touch()
    with LiveDatabase(image, lock_timeout=1) as database:
        assert database.replace_content(tmp_path / "nothing.db", database.version(), _nothing)
    with closing(sqlite3.connect(image)) as connection:
        assert connection.execute("SELECT * FROM sqlite_schema").fetchall() == []
