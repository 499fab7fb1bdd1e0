import os
import shutil
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import apsw
import pytest
from harness.command_line import CommandLine, wait_until
from harness.place import change_rows, connected, create_database

from backupd.capture.unlocked import fingerprint

LATER = timedelta(seconds=10)
COARSEST_STAMP = timedelta(seconds=3)
# Of the kernel's clock, which file systems take their time stamps from.
TICK = timedelta(milliseconds=20)


@pytest.fixture
def database(tmp_path):
    """A database that no process has open, in rollback-journal mode."""
    path = tmp_path / "app.db"
    create_database(path, rows=20)
    return path


@pytest.fixture
def in_wal_mode(tmp_path):
    """A database of 20 rows in WAL mode."""
    path = tmp_path / "wal.db"
    create_database(path, rows=20, journal_mode="wal")
    return path


def settled(path):
    """The fingerprint as it is when everything was written long ago."""
    return fingerprint(path, now=datetime.now(UTC) + LATER)


def newest_change(path):
    """The time at which the file or its log was last changed."""
    path = path.resolve()
    found = [path, *path.parent.glob(f"{path.name}-*")]
    newest_ns = max(max(each.stat().st_mtime_ns, each.stat().st_ctime_ns) for each in found)
    return datetime.fromtimestamp(newest_ns / 10**9, UTC)


@contextmanager
def assert_another(path):
    """Assert that what the block does to the database gives it another fingerprint, or none."""
    wait_until(lambda: datetime.now(UTC) > newest_change(path) + TICK)
    before = settled(path)
    assert before is not None
    yield
    assert settled(path) != before


def execute(path, *statements):
    """Execute the statements in a connection of their own, and close it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_untouched_database_keeps_its_fingerprint(database, in_wal_mode):
    """Reading it, by any connection, changes nothing of what is looked at."""
    for path in (database, in_wal_mode):
        before = settled(path)
        assert before is not None
        assert settled(path) == before
        execute(path, "SELECT count(*) FROM report", "PRAGMA integrity_check")
        assert settled(path) == before


def test_a_commit_in_rollback_mode_is_a_change(database):
    """A commit in rollback mode changes the fingerprint, even if the size stays."""
    size_bytes = database.stat().st_size
    with assert_another(database):
        change_rows(database, "state A")
    assert database.stat().st_size == size_bytes


@pytest.mark.parametrize("mode", ["truncate", "persist", "memory", "off"])
def test_a_commit_in_another_journal_mode_is_a_change(database, mode):
    """A commit changes the fingerprint in every journal mode, even in those that write nothing but the file."""
    with connected(database, f"PRAGMA journal_mode = {mode}", "PRAGMA synchronous = OFF") as application:
        with assert_another(database):
            execute(database, f"PRAGMA journal_mode = {mode}", "UPDATE report SET title = 'state A'")
        assert application.poll() is None


def test_a_commit_in_wal_mode_is_a_change(in_wal_mode):
    """A commit to the log changes the fingerprint, although it leaves the main file as it is."""
    with connected(in_wal_mode, "UPDATE report SET title = 'state A' WHERE id = 1"):
        file_before = in_wal_mode.stat().st_mtime_ns
        with assert_another(in_wal_mode), connected(in_wal_mode, "UPDATE report SET title = 'state B' WHERE id = 1"):
            pass
        assert in_wal_mode.stat().st_mtime_ns == file_before


def test_a_commit_that_reuses_the_log_from_its_start_is_a_change(in_wal_mode):
    """The log keeps its size, and the file is not written."""
    with closing(sqlite3.connect(in_wal_mode, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for _ in range(3):
            connection.execute("UPDATE report SET title = title || 'x'")
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        log = in_wal_mode.with_name("wal.db-wal")
        before = log.stat().st_size, in_wal_mode.stat().st_mtime_ns
        with assert_another(in_wal_mode):
            connection.execute("UPDATE report SET title = 'state A' WHERE id = 1")
        assert (log.stat().st_size, in_wal_mode.stat().st_mtime_ns) == before


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_commit_through_a_memory_map_is_a_change(tmp_path, journal_mode):
    """A commit changes the fingerprint when it comes from an old connection that has mapped the whole file."""
    path = tmp_path / "app.db"
    create_database(path, rows=20, journal_mode=journal_mode)
    connection = apsw.Connection(str(path))
    try:
        assert connection.pragma("mmap_size", 2**28) == 2**28
        connection.execute("SELECT count(body) FROM report").fetchall()
        with assert_another(path):
            connection.execute("UPDATE report SET title = 'state A'")
        with assert_another(path):
            connection.execute("UPDATE report SET title = 'state B'")
    finally:
        connection.close()


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_is_a_change(in_wal_mode, mode):
    """A checkpoint, which copies the log into the file, changes the fingerprint."""
    with (
        connected(in_wal_mode, "PRAGMA wal_autocheckpoint = 0", "UPDATE report SET title = 'state A'"),
        assert_another(in_wal_mode),
    ):
        execute(in_wal_mode, f"PRAGMA wal_checkpoint({mode})")


def test_the_end_of_the_last_connection_is_a_change(in_wal_mode):
    """The last connection changes the fingerprint when it closes: it checkpoints the log and deletes it."""
    connection = sqlite3.connect(in_wal_mode, isolation_level=None)
    connection.execute("UPDATE report SET title = 'state A'")
    with assert_another(in_wal_mode):
        connection.close()
    assert not in_wal_mode.with_name("wal.db-wal").exists()


@pytest.mark.parametrize(
    "statement",
    ["VACUUM", "PRAGMA journal_mode = WAL", "PRAGMA user_version = 7", "CREATE TABLE more (id)", "DROP TABLE report"],
)
def test_what_changes_the_whole_file_is_a_change(database, statement):
    """However little or much of it is written."""
    with assert_another(database):
        execute(database, statement)


def test_a_change_of_the_journal_mode_back_is_a_change(in_wal_mode):
    """Two bytes of the header differ."""
    with assert_another(in_wal_mode):
        execute(in_wal_mode, "PRAGMA journal_mode = DELETE")


def test_another_file_in_its_place_is_a_change(database, tmp_path):
    """Another file in the database's place changes the fingerprint, even with the same size and modification time."""
    other = tmp_path / "other.db"
    shutil.copy2(database, other)
    change_rows(other, "state A")
    stat = database.stat()
    assert other.stat().st_size == stat.st_size
    with assert_another(database):
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(database)
    assert database.stat().st_mtime_ns == stat.st_mtime_ns


def test_a_change_whose_time_was_set_back_is_a_change(database):
    """`touch -d` sets the time of the content's last change, and not that of the inode's."""
    stat = database.stat()
    with assert_another(database):
        change_rows(database, "state A")
        os.utime(database, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (database.stat().st_size, database.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: os.truncate(path, path.stat().st_size - 4096),
        lambda path: os.truncate(path, 0),
        lambda path: path.touch(),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()),
    ],
    ids=["a page short", "empty", "touched", "gone", "written again"],
)
def test_any_other_harm_to_the_file_is_a_change(database, harm):
    """A new snapshot must then look at the file."""
    with assert_another(database):
        harm(database)


def test_a_journal_that_appears_is_a_change(database):
    """A transaction is going on, or was when the application was killed."""
    with (
        assert_another(database),
        connected(database, "PRAGMA cache_size = 1", "BEGIN IMMEDIATE", "UPDATE report SET title = 'state A'"),
    ):
        assert database.with_name("app.db-journal").stat().st_size > 0


def test_an_empty_journal_that_appears_is_no_change(database):
    """The journal mode "truncate" leaves one."""
    before = settled(database)
    database.with_name("app.db-journal").touch()
    assert settled(database) == before


def test_a_link_that_leads_elsewhere_is_a_change(database, tmp_path):
    """A link that leads to another database changes the fingerprint, and the log beside that file counts."""
    other = tmp_path / "releases/2/app.db"
    other.parent.mkdir(parents=True)
    create_database(other, rows=20, journal_mode="wal")
    link = tmp_path / "current.db"
    link.symlink_to(database)
    assert settled(link) == settled(database)
    with assert_another(link):
        link.unlink()
        link.symlink_to(other)
    with assert_another(link), connected(other, "UPDATE report SET title = 'state A'"):
        pass


def test_a_directory_that_leads_elsewhere_is_a_change(tmp_path):
    """A linked directory that leads elsewhere changes the fingerprint, as when a deployment switches releases."""
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        create_database(tmp_path / release / "app.db", rows=20)
    current = tmp_path / "current"
    current.symlink_to("1")
    with assert_another(current / "app.db"):
        current.unlink()
        current.symlink_to("2")


def test_directories_that_calls_share_change_no_fingerprint(database, tmp_path, monkeypatch):
    """Links of directories and of files, dots, and what is missing: each fingerprint is that of a call by itself."""
    (tmp_path / "inner").mkdir()
    create_database(tmp_path / "inner" / "other.db", rows=20)
    (tmp_path / "linked").symlink_to("inner")
    (tmp_path / "inner" / "link.db").symlink_to(database)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    paths = (
        *("app.db", "inner/other.db", "linked/other.db", "inner/link.db", "linked/link.db", "linked/../app.db"),
        *("inner/.", "inner/..", "inner/nothing.db", "nothing/app.db", "loop/app.db"),
    )
    shared = {}
    now = datetime.now(UTC) + LATER
    found = {path: fingerprint(tmp_path / path, now=now, directories=shared) for path in paths}
    assert found == {path: settled(tmp_path / path) for path in paths}
    assert found["linked/other.db"] == found["inner/other.db"] is not None
    assert fingerprint(database.name, now=now, directories=shared) == found["app.db"] == found["linked/link.db"]


@pytest.mark.parametrize("path", ["nothing.db", "app.db/nothing.db", "loop.db", "x" * 300], ids=lambda path: path[:12])
def test_missing_or_unreadable_file_has_no_fingerprint(database, tmp_path, path):
    """A missing file, a path below a file, a link to itself and an overlong name have no fingerprint."""
    (tmp_path / "loop.db").symlink_to("loop.db")
    assert settled(tmp_path / path) is None


def test_file_written_a_moment_ago_has_no_fingerprint(database):
    """A file that was just written has no fingerprint: another write may get the same coarse time stamp."""
    changed_at = newest_change(database)
    assert fingerprint(database, now=changed_at) is None
    assert fingerprint(database, now=changed_at + COARSEST_STAMP - timedelta(milliseconds=1)) is None
    assert fingerprint(database, now=changed_at + COARSEST_STAMP + timedelta(milliseconds=1)) == settled(database)


def test_database_whose_log_was_written_a_moment_ago_has_no_fingerprint(in_wal_mode):
    """However old the file itself is."""
    os.utime(in_wal_mode, (0, 0))
    with connected(in_wal_mode, "UPDATE report SET title = 'state A'"):
        assert fingerprint(in_wal_mode, now=newest_change(in_wal_mode) + COARSEST_STAMP / 2) is None


def test_file_with_a_stamp_in_the_future_has_no_fingerprint(database):
    """The clock was set, or another machine writes the file with a clock of its own."""
    ahead = (datetime.now(UTC) + timedelta(hours=1)).timestamp()
    os.utime(database, (ahead, ahead))
    assert settled(database) is None
    assert fingerprint(database, now=datetime.now(UTC) + timedelta(hours=1) + LATER) is not None


def test_a_snapshot_of_an_idle_database_is_a_change_only_once(tmp_path):
    """A capture of an idle database in WAL mode leaves an empty log beside it, and after that nothing changes."""
    backupd = CommandLine(tmp_path)
    path = backupd.create_database("app.db", rows=20)
    found = [settled(path)]
    for _ in range(3):
        backupd.run("now", "app.db", expect=0)
        found.append(settled(path))
    assert None not in found
    assert found[1:] == [found[1]] * 3
    assert found[0] == found[1]


def test_a_snapshot_beside_the_application_is_no_change(tmp_path):
    """A snapshot leaves the fingerprint as it is while an application has the database open with a log in use."""
    backupd = CommandLine(tmp_path)
    path = backupd.create_database("app.db", rows=20)
    with connected(path, "UPDATE users SET name = 'state A'"):
        before = settled(path)
        for _ in range(2):
            backupd.run("now", "app.db", expect=0)
            assert settled(path) == before
        with assert_another(path):
            execute(path, "UPDATE users SET name = 'state B'")
