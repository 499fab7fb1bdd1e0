"""The way back from a restore: the safety snapshot before it, the record of it, and what `backupd undo` restores."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

import msgspec

from backupd.backup import SnapshotRequest, back_up
from backupd.errors import BackupdError, NoMatchingSnapshotError, NoSuchSnapshotError, UsageError
from backupd.format import SnapshotId  # noqa: TC001  (a note reads the types of its record)
from backupd.format.manifest import SnapshotKind
from backupd.repository.moments import RestorePoint
from backupd.repository.references import find_snapshot
from backupd.restore.placing import resolve_target
from backupd.state import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from backupd.config import Database, Settings
    from backupd.repository import Repository
    from backupd.state import StateDirectory

    Warn = Callable[[str], None]


class Ending(StrEnum):
    """The outcome of a restore."""

    DONE = "done"
    NEW_FILE = "new-file"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


_WITHOUT_WAY_BACK = {
    Ending.DONE: "was made without a safety snapshot",
    Ending.NEW_FILE: "found nothing in its place",
    Ending.FAILED: "failed, and there was none before it",
    Ending.INTERRUPTED: "was interrupted: whether it was done is not known",
}


class LastRestore(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the last restore of a database into a file."""

    kind: ClassVar[str] = "last-restore"

    ending: Ending
    safety_snapshot: SnapshotId | None = None
    """What undoes it."""
    kept_as: str | None = None
    """The old file, if it was replaced."""

    def undone_by(self, database: str) -> SnapshotId:
        """The safety snapshot of this restore of `database`. Raises `UsageError` when there is none."""
        if self.safety_snapshot is not None:
            return self.safety_snapshot
        kept = f"; the old file is kept as {self.kept_as}" if self.kept_as else ""
        raise UsageError(
            f"the last restore of {database} {_WITHOUT_WAY_BACK[self.ending]}{kept}",
            hint=f"older states can be restored too: backupd restore {database}@before-restore --dry-run",
        )


def last_restore(state: StateDirectory, database: str, file: Path) -> Note[LastRestore]:
    """The note about the last restore of `database` into `file`, which is no symbolic link."""
    return Note(state, LastRestore, database, str(file))


def record_new_file(note: Note[LastRestore], warn: Warn) -> None:
    """Record a restore that found no file: nothing can be undone. That it cannot be recorded is only a warning."""
    _write(note, LastRestore(ending=Ending.NEW_FILE), warn)


@contextmanager
def recorded(note: Note[LastRestore], warn: Warn) -> Iterator[Callable[[SnapshotId | None, Path | None], None]]:
    """Record the restore in this block: its safety snapshot and the file it kept go to the callable that this yields.

    A restore that fails changes nothing, and leaves the record of the one before. One that is killed is recorded as
    interrupted.
    """
    before = note.read()
    note.write(LastRestore(ending=Ending.INTERRUPTED))
    after = before or LastRestore(ending=Ending.FAILED)

    def done(safety_snapshot: SnapshotId | None, kept_as: Path | None) -> None:
        nonlocal after
        kept = None if kept_as is None else str(kept_as)
        after = LastRestore(ending=Ending.DONE, safety_snapshot=safety_snapshot, kept_as=kept)

    try:
        yield done
    finally:
        _write(note, after, warn)


def _write(note: Note[LastRestore], record: LastRestore, warn: Warn) -> None:
    try:
        note.write(record)
    except BackupdError as error:
        warn(error.message)  # the restore itself is done


class SafetySnapshots(msgspec.Struct, frozen=True):
    """Takes snapshots of a database that is about to be replaced: into all of `repositories`, and at least into one."""

    database: Database
    repositories: Sequence[Repository]
    settings: Settings
    warn: Warn

    def take(self) -> SnapshotId:
        """Take one. Raises the error of the first store when none has it, and warns when only some have it."""
        results = back_up(
            self.database,
            self.repositories,
            self.settings,
            request=SnapshotRequest(kind=SnapshotKind.BEFORE_RESTORE),
            on_progress=lambda _: None,
        )
        made = [result.id for result in results if result.id is not None]
        errors = [result.error for result in results if result.error is not None]
        if not made:
            raise type(errors[0])(
                f"the safety snapshot failed, so nothing was restored: {errors[0].message}",
                hint=f"{errors[0].hint or 'see above'}; or restore without one: --no-safety-snapshot",
            )
        for error in errors:
            self.warn(f"the safety snapshot is not in every store: {error.message}")
        return made[0]


def snapshot_to_undo(
    repositories: Sequence[Repository], state: StateDirectory, name: str | None, path: Path | None, *, now: datetime
) -> RestorePoint:
    """Find the snapshot of what was there before the last restore of the database `name` into `path`.

    The state directory of the machine that restored knows that. Elsewhere, and without `path`, it is the newest safety
    snapshot; without `name`, that of the only database. Raises `UsageError` when there is nothing to go back to, what
    `find_snapshot` raises, and `IdentityNeededError`.
    """
    file = None if path is None else resolve_target(path)
    last = None if name is None or file is None else last_restore(state, name, file).read()
    if name is not None and last is not None:
        return RestorePoint.of(find_snapshot(repositories, str(last.undone_by(name)), database=name, now=now))
    found = _newest_safety_snapshot(repositories, name, now)
    _reject_other_file(found, file)
    return found


def _newest_safety_snapshot(repositories: Sequence[Repository], name: str | None, now: datetime) -> RestorePoint:
    try:
        return RestorePoint.of(find_snapshot(repositories, str(SnapshotKind.BEFORE_RESTORE), database=name, now=now))
    except NoMatchingSnapshotError as error:
        whose = "" if name is None else f" of {name}"
        raise NoSuchSnapshotError(
            f"there is no restore to undo: no safety snapshot{whose} is known ({error.message})",
            hint="to go back to an older state: backupd list, then backupd restore NAME@ID",
        ) from error


def _reject_other_file(found: RestorePoint, file: Path | None) -> None:
    """Refuse a safety snapshot of another file of that name on this machine: it is not what was in `file`."""
    manifest = found.manifest
    writer = manifest.writer
    if file is not None and writer.host == socket.gethostname() and writer.path != str(file):
        raise UsageError(
            f"the newest safety snapshot of {manifest.database}, {manifest.id}, is of {writer.path}",
            hint=f"if it is the right one: backupd restore {manifest.database}@{manifest.id}",
        )
