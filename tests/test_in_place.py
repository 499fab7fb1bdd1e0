from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

import pytest
from harness.place import change_rows, connected, content_digest, create_database

from backupd.backup import Wish, back_up
from backupd.config import Database, Settings
from backupd.errors import (
    BusyError,
    SourceUnusableError,
    StoreUnavailableError,
    TargetUnwritableError,
    UsageError,
)
from backupd.format.manifest import SnapshotKind
from backupd.repository import Repository
from backupd.repository.manifests import opened, read_history, read_manifest
from backupd.restore import InPlaceRestore, InPlaceResult, Plan, TableChange, Way
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Manifest

MODES = pytest.mark.parametrize("journal_mode", ["wal", "delete"])
_LOOK = """
import ctypes, mmap, os, sys
for name in sys.argv[1:]:
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), len(mapped), found) == 0
        del start
        assert all(each & 1 for each in found)
"""
"""Fails when a file is not in memory as a whole. Not in our process, in which SQLite has the database open."""


class Service:
    """An application's database, `app.db`, and one snapshot of its first content of 300 rows."""

    def __init__(self, root: Path, journal_mode: str = "wal") -> None:
        self.path = root / "app.db"
        self._state = StateDirectory(root / "state")
        self._store = DirectoryStore(root / "store")
        create_database(self.path, journal_mode=journal_mode)
        self.first = content_digest(self.path)
        self.save(SnapshotKind.REGULAR)
        self.repository = Repository(self._store, self._state)
        self.manifest: Manifest = read_history(self.repository, "app").manifests[0]

    def save(self, kind: SnapshotKind = SnapshotKind.BEFORE_RESTORE) -> SnapshotId:
        database = Database("app", self.path)
        wish = Wish(kind=kind)
        (result,) = back_up(database, [self._store], Settings(), self._state, wish=wish, on_progress=lambda _: None)
        assert result.error is None, result.error
        assert result.id is not None
        return result.id

    def restore(
        self,
        manifest: Manifest | None = None,
        *,
        take_safety_snapshot: Callable[[], SnapshotId] | None = None,
        must_replace: bool = False,
        is_app_stopped: bool = False,
        lock_timeout: float = 5,
    ) -> InPlaceResult:
        restore = self._restore(manifest or self.manifest, must_replace, is_app_stopped, lock_timeout)
        with restore.planned(lambda _: None, is_dry_run=False) as plan:
            return restore.carry_out(plan, take_safety_snapshot, lambda _done, _whole: None)

    def plan(self, *, must_replace: bool = False) -> Plan:
        restore = self._restore(self.manifest, must_replace, False, 5)
        with restore.planned(lambda _: None, is_dry_run=True) as plan:
            return plan

    def _restore(self, manifest: Manifest, must_replace: bool, is_app_stopped: bool, timeout: float) -> InPlaceRestore:  # noqa: FBT001
        return InPlaceRestore(
            self.repository,
            manifest,
            self.path,
            self._state,
            must_replace=must_replace,
            is_app_stopped=is_app_stopped,
            lock_timeout=timeout,
        )

    def content(self) -> str:
        """A digest of all rows, for a database that nobody else has open now."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return content_digest(self.path)

    def of(self, safety: SnapshotId | None) -> Manifest:
        assert safety is not None
        return opened(self.repository, read_manifest(self.repository, "app", safety))


@MODES
def test_back_and_forth(tmp_path: Path, journal_mode: str) -> None:
    """A restore, its undo, and the undo of that, each to exactly the rows that were there."""
    service = Service(tmp_path, journal_mode)
    service.path.chmod(0o640)
    inode = service.path.stat().st_ino
    change_rows(service.path, "broken", rows=200)
    broken = service.content()
    result = service.restore(take_safety_snapshot=service.save)
    assert service.content() == service.first
    undone = service.restore(service.of(result.safety_snapshot), take_safety_snapshot=service.save)
    assert service.content() == broken
    service.restore(service.of(undone.safety_snapshot))
    assert service.content() == service.first
    status = service.path.stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o640)
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "state", "store"}
    assert list((tmp_path / "state/spool").iterdir()) == []


@MODES
@pytest.mark.parametrize("damage", ["rootpage = 777", "sql = x'00ff'"])
def test_damaged_schema_is_replaced_beside_the_application(tmp_path: Path, journal_mode: str, damage: str) -> None:
    """It is what a restore is for: nothing of it is needed but the pages, which the safety snapshot keeps."""
    service = Service(tmp_path, journal_mode)
    with closing(sqlite3.connect(service.path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(f"UPDATE sqlite_schema SET {damage} WHERE name = 'report'")
    with connected(service.path):
        result = service.restore(take_safety_snapshot=service.save)
    assert service.content() == service.first
    service.restore(service.of(result.safety_snapshot))
    with closing(sqlite3.connect(service.path)) as connection, pytest.raises(sqlite3.DatabaseError, match="malformed"):
        connection.execute("SELECT count(*) FROM report")


@MODES
def test_rows_committed_after_the_safety_snapshot_are_saved_too(tmp_path: Path, journal_mode: str) -> None:
    """A second snapshot, while nobody can write, has what was written during the first."""
    service = Service(tmp_path, journal_mode)
    taken: list[SnapshotId] = []

    def save_while_somebody_writes() -> SnapshotId:
        taken.append(service.save())
        if len(taken) == 1:
            with connected(service.path, "UPDATE report SET title = 'written meanwhile' WHERE id = 7"):
                pass
        return taken[-1]

    result = service.restore(take_safety_snapshot=save_while_somebody_writes)
    assert service.content() == service.first
    assert (len(taken), result.safety_snapshot) == (2, taken[1])
    service.restore(service.of(taken[1]))
    with closing(sqlite3.connect(service.path)) as connection:
        titles = connection.execute("SELECT title FROM report WHERE id = 7").fetchall()
    assert titles == [("written meanwhile",)]


@MODES
def test_pause_has_every_snapshot_that_writers_wait_for_and_no_other(tmp_path: Path, journal_mode: str) -> None:
    """The second one here: the application goes on during the first."""
    service = Service(tmp_path, journal_mode)
    taken: list[float] = []

    def save_while_somebody_writes() -> SnapshotId:
        started = time.monotonic()
        saved = service.save()
        if not taken:
            with connected(service.path, "UPDATE report SET title = 'written meanwhile' WHERE id = 7"):
                pass
        taken.append(time.monotonic() - started)
        return saved

    result = service.restore(take_safety_snapshot=save_while_somebody_writes)
    without, within = taken
    assert result.pause_seconds is not None
    assert within <= result.pause_seconds <= result.duration_seconds - without


def test_what_is_not_in_memory_is_read_before_the_lock(tmp_path: Path) -> None:
    """Both files are read before the lock, so that the application does not wait for the disk."""
    service = Service(tmp_path, "delete")
    with closing(sqlite3.connect(service.path)) as connection, connection:
        connection.execute("UPDATE report SET body = randomblob(40000)")
    restore = service._restore(service.of(service.save()), False, False, 5)
    are_in_memory: list[bool] = []
    with restore.planned(lambda _: None, is_dry_run=False) as plan:
        files = [service.path, *(tmp_path / "state/spool").rglob("image.db")]
        assert len(files) == 2
        for file in files:
            _drop_from_memory(file)
        restore.carry_out(plan, None, lambda _done, _whole: are_in_memory.append(_is_in_memory(*files)))
    assert len(are_in_memory) > 2
    assert are_in_memory[0]


def _drop_from_memory(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if _is_in_memory(file):
        pytest.skip("this file system keeps files in memory")


def _is_in_memory(*files: Path) -> bool:
    return subprocess.run([sys.executable, "-c", _LOOK, *files], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_write_that_no_safety_snapshot_has_is_never_replaced(tmp_path: Path) -> None:
    """A store so slow that the writers had to be let go before the snapshot was there: it gives up, and says so."""
    service = Service(tmp_path)

    def save_too_slowly() -> SnapshotId:
        saved = service.save()
        with connected(service.path, "PRAGMA busy_timeout = 20000", "UPDATE report SET title = title || 'x'"):
            pass
        return saved

    with pytest.raises(BusyError, match="was written again"):
        service.restore(take_safety_snapshot=save_too_slowly)
    with closing(sqlite3.connect(service.path)) as connection:
        assert connection.execute("SELECT title FROM report WHERE id = 1").fetchone() == ("report 0xxxxxx",)


def test_nothing_happens_when_the_safety_snapshot_fails(tmp_path: Path) -> None:
    """Its error comes out, and the database is as it was."""
    service = Service(tmp_path)
    change_rows(service.path, "changed")
    changed = service.content()

    def fail() -> NoReturn:
        raise StoreUnavailableError("no way")

    for must_replace in (False, True):
        with pytest.raises(StoreUnavailableError):
            service.restore(take_safety_snapshot=fail, must_replace=must_replace, is_app_stopped=True)
    assert service.content() == changed
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "state", "store"}


def test_plan_says_what_would_change(tmp_path: Path) -> None:
    """Rows, schema and revisions now and then; and nothing is written, not even beside the database."""
    service = Service(tmp_path)
    with closing(sqlite3.connect(service.path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('5f3a9b')")
        connection.execute("DROP INDEX report_title")
        connection.execute("DELETE FROM report WHERE id > 100")
    before = service.path.read_bytes()
    plan = service.plan()
    assert plan.tables == (TableChange("alembic_version", 1, None), TableChange("report", 100, 300))
    assert plan.schema == ("+ index report_title", "- table alembic_version")
    assert (plan.way, plan.changes_revision, plan.readers_wait) == (Way.LIVE, True, False)
    assert plan.scratch_bytes == service.manifest.image_bytes < plan.log_bytes
    assert plan.fetched_bytes == sum(pack.stored_bytes for pack in service.manifest.packs)
    assert service.path.read_bytes() == before
    assert list((tmp_path / "state/spool").iterdir()) == []


@pytest.mark.parametrize("pragma", ["page_size = 8192", "encoding = 'UTF-16le'"])
def test_what_breaks_open_connections_needs_a_replacement(tmp_path: Path, pragma: str) -> None:
    """The plan says why; live it is refused; and after the replacement all is well, with the old file kept."""
    service = Service(tmp_path)
    service.path.unlink()
    with closing(sqlite3.connect(service.path)) as connection, connection:
        connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE other (a)")
    service.path.chmod(0o604)
    plan = service.plan()
    assert plan.way is Way.REPLACEMENT
    with pytest.raises(UsageError, match="cannot be restored while the application runs"):
        service.restore()
    with pytest.raises(UsageError, match="an idle connection in rollback mode is invisible"):
        service.restore(must_replace=True)
    result = service.restore(take_safety_snapshot=service.save, must_replace=True, is_app_stopped=True)
    assert service.content() == service.first
    assert stat.S_IMODE(service.path.stat().st_mode) == 0o604
    assert result.kept_as is not None
    with closing(sqlite3.connect(result.kept_as)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("other",)]


def test_page_size_changes_live_in_rollback_mode(tmp_path: Path) -> None:
    """An open connection goes on with the new one."""
    service = Service(tmp_path, "delete")
    service.path.unlink()
    with closing(sqlite3.connect(service.path)) as connection:
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("CREATE TABLE other (a)")
        service.restore()
        assert connection.execute("SELECT count(*) FROM report").fetchone() == (300,)
        assert connection.execute("PRAGMA page_size").fetchone() == (4096,)
        connection.execute("DELETE FROM report")


@pytest.mark.parametrize("beside", ["-wal", "-journal"])
def test_unreadable_database_is_kept_with_what_belongs_to_it(tmp_path: Path, beside: str) -> None:
    """Under one dated name, so that somebody can still look at it; a second one on the same day gets its own name."""
    service = Service(tmp_path)
    kept = set()
    for content in (b"garbage one", b"garbage two"):
        service.path.write_bytes(content)
        service.path.with_name(f"app.db{beside}").write_bytes(b"\xd9log")
        with pytest.raises(UsageError, match="is not an SQLite database"):
            service.restore()
        result = service.restore(take_safety_snapshot=service.save, must_replace=True, is_app_stopped=True)
        assert result.safety_snapshot is None
        assert result.kept_as is not None
        assert result.kept_as.read_bytes() == content
        assert result.kept_as.with_name(f"{result.kept_as.name}{beside}").read_bytes() == b"\xd9log"
        assert service.content() == service.first
        kept.add(result.kept_as)
    assert len(kept) == 2


@MODES
def test_replacement_refuses_a_database_in_use(tmp_path: Path, journal_mode: str) -> None:
    """Whatever people say, when SQLite's locks show that somebody works with it."""
    service = Service(tmp_path, journal_mode)
    with (
        connected(service.path, "BEGIN", "SELECT count(*) FROM report") as application,
        pytest.raises(UsageError, match=f"in use by process {application.pid}"),
    ):
        service.restore(must_replace=True, is_app_stopped=True)
    assert service.content() == service.first


def test_committed_rows_in_the_log_come_into_the_kept_file(tmp_path: Path) -> None:
    """The application was killed, and its last rows are in the WAL only."""
    service = Service(tmp_path)
    with connected(service.path, "PRAGMA wal_autocheckpoint = 0", "DELETE FROM report WHERE id > 5") as application:
        application.kill()
        application.wait()
    result = service.restore(must_replace=True, is_app_stopped=True)
    assert result.kept_as is not None
    with closing(sqlite3.connect(f"file:{result.kept_as}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT count(*) FROM report").fetchone() == (5,)
    assert service.content() == service.first


@pytest.mark.parametrize("must_replace", [False, True])
def test_hot_journal_of_a_crashed_application_is_rolled_back_and_saved(tmp_path: Path, *, must_replace: bool) -> None:
    """As the application would do itself at its next start; a mere look leaves it alone, and says so."""
    service = Service(tmp_path, "delete")
    with connected(
        service.path, "PRAGMA cache_size = 1", "BEGIN", "UPDATE report SET body = zeroblob(2000)"
    ) as application:
        application.kill()
        application.wait()
    with pytest.raises(SourceUnusableError, match="hot rollback journal"):
        service.plan()
    result = service.restore(take_safety_snapshot=service.save, must_replace=must_replace, is_app_stopped=must_replace)
    assert service.of(result.safety_snapshot).image_digest == service.manifest.image_digest
    assert service.content() == service.first


def test_application_that_holds_the_database_is_waited_for_and_reported(tmp_path: Path) -> None:
    """After the lock timeout, with nothing changed."""
    service = Service(tmp_path)
    with connected(service.path, "BEGIN IMMEDIATE"), pytest.raises(BusyError, match="stayed locked"):
        service.restore(lock_timeout=0.2)
    assert service.content() == service.first


@pytest.mark.parametrize(
    "statements",
    [
        ("PRAGMA journal_mode = DELETE",),
        ("CREATE TABLE alembic_version (version_num)", "INSERT INTO alembic_version VALUES ('5f3a9b')"),
    ],
    ids=["journal mode", "revision"],
)
def test_plan_that_is_out_of_date_is_not_carried_out(tmp_path: Path, statements: tuple[str, ...]) -> None:
    """Somebody migrated the database while the question waited for its answer."""
    service = Service(tmp_path)
    restore = service._restore(service.manifest, False, False, 5)
    with restore.planned(lambda _: None, is_dry_run=False) as plan:
        with closing(sqlite3.connect(service.path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        changed = service.content()
        with pytest.raises(UsageError, match="has changed since the plan"):
            restore.carry_out(plan, service.save, lambda _done, _whole: None)
    assert service.content() == changed


def test_disk_without_room_for_the_log_is_refused(tmp_path: Path) -> None:
    """Before anything is fetched."""
    service = Service(tmp_path)
    free = shutil.disk_usage(tmp_path).free
    pages = free // 4096
    with closing(sqlite3.connect(service.path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    # A sparse file: a database of freelist-free, never written pages as large as the free space.
    with service.path.open("r+b") as file:
        file.seek(28)
        file.write((pages + 1000).to_bytes(4, "big"))
    os.truncate(service.path, (pages + 1000) * 4096)
    with pytest.raises(TargetUnwritableError, match="for its journal"):
        service.restore()
