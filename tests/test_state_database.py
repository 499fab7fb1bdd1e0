from __future__ import annotations

import gc
import os
import resource
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backupd.errors import AnotherRunError, LimitReachedError, TargetUnwritableError
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.state.database import StateDatabase

_NOTE = "INSERT OR REPLACE INTO notes VALUES ('kind', ?, ?)"
_ADD = """
import sys
from pathlib import Path
from backupd.state import StateDirectory
database = StateDirectory(Path(sys.argv[1])).database
for number in range(20):
    row = (f"{sys.argv[2]}-{number}", "x")
    database.write(lambda it: it.execute("INSERT INTO notes VALUES ('kind', ?, ?)", row))
"""
_DIE_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from backupd.state import StateDirectory
def die(connection):
    connection.execute("INSERT OR REPLACE INTO notes VALUES ('kind', 'killed', 'x')")
    os.kill(os.getpid(), signal.SIGKILL)
StateDirectory(Path(sys.argv[1])).database.write(die)
"""


@pytest.fixture
def database(tmp_path: Path) -> StateDatabase:
    """A state database that does not exist yet."""
    return StateDirectory(tmp_path / "state").database


def put(database: StateDatabase, key: str, text: str = "x") -> None:
    """Write one note."""
    database.write(lambda it: it.execute(_NOTE, (key, text)))


def keys(database: StateDatabase) -> set[str]:
    """The keys of all notes."""
    return database.read(lambda it: {key for (key,) in it.execute("SELECT key FROM notes")})


def test_what_was_written_is_found_by_the_next_process(database: StateDatabase, tmp_path: Path) -> None:
    """The file is private, and it is the only one besides those that SQLite keeps beside it."""
    put(database, "a")
    assert keys(StateDirectory(tmp_path / "state").database) == {"a"}
    assert (tmp_path / "state/.state.db").stat().st_mode & 0o777 == 0o600
    assert {each.name for each in (tmp_path / "state").iterdir()} <= {".state.db", ".state.db-wal", ".state.db-shm"}


def test_writes_of_several_threads_and_processes_are_never_lost(database: StateDatabase, tmp_path: Path) -> None:
    """Writers wait for each other, also while the file is being made."""
    others = [subprocess.Popen([sys.executable, "-c", _ADD, str(tmp_path / "state"), name]) for name in "ab"]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: put(database, f"here-{number}"), range(20)))
    assert [other.wait() for other in others] == [0, 0]
    assert keys(database) == {f"{name}-{number}" for name in ("a", "b", "here") for number in range(20)}


def test_all_changes_of_one_write_are_made_or_none(database: StateDatabase) -> None:
    """An error in the middle takes back what came before it, and passes through."""

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute(_NOTE, ("half", "x"))
        raise ZeroDivisionError

    put(database, "a")
    with pytest.raises(ZeroDivisionError):
        database.write(fail)
    assert keys(database) == {"a"}


def test_a_kill_in_the_middle_of_a_write_leaves_what_was_before(database: StateDatabase, tmp_path: Path) -> None:
    """The next process can write at once."""
    put(database, "a")
    killed = subprocess.run([sys.executable, "-c", _DIE_IN_THE_MIDDLE, str(tmp_path / "state")], check=False)
    assert killed.returncode == -9
    put(database, "b")
    assert keys(database) == {"a", "b"}


@pytest.mark.parametrize(
    "content", [b"no database at all, but a text of some length" * 99, b"SQLite format 3\0" + bytes(5000)]
)
def test_a_file_that_is_damaged_is_set_aside_for_a_new_one(
    database: StateDatabase, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """A damaged file stays beside the new one to be examined, and one line of the log names it."""
    put(database, "a")
    database._close()
    file = tmp_path / "state/.state.db"
    file.write_bytes(content)
    for _ in range(2):
        put(database, "b")
    assert keys(database) == {"b"}
    assert file.with_name(".state.db.unreadable").read_bytes() == content
    assert capfd.readouterr().err.count(f'"the state was damaged, and starts empty" file={file}') == 1


def test_damage_that_is_found_later_is_no_different(database: StateDatabase, tmp_path: Path) -> None:
    """Pages behind the first one are read when they are needed."""
    put(database, "a" * 5000)
    database.write(lambda it: it.executemany(_NOTE, [(f"{number}", "x" * 3000) for number in range(50)]))
    database._close()
    file = tmp_path / "state/.state.db"
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    file.write_bytes(content)
    put(database, "b")
    assert keys(database) == {"b"}


def test_a_file_of_another_version_is_set_aside(database: StateDatabase, tmp_path: Path) -> None:
    """A file of another version, older or newer, is set aside: what it has can be learned again."""
    put(database, "a")
    database.write(lambda it: it.execute("PRAGMA user_version = 7"))
    assert keys(StateDirectory(tmp_path / "state").database) == set()
    with closing(sqlite3.connect(tmp_path / "state/.state.db.unreadable")) as aside:
        assert aside.execute("SELECT key FROM notes").fetchall() == [("a",)]


def test_a_file_that_is_removed_or_replaced_is_opened_again(database: StateDatabase, tmp_path: Path) -> None:
    """A daemon that has it open for months finds what others see, and writes where they look."""
    put(database, "a")
    for file in (tmp_path / "state").iterdir():
        file.unlink()
    put(StateDirectory(tmp_path / "state").database, "of another process")
    put(database, "b")
    assert keys(database) == {"of another process", "b"}


def test_two_processes_that_find_the_same_damage_set_aside_one_file(database: StateDatabase, tmp_path: Path) -> None:
    """The second process does not take away the new file of the first."""
    put(database, "a")
    other = StateDirectory(tmp_path / "state").database
    assert keys(other) == {"a"}
    database._close()
    other._close()
    (tmp_path / "state/.state.db").write_bytes(b"no database" * 999)
    put(database, "first")
    put(other, "second")
    assert keys(database) == keys(other) == {"first", "second"}


def test_a_writer_that_does_not_finish_is_named(
    database: StateDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for it gives up with an error that says what to do."""
    put(database, "a")
    monkeypatch.setattr("backupd.state.database._BUSY_TIMEOUT_SECONDS", 0.05)
    waiting = StateDirectory(tmp_path / "state").database
    with closing(sqlite3.connect(tmp_path / "state/.state.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(AnotherRunError, match=f"another process holds .*{tmp_path}/state/.state.db"):
            put(waiting, "b")
        assert keys(waiting) == {"a"}
    put(waiting, "b")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error names the file and the remedy."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/.state.db").symlink_to(tmp_path / "missing/file")
    with pytest.raises(TargetUnwritableError, match=f"{tmp_path}/state/.state.db cannot be used") as caught:
        put(StateDirectory(tmp_path / "state").database, "a")
    assert "state_dir" in (caught.value.hint or "")


@pytest.mark.parametrize("name", [".state.db", ".state.db-wal", ".state.db-journal"])
def test_a_directory_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    """Another state directory is not the remedy: the directory has to go."""
    database = StateDirectory(tmp_path / "state").database
    put(database, "a")
    database = StateDirectory(tmp_path / "state").database
    for suffix in ("", "-wal", "-shm", "-journal"):
        (tmp_path / f"state/.state.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "state/.state.db").touch()
    (tmp_path / "state" / name).unlink(missing_ok=True)
    (tmp_path / "state" / name).mkdir()
    with pytest.raises(TargetUnwritableError, match=f"{tmp_path}/state/{name} is a directory") as caught:
        put(database, "b")
    assert "move it away" in (caught.value.hint or "")


def test_a_full_disk_is_reported_and_loses_nothing(database: StateDatabase, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk that is full."""
    put(database, "a")
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom backupd.errors import TargetUnwritableError\n"
        "from backupd.state import StateDirectory\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "database = StateDirectory(Path(sys.argv[1])).database\n"
        "insert = \"INSERT INTO notes VALUES ('kind', 'b', ?)\"\n"
        "try:\n    database.write(lambda it: it.execute(insert, ('x' * 10**6,)))\n"
        "except TargetUnwritableError as error:\n    print(error.message)\n"
        "print(database.read(lambda it: it.execute('SELECT count(*) FROM notes').fetchone()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state")], capture_output=True, text=True, check=True
    )
    assert f"the state database {tmp_path}/state/.state.db cannot be used: " in done.stdout
    assert done.stdout.endswith("(1,)\n")
    assert keys(database) == {"a"}


def test_a_process_without_files_reports_the_limit(database: StateDatabase, tmp_path: Path) -> None:
    """A limit of this process is no fault of the directory, and everything works again when it is over."""
    put(database, "a")
    gc.collect()  # connections that other tests left would be closed at any time, and so free files
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 1, limits[1]))
    try:
        with pytest.raises(LimitReachedError, match="open files"):
            put(StateDirectory(tmp_path / "state").database, "b")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(used[0])
    put(StateDirectory(tmp_path / "state").database, "b")
    assert keys(database) == {"a", "b"}


def test_what_root_makes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    """A daemon that is not root has to use what a command of root has made."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 1000, 1001)
    put(StateDirectory(state).database, "a")
    assert {(each.stat().st_uid, each.stat().st_gid) for each in state.iterdir()} == {(1000, 1001)}


def test_a_file_system_without_shared_memory_keeps_a_rollback_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite refuses the write-ahead log there, and everything else works."""
    connect = sqlite3.connect

    class WithoutLog(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if "journal_mode" in sql:
                raise sqlite3.OperationalError("locking protocol")
            return super().execute(sql, *values)

    monkeypatch.setattr(
        "backupd.state.database.sqlite3.connect", lambda *args, **named: connect(*args, factory=WithoutLog, **named)
    )
    put(StateDirectory(tmp_path / "state").database, "a")
    assert keys(StateDirectory(tmp_path / "state").database) == {"a"}
    assert not (tmp_path / "state/.state.db-wal").exists()


def test_a_commit_that_finds_a_reader_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rollback journal, a reader can hold up the very end of a write; the next one finds nothing half done."""
    monkeypatch.setattr("backupd.state.database._BUSY_TIMEOUT_SECONDS", 0.05)
    database = StateDirectory(tmp_path / "state").database
    put(database, "a")
    database._close()
    with closing(sqlite3.connect(tmp_path / "state/.state.db", isolation_level=None)) as reader:
        reader.execute("PRAGMA journal_mode = DELETE")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM notes").fetchone()
        with pytest.raises(AnotherRunError):
            put(database, "b")
        reader.execute("COMMIT")
        put(database, "c")
        assert keys(database) == {"a", "c"}


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE notes RENAME COLUMN record TO recorc",
        "DROP TABLE notes",
        "UPDATE notes SET key = CAST(x'ff41' AS TEXT)",
    ],
)
def test_damage_that_sqlite_does_not_call_damage_is_no_different(
    database: StateDatabase, tmp_path: Path, damage: str
) -> None:
    """A bit in the name of a column, or in a text, makes SQLite report other errors: the file is set aside for them."""
    put(database, "a")
    database.write(lambda it: it.execute(damage))
    select = "SELECT key, record FROM notes"
    assert database.read(lambda it: it.execute(select).fetchall()) == []
    put(database, "b")
    assert keys(database) == {"b"}
    assert (tmp_path / "state/.state.db.unreadable").exists()


def test_a_bug_in_a_statement_is_no_fault_of_the_file(database: StateDatabase, tmp_path: Path) -> None:
    """A wrong statement is reported as what it is, and not as a directory that cannot be used."""
    put(database, "a")
    with pytest.raises(sqlite3.ProgrammingError):
        database.write(lambda it: it.execute(_NOTE, ("too few",)))
    assert keys(database) == {"a"}
    assert not (tmp_path / "state/.state.db.unreadable").exists()


def test_a_log_that_was_left_behind_is_not_taken_for_that_of_a_new_file(
    database: StateDatabase, tmp_path: Path
) -> None:
    """Someone may remove the file alone, while a daemon has it open and its log is beside it."""
    put(database, "a")
    (tmp_path / "state/.state.db").unlink()
    other = StateDirectory(tmp_path / "state").database
    put(other, "b")
    put(database, "c")
    assert keys(database) == keys(other) == {"b", "c"}


def test_a_process_that_has_not_finished_is_not_waited_for_again(
    database: StateDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run reads and writes several notes: it is held up once by a process that hangs."""
    monkeypatch.setattr("backupd.state.database._BUSY_TIMEOUT_SECONDS", 1.0)
    put(database, "a")
    with closing(sqlite3.connect(tmp_path / "state/.state.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(5):
            with pytest.raises(AnotherRunError):
                put(database, "b")
            assert keys(database) == {"a"}
        assert time.monotonic() - began < 4
    put(database, "b")
    assert keys(database) == {"a", "b"}
