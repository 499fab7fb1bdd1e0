from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from backupd.setup.search import find_sqlite_files


def _database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a)")
    return path


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    """A database without a suffix is found; a text named .db is not, nor a file that is too short."""
    found = [_database(tmp_path / "data"), _database(tmp_path / "deep/er/app.sqlite3")]
    (tmp_path / "text.db").write_text("SQLite is nice, and this is text")
    (tmp_path / "short.db").write_bytes(b"SQLite format 3")
    (tmp_path / "empty.db").touch()
    assert find_sqlite_files(tmp_path).files == tuple(sorted(found))


def test_side_files_and_files_of_a_restore_are_left_out(tmp_path: Path) -> None:
    """SQLite's side files, and files that a restore kept or had not finished, are not found."""
    database = _database(tmp_path / "app.db")
    for name in (
        "app.db-wal",
        "app.db-shm",
        "app.db-journal",
        "app.db.before-restore-20261122",
    ):
        shutil.copyfile(database, tmp_path / name)
    for name in (".git/index.db", "node_modules/x/y.db", "__pycache__/z.db", ".app.db.backupd-partial/image"):
        _database(tmp_path / name)
    assert find_sqlite_files(tmp_path).files == (database,)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A loop ends, and no file is found twice; the directory itself may be a link."""
    database = _database(tmp_path / "real/app.db")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/again.db").symlink_to(database)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_sqlite_files(tmp_path).files == (database,)
    assert find_sqlite_files(tmp_path / "link").files == (tmp_path / "link/app.db",)


def test_named_pipes_are_not_opened(tmp_path: Path) -> None:
    """A named pipe is skipped and not opened, which would wait for a writer."""
    os.mkfifo(tmp_path / "pipe.db")
    found = find_sqlite_files(tmp_path)
    assert (found.files, found.unreadable, found.unfinished) == ((), (), None)


def test_directories_that_are_stores_are_left_out(tmp_path: Path) -> None:
    """Backups are not backed up."""
    database = _database(tmp_path / "app.db")
    _database(tmp_path / "backups/restored.db")
    assert find_sqlite_files(tmp_path, without=[tmp_path / "backups"]).files == (database,)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into everything")
def test_unreadable_directories_are_reported(tmp_path: Path) -> None:
    """The other files are found anyway."""
    database = _database(tmp_path / "app.db")
    (tmp_path / "closed").mkdir(mode=0)
    found = find_sqlite_files(tmp_path)
    assert (found.files, found.unreadable) == ((database,), (tmp_path / "closed",))


def test_a_directory_removed_meanwhile_is_reported(tmp_path: Path) -> None:
    """A directory that is removed during the search is reported, even to root."""
    found = find_sqlite_files(tmp_path / "gone")
    assert found.unreadable == (tmp_path / "gone",)


def test_depth_and_time_are_bounded(tmp_path: Path) -> None:
    """Files near the top are found first, and the result says that something was left out."""
    near, far = _database(tmp_path / "z/app.db"), _database(tmp_path / "a/b/c/app.db")
    assert find_sqlite_files(tmp_path, most_levels=3).files == (far, near)
    shallow = find_sqlite_files(tmp_path, most_levels=2)
    assert shallow.files == (near,)
    assert "more than 2 directories deep" in str(shallow.unfinished)
    clock = count()
    hasty = find_sqlite_files(tmp_path, most_seconds=3, seconds=lambda: next(clock))
    assert hasty.files == (near,)
    assert "took too long" in str(hasty.unfinished)


def test_file_systems_of_the_kernel_are_not_searched() -> None:
    """Reading there may block, or have an effect."""
    found = find_sqlite_files(Path("/"), most_levels=0)
    assert found.unreadable == ()
    assert "more than 0 directories deep" in str(found.unfinished)
