from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from harness.extent import slow
from harness.place import connected, content_digest, create_database

from backupd.errors import AnotherRunError, BusyError, UnsupportedFormatError
from backupd.live.files import Replacement
from backupd.live.intent import (
    RestoreToken,
    announced_transaction,
    finish_interrupted,
    replace_files,
    token_note,
)
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The old file, with what an unreadable database may have beside it, and the new one under another name."""
    file = tmp_path / "app.db"
    file.write_bytes(b"old")
    (tmp_path / "app.db-wal").write_bytes(b"log of the old")
    create_database(tmp_path / "new.db", rows=3)
    return file


def _state(database: Path) -> StateDirectory:
    """The state directory of the restores of a test, which is not beside the database."""
    return StateDirectory(database.parent.with_name(f"{database.parent.name}-state"))


def _replacement(database: Path) -> Replacement:
    inode = (database.parent / "new.db").stat().st_ino
    return Replacement("new.db", inode, "app.db.aside", (("app.db-wal", "app.db.aside-wal"),))


def _files(database: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes()[:14] for path in database.parent.iterdir()}


_NEW = b"SQLite format "
_DONE = {"app.db": _NEW, "app.db.aside": b"old", "app.db.aside-wal": b"log of the old"}
_UNDONE = {"app.db": b"old", "app.db-wal": b"log of the old"}


def test_replacement_gives_each_file_its_new_name(database: Path) -> None:
    """The old one and its log are kept together, and nothing else stays."""
    replace_files(database, _replacement(database), _state(database))
    assert _files(database) == _DONE


@slow
def test_kill_at_every_system_call_leaves_the_old_or_the_new_file(database: Path, tmp_path: Path) -> None:
    """A kill at any system call leaves one whole file, and the next command moves its other files to it."""
    script = """
import os, signal, sys
from pathlib import Path
from backupd.live.intent import replace_files
from backupd.live.files import Replacement
from backupd.state import StateDirectory
database, inode, fatal = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
calls = 0
def killing(call):
    def wrapped(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return wrapped
for name in ("open", "pwrite", "fsync", "link", "rename", "unlink", "truncate"):
    setattr(os, name, killing(getattr(os, name)))
replacement = Replacement("new.db", inode, "app.db.aside", (("app.db-wal", "app.db.aside-wal"),))
replace_files(database, replacement, StateDirectory(Path(sys.argv[4])))
"""
    content = (database.parent / "new.db").read_bytes()
    outcomes = set()
    for fatal in range(1, 100):
        for path in database.parent.iterdir():
            path.unlink()
        database.write_bytes(b"old")
        (tmp_path / "app.db-wal").write_bytes(b"log of the old")
        (tmp_path / "new.db").write_bytes(content)
        inode = (tmp_path / "new.db").stat().st_ino
        run = subprocess.run(
            [sys.executable, "-c", script, database, str(inode), str(fatal), _state(database).root], check=False
        )
        assert database.read_bytes()[:14] in {b"old", _NEW}
        finish_interrupted(database, _state(database), lock_timeout=1)
        found = _files(database)
        found.pop("new.db", None)  # stands for the restore's partial file, which has another name
        assert found in (_DONE, _UNDONE)
        outcomes.add(found == _DONE)
        if run.returncode == 0:
            break
    assert 10 < fatal < 99
    assert outcomes == {True, False}


def test_new_log_of_the_new_file_is_left_alone(database: Path, tmp_path: Path) -> None:
    """The application was started after the kill: what it wrote since belongs to the new file."""
    replacement = _replacement(database)
    replace_files(database, replacement, _state(database))
    _write_intent(database, replacement)
    (tmp_path / "app.db-wal").write_bytes(b"log of the new")
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert _files(database) == {**_DONE, "app.db-wal": b"log of the new"}


def test_failure_takes_everything_back(database: Path, tmp_path: Path) -> None:
    """A name that cannot be given, here because a directory has it: the old file and its log are together again."""
    (tmp_path / "app.db.aside-wal").mkdir()
    (tmp_path / "app.db.aside-wal" / "in the way").touch()
    with pytest.raises(OSError, match="irectory"):
        replace_files(database, _replacement(database), _state(database))
    (tmp_path / "app.db.aside-wal" / "in the way").unlink()
    (tmp_path / "app.db.aside-wal").rmdir()
    assert _files(database) == {**_UNDONE, "new.db": _NEW}


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_rows_committed_after_a_killed_restore_are_kept(tmp_path: Path, journal_mode: str) -> None:
    """Started after the kill, and killed itself in the middle: what it has committed is there, and nothing is mixed."""
    database = tmp_path / "app.db"
    create_database(database, rows=50, journal_mode=journal_mode)
    create_database(tmp_path / "new.db", rows=3)
    replacement = _replacement(database)
    os.link(database, tmp_path / "app.db.aside")
    _write_intent(database, replacement)
    with connected(
        database,
        "DELETE FROM report WHERE id > 40",
        "PRAGMA cache_size = 1",
        "BEGIN",
        "UPDATE report SET body = zeroblob(2000)",
    ) as application:
        application.kill()
        application.wait()
    finish_interrupted(database, _state(database), lock_timeout=1)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM report WHERE length(body) = 1000").fetchone() == (40,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not (tmp_path / "app.db.aside").exists()


def test_running_application_is_left_alone(tmp_path: Path) -> None:
    """A running application keeps its file when an interrupted replacement is finished."""
    database = tmp_path / "app.db"
    create_database(database, rows=1, journal_mode="wal")
    create_database(tmp_path / "new.db", rows=3)
    _write_intent(database, _replacement(database))
    inode = database.stat().st_ino
    with connected(database, "SELECT count(*) FROM report"):
        finish_interrupted(database, _state(database), lock_timeout=1)
    assert database.stat().st_ino == inode


def test_file_that_is_another_one_since_is_left_alone(database: Path, tmp_path: Path) -> None:
    """The volume was copied, or the file was replaced: the log of the old one must not get beside it."""
    replacement = _replacement(database)
    replace_files(database, replacement, _state(database))
    _write_intent(database, replacement)
    (tmp_path / "copy.db").write_bytes(database.read_bytes())
    (tmp_path / "copy.db").rename(database)
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert _files(database) == _DONE
    _write_intent(database, replacement)
    database.unlink()
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert _files(database) == {name: content for name, content in _DONE.items() if name != "app.db"}


def test_database_that_is_garbage_since_needs_no_rolling_back(tmp_path: Path) -> None:
    """A database that has become garbage is not rolled back, and the intent is removed."""
    database = tmp_path / "app.db"
    database.write_bytes(b"garbage")
    _write_intent(database, None)
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert _files(database) == {"app.db": b"garbage"}


@pytest.mark.parametrize(
    "values", [{"version": 2, "replacement": None}, {"version": 1}, {"version": 1, "replacement": {}}]
)
def test_intent_in_an_unknown_format_is_reported_and_kept(database: Path, values: dict[str, object]) -> None:
    """A backupd that does not understand it must not throw it away."""
    intent = _write_intent(database, None)
    intent.write_text(json.dumps({"token": _TOKEN, **values}))
    before = intent.read_bytes()
    with pytest.raises(UnsupportedFormatError, match="backupd-restoring is of an interrupted restore"):
        finish_interrupted(database, _state(database), lock_timeout=1)
    assert intent.read_bytes() == before


def test_restore_refuses_to_overwrite_the_intent_of_another_one(database: Path) -> None:
    """A restore does not overwrite the intent of another one that was killed in the meantime."""
    _write_intent(database, _replacement(database))
    with (
        pytest.raises(BusyError, match="was interrupted in the meantime"),
        announced_transaction(database, _state(database)),
    ):
        pass
    assert (database.parent / ".app.db.backupd-restoring").exists()


def test_hot_journal_of_a_killed_restore_is_rolled_back(tmp_path: Path) -> None:
    """A hot journal is rolled back if an intent says that it is a restore's; the application's is left alone."""
    database = tmp_path / "app.db"
    create_database(database, rows=50)
    before = content_digest(database)
    with connected(
        database, "PRAGMA cache_size = 1", "BEGIN", "UPDATE report SET body = zeroblob(2000)"
    ) as application:
        application.kill()
        application.wait()
    assert (tmp_path / "app.db-journal").exists()
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert (tmp_path / "app.db-journal").exists()
    _write_intent(database, None)
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]
    assert content_digest(database) == before


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 1, "tok'])
def test_intent_that_was_not_written_whole_had_not_begun(database: Path, content: bytes) -> None:
    """An intent that was not written whole is undone, because nothing is done before it is on the disk."""
    (database.parent / ".app.db.backupd-restoring").write_bytes(content)
    (database.parent / ".app.db.backupd-restoring").chmod(0o600)
    finish_interrupted(database, _state(database), lock_timeout=1)
    assert _files(database) == {**_UNDONE, "new.db": _NEW}


def test_second_restore_of_one_database_waits_and_is_refused(database: Path) -> None:
    """The second waits, and says so when it takes too long."""
    with announced_transaction(database, _state(database)), pytest.raises(AnotherRunError, match="another restore"):
        finish_interrupted(database, _state(database), lock_timeout=0.1)
    finish_interrupted(database, _state(database), lock_timeout=0)
    assert _files(database) == {**_UNDONE, "new.db": _NEW}


@pytest.mark.parametrize(
    "plant", ["other user", "other mode", "no token", "other token", "ended", "pipe", "directory", "link"]
)
def test_what_another_user_could_have_put_there_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plant: str
) -> None:
    """An intent that another user could have put there is reported once and ignored, and a restore can continue."""
    database = tmp_path / "app.db"
    create_database(database, rows=50)
    with connected(
        database, "PRAGMA cache_size = 1", "BEGIN", "UPDATE report SET body = zeroblob(2000)"
    ) as application:
        application.kill()
        application.wait()
    _plant(_write_intent(database, None), plant, _state(database), database)
    if plant == "ended":
        finish_interrupted(database, _state(database), lock_timeout=0)
        assert {path.name for path in tmp_path.iterdir()} == {"app.db", "app.db-journal"}
        return
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}
    for _ in range(2):
        finish_interrupted(database, _state(database), lock_timeout=0)
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == before
    assert capsys.readouterr().err.count("is ignored") == 1
    with announced_transaction(database, _state(database)):
        own = (tmp_path / ".app.db.backupd-restoring").lstat()
        assert (stat.S_IFMT(own.st_mode), stat.S_IMODE(own.st_mode), own.st_uid) == (stat.S_IFREG, 0o600, os.geteuid())
    finish_interrupted(database, _state(database), lock_timeout=0)
    assert (tmp_path / "app.db-journal").exists()


def _plant(intent: Path, plant: str, state: StateDirectory, database: Path) -> None:
    values = json.loads(intent.read_text())
    match plant:
        case "other user":
            if os.geteuid() != 0:
                pytest.skip("only root can give files to others")
            os.chown(intent, 4711, 4711)
        case "other mode":
            intent.chmod(0o620)
        case "no token":
            intent.write_text(json.dumps({"version": 1, "replacement": None}))
        case "other token":
            intent.write_text(json.dumps({**values, "token": "0" * 32}))
        case "ended":
            token_note(database, state).write(RestoreToken(_TOKEN, has_ended=True))
        case "pipe":
            intent.unlink()
            os.mkfifo(intent)
        case "directory":
            intent.unlink()
            intent.mkdir()
        case "link":
            intent.rename(intent.with_name("moved"))
            intent.symlink_to("moved")


def test_a_restore_whose_state_is_lost_is_reported_and_leaves_a_whole_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restore whose state is lost is reported and left to the application, which rolls it back."""
    database = tmp_path / "app.db"
    create_database(database, rows=50)
    before = content_digest(database)
    with connected(
        database, "PRAGMA cache_size = 1", "BEGIN", "UPDATE report SET body = zeroblob(2000)"
    ) as application:
        application.kill()
        application.wait()
    intent = _write_intent(database, None)
    shutil.rmtree(_state(database).root)
    finish_interrupted(database, _state(database), lock_timeout=0)
    assert "knows of no such restore" in capsys.readouterr().err
    assert intent.exists()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM report")
    assert content_digest(database) == before


_TOKEN = "0123456789abcdef0123456789abcdef"


def _write_intent(database: Path, replacement: Replacement | None) -> Path:
    """What a restore leaves that was killed after it had said what it does."""
    token_note(database, _state(database)).write(RestoreToken(_TOKEN))
    values = None if replacement is None else msgspec.to_builtins(replacement)
    intent = database.with_name(".app.db.backupd-restoring")
    intent.write_text(json.dumps({"version": 1, "token": _TOKEN, "replacement": values}))
    intent.chmod(0o600)
    os.sync()
    return intent
