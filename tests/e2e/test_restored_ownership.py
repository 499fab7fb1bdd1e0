"""The owner of a database after a restore is the one before, and a user who may not write it cannot restore it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, side_files
from harness.confinement import ANOTHER_UID, shared_directory
from harness.extent import sampled, slow
from harness.killing import content_as_found, kill_at
from harness.place import change_rows, create_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.cli import Runner

_USAGE, _SOURCE_UNUSABLE = 2, 13
_UID, _GID, _MODE = 1234, 2345, 0o640
_RESTORE = ("restore", "before", "--yes")
_REPLACE = (*_RESTORE, "--replace", "--app-stopped")
_WAYS = pytest.mark.parametrize("command", sampled([[*_RESTORE], [*_REPLACE]]), ids=["live", "replacement"])
_JOURNAL_MODES = pytest.mark.parametrize("journal_mode", sampled(["delete", "wal"]))


@contextmanager
def _owned_database(uid: int, gid: int, mode: int, journal_mode: str) -> Iterator[tuple[Path, str]]:
    """A directory that everybody may write to, and the digest of the content of the snapshot `before` of its app.db."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    with shared_directory() as home:
        home.chmod(0o777)
        (home / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
        database = home / "app.db"
        create_database(database, journal_mode=journal_mode)
        CommandLine(home).run("now", "--tag", "before")
        before = content_as_found(database)
        change_rows(database, "changed")
        os.chown(database, uid, gid)
        database.chmod(mode)
        yield home, before


def _ownership(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


@_JOURNAL_MODES
@_WAYS
def test_root_restores_what_another_user_owns(command: Sequence[str], journal_mode: str) -> None:
    """Owner, group and mode of the application's file stay, after the restore and after its undo."""
    with _owned_database(_UID, _GID, _MODE, journal_mode) as (home, before):
        database = home / "app.db"
        for line in (command, ("undo", *command[2:])):
            CommandLine(home).run(*line, umask=0o077)
            assert (content_as_found(database) == before) == (line is command)
            assert _ownership(database) == (_UID, _GID, _MODE)
            assert side_files(database) == []


@slow
@pytest.mark.parametrize(("journal_mode", "names"), [("wal", {"-wal", "-shm"}), ("delete", {"-journal"})])
def test_files_beside_the_database_belong_to_its_owner(journal_mode: str, names: set[str]) -> None:
    """A restore by root that is killed leaves logs and journals that the database's owner can open."""
    with _owned_database(_UID, _GID, _MODE, journal_mode) as (home, _):
        database = home / "app.db"
        kill_at(("fdatasync", 1), home, *_RESTORE, "--no-safety-snapshot")
        left = {file.name.removeprefix(database.name): _ownership(file) for file in home.glob("app.db-*")}
        assert left == dict.fromkeys(names, (_UID, _GID, _MODE))
        CommandLine(home).run("now")
        assert _ownership(database) == (_UID, _GID, _MODE)


def _give_away(home: Path) -> None:
    """Give all but the database to the other user, who runs backupd."""
    for path in (home, *home.rglob("*")):
        if path.name != "app.db":
            os.chown(path, ANOTHER_UID, ANOTHER_UID)


@_JOURNAL_MODES
@_WAYS
def test_owner_restores_without_privileges(other_user: Runner, command: Sequence[str], journal_mode: str) -> None:
    """The owner of a database restores it, and undoes that, without any privilege."""
    with _owned_database(ANOTHER_UID, ANOTHER_UID, _MODE, journal_mode) as (home, before):
        _give_away(home)
        backupd, database = CommandLine(home, runner=other_user), home / "app.db"
        backupd.run(*command)
        assert content_as_found(database) == before
        backupd.run("undo", *command[2:])
        assert content_as_found(database) != before
        assert _ownership(database) == (ANOTHER_UID, ANOTHER_UID, _MODE)


@pytest.mark.parametrize("mode", sampled([0o644, 0o600]), ids=oct)
@_JOURNAL_MODES
@_WAYS
def test_another_user_cannot_restore(other_user: Runner, command: Sequence[str], journal_mode: str, mode: int) -> None:
    """A user who may only read the database, or not even that, is refused a restore."""
    with _owned_database(_UID, _GID, mode, journal_mode) as (home, _):
        _give_away(home)
        CommandLine(home, runner=other_user).refusal(*command, code=_USAGE, names=[home / "app.db", ANOTHER_UID])


@pytest.mark.parametrize(("journal_mode", "code"), [("wal", _SOURCE_UNUSABLE), ("delete", _USAGE)])
def test_another_user_cannot_replace(other_user: Runner, journal_mode: str, code: int) -> None:
    """A user may not replace another's file that everybody may write, because the new one would have another owner."""
    with _owned_database(_UID, _GID, 0o666, journal_mode) as (home, _):
        _give_away(home)
        names = [home / "app.db", _UID, ANOTHER_UID]
        CommandLine(home, runner=other_user).refusal(*_REPLACE, code=code, names=names)


def test_leftover_of_a_killed_restore_stops_no_snapshot(other_user: Runner) -> None:
    """The leftover of a killed restore stops no snapshot by a user who cannot remove it."""
    with _owned_database(_UID, _GID, 0o644, "delete") as (home, _):
        (home / ".app.db.backupd-partial").mkdir(mode=0o700)
        (home / ".app.db.backupd-partial/image").write_bytes(b"half of it")
        _give_away(home)
        home.chmod(0o755)
        os.chown(home, 0, 0)
        CommandLine(home, runner=other_user).run("now")
