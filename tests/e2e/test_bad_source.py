"""Databases that cannot be backed up: one error, one hint, exit code 11 or 13, and nothing is left behind."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, finish, side_files, tree
from harness.command_line import wait_until
from harness.confinement import ANOTHER_UID, private_mounts, shared_directory
from harness.place import change_rows, connected, create_database

from backupd.state import StateDirectory

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from harness.cli import Runner
    from harness.place import Place

PARTLY_DONE, BUSY, SOURCE_UNUSABLE = 3, 11, 13

_TRIES = 5
# Where SQLite locks: https://www.sqlite.org/walformat.html#locks, and os.h for the file itself.
_FIRST_READ_MARK, _SHARED_FIRST, _LOCK_BYTES = 123, 0x40000002, 5


def _patched(path: Path, offset: int, content: bytes) -> None:
    create_database(path, rows=20)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _hot_journal(path: Path) -> None:
    """A program is killed in the middle of a transaction that its cache was too small for."""
    create_database(path)
    with connected(
        path, "PRAGMA cache_size = 5", "BEGIN IMMEDIATE", "UPDATE report SET body = randomblob(900)"
    ) as application:
        application.kill()
        application.wait()
    assert side_files(path) == [path.with_name(f"{path.name}-journal")]


def _cut_in_half(path: Path, journal_mode: str) -> None:
    create_database(path, rows=20, journal_mode=journal_mode)
    os.truncate(path, path.stat().st_size // 2)


_UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda _: None, "does not exist"),
    "dangling-link": (lambda path: path.symlink_to("nowhere.db"), "does not exist"),
    "directory": (lambda path: path.mkdir(), "is a directory"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "text": (lambda path: path.write_text("name;amount\n" * 50), "is not an SQLite database"),
    "short": (lambda path: path.write_bytes(b"SQLite format 3\0\x10\0"), "is not an SQLite database"),
    "encrypted": (lambda path: path.write_bytes(random.Random(1).randbytes(8192)), "it is encrypted"),
    "page-size-3": (lambda path: _patched(path, 16, b"\0\3"), "corrupt or encrypted SQLite header"),
    "version-9": (lambda path: _patched(path, 18, b"\x09\x09"), "version 9 of the file format"),
    "cut-in-half": (lambda path: _cut_in_half(path, "delete"), "corrupt"),
    "cut-in-half-in-wal-mode": (lambda path: _cut_in_half(path, "wal"), "corrupt"),
    "link-loop": (lambda path: path.symlink_to(path), "symbolic links"),
    "hot-journal": (_hot_journal, "has a hot rollback journal"),
}


def test_each_kind_of_unusable_file_fails_alone(place: Place) -> None:
    """Each unusable file fails with its reason and without a snapshot, and a good one gets its snapshot."""
    for how, (make, _) in _UNUSABLE.items():
        make(place.home / f"{how}.db")
    change_rows(place.database, "changed")
    before = tree(place.home, without=place.store)
    results = place.backupd.json("now", *(f"{how}.db" for how in _UNUSABLE), "app.db", code=PARTLY_DONE)["snapshots"]
    assert results.pop()["outcome"] == "created"
    for (how, (_, words)), result in zip(_UNUSABLE.items(), results, strict=True):
        assert (result["database"], result["outcome"], result["id"]) == (how, "failed", None), result
        assert result["error"]["exit_code"] == SOURCE_UNUSABLE
        assert str(place.home / f"{how}.db") in result["error"]["message"]
        assert words in result["error"]["message"]
        assert result["error"]["hint"]
    after = tree(place.home, without=place.store)
    assert {name: after.get(name) for name in before if not name.startswith("state/")} == {
        name: facts for name, facts in before.items() if not name.startswith("state/")
    }
    assert place.backupd.spooled() == []
    assert len(place.backupd.json("list")["snapshots"]) == len(place.ids) + 1


def test_unusable_file_is_one_error_with_a_hint(place: Place) -> None:
    """An unusable file is one error with a hint and an exit code, even if only SQLite can find out."""
    commands = []
    for how in ("missing", "hot-journal", "cut-in-half"):
        make, words = _UNUSABLE[how]
        make(place.home / f"{how}.db")
        commands.append((["now", f"{how}.db"], SOURCE_UNUSABLE, [place.home / f"{how}.db", words]))
    place.backupd.refusals(commands)


def test_typing_error_creates_no_store(tmp_path: Path) -> None:
    """A wrong path in a fresh directory leaves no database there, and no store."""
    missing = tmp_path / "nowhere/app.db"
    CommandLine(tmp_path).refusal("now", "nowhere/app.db", code=SOURCE_UNUSABLE, names=[missing, "does not exist"])


@pytest.mark.parametrize(
    ("journal_mode", "statements"),
    [("delete", ["BEGIN EXCLUSIVE"]), ("wal", ["PRAGMA locking_mode = EXCLUSIVE", "UPDATE report SET title = 'x'"])],
)
def test_lock_is_not_waited_for_beyond_the_limit(place: Place, journal_mode: str, statements: list[str]) -> None:
    """The application holds its database exclusively for longer than `capture.lock_timeout`."""
    database = place.home / "locked.db"
    create_database(database, rows=20, journal_mode=journal_mode)
    backupd = CommandLine(place.home, BACKUPD_CAPTURE__LOCK_TIMEOUT="200ms")
    with connected(database, *statements):
        backupd.refusal("now", "locked.db", code=BUSY, names=[database, "locked"])


def test_second_run_waits_for_the_first_no_longer_than_the_lock_timeout(place: Place) -> None:
    """A run is refused when another one holds the lock of its database and store for longer than the timeout."""
    backupd = CommandLine(place.home, BACKUPD_CAPTURE__LOCK_TIMEOUT="200ms")
    with StateDirectory(backupd.state).lock(f"app in {place.store}", timeout=0):
        backupd.refusal("now", "app.db", code=BUSY, names=["another backupd", "app", place.store])


def test_file_of_another_user_that_is_private(other_user: Runner) -> None:
    """A private file, or a file in a private directory, of another user is reported as unreadable."""
    with shared_directory() as home:
        home.chmod(0o777)
        create_database(home / "private.db", rows=5)
        (home / "private.db").chmod(0o600)
        (home / "closed").mkdir(mode=0o700)
        create_database(home / "closed/app.db", rows=5)
        before = tree(home)
        result = CommandLine(home, runner=other_user).run("now", "private.db", "closed/app.db", code=SOURCE_UNUSABLE)
        assert len(result.reported("hint")) == 2
        for error, database in zip(result.reported("error"), ("private.db", "closed/app.db"), strict=True):
            assert f"{home / database} cannot be read" in error
        assert {name: facts for name, facts in tree(home).items() if name in before} == before


def test_idle_wal_database_of_another_user(other_user: Runner) -> None:
    """Reading it, or a link to it, would leave files that its owner cannot write; beside the application it works."""
    with shared_directory() as home:
        home.chmod(0o777)
        database = home / "app.db"
        create_database(database, rows=5, journal_mode="wal")
        database.chmod(0o644)
        (home / "links").mkdir()
        (home / "links/linked.db").symlink_to(database)
        backupd = CommandLine(home, runner=other_user)
        result = backupd.run("now", "app.db", "links/linked.db", code=SOURCE_UNUSABLE)
        assert side_files(database) == []
        assert (len(result.reported("error")), len(result.reported("hint"))) == (2, 2)
        assert all(f"uid {ANOTHER_UID}" in error for error in result.reported("error"))
        with connected(database, "UPDATE report SET title = 'open'"):
            owners = {file: file.stat().st_uid for file in side_files(database)}
            assert len(owners) == 2
            results = backupd.json("now", "app.db", "links/linked.db")["snapshots"]
            assert [each["outcome"] for each in results] == ["created", "created"]
            assert {file: file.stat().st_uid for file in side_files(database)} == owners


def test_read_only_volume_with_an_idle_wal_database(place: Place) -> None:
    """SQLite cannot make the `-shm` that it needs to read; the hint says what a `:ro` mount needs."""
    volume = place.home / "volume"
    volume.mkdir()
    create_database(volume / "wal.db", rows=5, journal_mode="wal")
    create_database(volume / "delete.db", rows=5)
    with private_mounts() as mounts:
        mounts.mount("--bind", volume, volume)
        mounts.mount("-o", "remount,ro,bind", volume)
        backupd = CommandLine(place.home, runner=mounts.runner())
        result = backupd.refusal("now", "volume/wal.db", code=SOURCE_UNUSABLE, names=[volume / "wal.db"])
        assert ":ro" in result.reported("hint")[0]
        assert backupd.json("now", "volume/delete.db")["snapshots"][0]["outcome"] == "created"


def _replace(path: Path) -> None:
    create_database(path.with_name("other.db"), rows=5)
    path.with_name("other.db").rename(path)


def _truncate(path: Path) -> None:
    os.truncate(path, 1 << 20)


@pytest.mark.parametrize(
    ("journal_mode", "meddle", "words"),
    # SQLite may be the first to see that pages are gone.
    [
        ("delete", _truncate, "truncated|corrupt"),
        ("wal", _truncate, "truncated|corrupt"),
        ("wal", _replace, "replaced"),
    ],
)
def test_file_that_changes_under_the_capture(
    place: Place, journal_mode: str, meddle: Callable[[Path], None], words: str
) -> None:
    """The capturing process is stopped while it holds SQLite's lock, and goes on after the file was changed."""
    database = place.home / "big.db"
    create_database(database, rows=400, row_bytes=100_000, journal_mode=journal_mode)
    process, stopped = _stopped_under_the_lock(place.backupd, database)
    snapshots = list(place.store.glob("big/snapshots/*"))
    meddle(database)
    os.kill(stopped, signal.SIGCONT)
    result = finish(process, code=SOURCE_UNUSABLE)
    (error,) = result.reported("error")
    assert str(database) in error
    assert re.search(words, error)
    assert len(result.reported("hint")) == 1
    assert list(place.store.glob("big/snapshots/*")) == snapshots
    assert place.backupd.spooled() == []


def _stopped_under_the_lock(backupd: CommandLine, database: Path) -> tuple[subprocess.Popen[str], int]:
    """A running `now` and its capturing process, which was stopped while it had its read lock on `database`."""
    for _ in range(_TRIES):
        process = backupd.start("now", database.name, "--full")
        wait_until(lambda process=process: _reader_of(database) or process.poll() is not None)
        if reader := _reader_of(database):
            os.kill(reader, signal.SIGSTOP)
            if _reader_of(database) == reader:
                return process, reader
            os.kill(reader, signal.SIGCONT)
        finish(process)
    pytest.fail("every capture was over too soon to be stopped in it")


def _reader_of(database: Path) -> int | None:
    """The process that has pinned a state of `database`: by a read mark in `-shm`, or else by the lock on the file."""
    shared = database.with_name(f"{database.name}-shm")
    file, first = (shared, _FIRST_READ_MARK) if shared.exists() else (database, _SHARED_FIRST)
    inode = file.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        _, _, _, _, pid, place, start, _ = line.replace("-> ", "").split()
        if int(place.split(":")[2]) == inode and first <= int(start) < first + _LOCK_BYTES:
            return int(pid)
    return None
