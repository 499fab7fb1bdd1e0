"""What a restore gives: the content of the source, and a file that the right people can open."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.cli import side_files
from harness.extent import sampled
from harness.place import change_rows, connected, content_digest, create_database

if TYPE_CHECKING:
    from pathlib import Path

    from harness.place import Place

_APPLICATION_UID, _APPLICATION_GID = 12345, 23456


def _owner_and_mode(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_restored_content_is_that_of_the_source(place: Place, journal_mode: str) -> None:
    """Every row of every table, while the application has the source open, and nothing beside either file."""
    source, restored = place.home / "source.db", place.home / "restored.db"
    create_database(source, journal_mode=journal_mode)
    with connected(source, "UPDATE report SET title = 'in the log' WHERE id < 10"):
        place.backupd.run("now", "source.db")
    change_rows(source, "after the snapshot")
    place.backupd.run("restore", "source@latest", "--to", "restored.db")
    assert side_files(restored) == []
    change_rows(source, "in the log", rows=9)
    assert content_digest(restored) == content_digest(_checkpointed(source))
    with closing(sqlite3.connect(restored)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == (journal_mode,)


def _checkpointed(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.mark.parametrize("umask", sampled([0o077, 0o022]), ids=oct)
def test_restored_file_has_the_right_owner_and_mode(place: Place, umask: int) -> None:
    """A restored file has its former owner and mode at its configured path, and is private with --to."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    (place.home / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    place.database.chmod(0o664)
    os.chown(place.database, _APPLICATION_UID, _APPLICATION_GID)
    before = content_digest(place.database)
    place.backupd.run("now", "--tag", "owned", umask=umask)
    place.database.unlink()
    place.backupd.run("restore", "owned", umask=umask)
    assert content_digest(place.database) == before
    assert _owner_and_mode(place.database) == (_APPLICATION_UID, _APPLICATION_GID, 0o664)
    place.backupd.run("restore", "owned", "--to", "private.db", umask=umask)
    assert _owner_and_mode(place.home / "private.db") == (0, 0, 0o600)


def test_configured_database_is_replaced_on_demand(place: Place) -> None:
    """--yes asks nothing, and the new file has the mode of the old one, not that of the time of the snapshot."""
    (place.home / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    before = content_digest(place.database)
    place.database.chmod(0o600)
    place.backupd.run("restore", "first", "--replace", "--app-stopped", "--yes")
    assert content_digest(place.database) != before
    assert stat.S_IMODE(place.database.stat().st_mode) == 0o600


def test_everything_that_backupd_writes_is_private(place: Place) -> None:
    """The store and the state hold the database's content, so no other user may read them, whatever the umask is."""
    place.backupd.run("now", "app.db", "--store", "other", "--tag", "private", umask=0)
    for root in (place.home / "other", place.backupd.state):
        assert [str(path) for path in (root, *root.rglob("*")) if path.stat().st_mode & 0o077] == []


def test_odd_names_are_restored(place: Place) -> None:
    """A path may have question marks, line breaks, quotes, and bytes that are no text."""
    directory = os.fsdecode(b"odd?mode=rw#%20'\n\xff")
    (place.home / directory).mkdir()
    source, restored = place.home / directory / "odd.db", place.home / directory / "x?y.db"
    create_database(source, rows=5, journal_mode="wal")
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    place.backupd.run("now", f"{directory}/odd.db")
    place.backupd.run("restore", "odd@latest", "--to", restored)
    assert source.read_bytes()[100:] == restored.read_bytes()[100:]
    assert "odd" in place.backupd.run("show", "odd@latest").stdout
