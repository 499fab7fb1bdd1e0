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
from harness.extent import slow
from harness.kept_workers import kept_workers
from harness.place import change_rows, connected, content_digest, create_database

from backupd.backup import SnapshotRequest, back_up
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
from backupd.repository.moments import RestorePoint
from backupd.restore.in_place import InPlaceRequest, InPlaceResult, PlannedRestore, Target, planned_restore
from backupd.restore.plan import Plan, TableChange, Way
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from backupd.format import SnapshotId
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
        self._repository = Repository(DirectoryStore(root / "store"), self._state)
        self.archive = self._repository.archive("app")
        create_database(self.path, journal_mode=journal_mode)
        self.first = content_digest(self.path)
        self.save(SnapshotKind.REGULAR)
        self.manifest: Manifest = self.archive.history().manifests[0]

    def save(self, kind: SnapshotKind = SnapshotKind.BEFORE_RESTORE) -> SnapshotId:
        (result,) = back_up(
            Database("app", self.path),
            [self._repository],
            Settings(),
            request=SnapshotRequest(kind=kind),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
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
        request = InPlaceRequest(must_replace=must_replace, is_app_stopped=is_app_stopped)
        with self.planned(manifest, request, lock_timeout=lock_timeout) as planned:
            return planned.carry_out(take_safety_snapshot, lambda _done, _whole: None)

    def plan(self, *, must_replace: bool = False) -> Plan:
        with self.planned(request=InPlaceRequest(is_dry_run=True, must_replace=must_replace)) as planned:
            return planned.plan

    def planned(
        self,
        manifest: Manifest | None = None,
        request: InPlaceRequest = InPlaceRequest(),  # noqa: B008  (frozen)
        *,
        lock_timeout: float = 5,
    ) -> AbstractContextManager[PlannedRestore]:
        point = RestorePoint(self.archive, manifest or self.manifest)
        return planned_restore(point, Target(self.path, self._state, lock_timeout), request, lambda _: None)

    def content(self) -> str:
        """A digest of all rows, for a database that no other process has open now."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return content_digest(self.path)

    def of(self, safety: SnapshotId | None) -> Manifest:
        assert safety is not None
        return self.archive.opened(self.archive.manifest(safety))


@MODES
def test_restore_and_undo_bring_back_exactly_the_rows_of_before(tmp_path: Path, journal_mode: str) -> None:
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
    """A damaged schema is replaced while the application runs, and the safety snapshot keeps its pages."""
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
    """A second snapshot, while writers wait, has what was written during the first."""
    service = Service(tmp_path, journal_mode)
    taken: list[SnapshotId] = []

    def save_during_a_write() -> SnapshotId:
        taken.append(service.save())
        if len(taken) == 1:
            with connected(service.path, "UPDATE report SET title = 'written meanwhile' WHERE id = 7"):
                pass
        return taken[-1]

    result = service.restore(take_safety_snapshot=save_during_a_write)
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

    def save_during_a_write() -> SnapshotId:
        started = time.monotonic()
        saved = service.save()
        if not taken:
            with connected(service.path, "UPDATE report SET title = 'written meanwhile' WHERE id = 7"):
                pass
        taken.append(time.monotonic() - started)
        return saved

    result = service.restore(take_safety_snapshot=save_during_a_write)
    without, within = taken
    assert result.pause_seconds is not None
    assert within <= result.pause_seconds <= result.duration_seconds - without


def test_files_are_read_into_memory_before_the_lock(tmp_path: Path) -> None:
    """Both files are read before the lock, so that the application does not wait for the disk."""
    service = Service(tmp_path, "delete")
    with closing(sqlite3.connect(service.path)) as connection, connection:
        connection.execute("UPDATE report SET body = randomblob(40000)")
    are_in_memory: list[bool] = []
    with service.planned(service.of(service.save())) as planned:
        files = [service.path, *(tmp_path / "state/spool").rglob("image.db")]
        assert len(files) == 2
        for file in files:
            _drop_from_memory(file)
        planned.carry_out(None, lambda _done, _whole: are_in_memory.append(_is_in_memory(*files)))
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


@slow
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
    """A safety snapshot that fails ends the restore with its error, and the database is as it was."""
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
def test_image_that_breaks_open_connections_needs_a_replacement(tmp_path: Path, pragma: str) -> None:
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


def test_page_size_changes_beside_an_open_connection_in_rollback_mode(tmp_path: Path) -> None:
    """The connection goes on with the new size."""
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
    """An unreadable database is kept with its log under a dated name, which a second one does not share."""
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
    """A replacement is refused, even with --app-stopped, if a process holds one of SQLite's locks."""
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
    """A restore rolls a hot journal back and saves the result; a plan leaves it alone and says so."""
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
    """An application that holds the database for longer than the timeout is reported; nothing changes."""
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
    """The database was migrated while the question waited for its answer."""
    service = Service(tmp_path)
    with service.planned() as planned:
        with closing(sqlite3.connect(service.path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        changed = service.content()
        with pytest.raises(UsageError, match="has changed since the plan"):
            planned.carry_out(service.save, lambda _done, _whole: None)
    assert service.content() == changed


def test_disk_without_room_for_the_log_is_refused(tmp_path: Path) -> None:
    """A disk without room for the journal is refused."""
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
