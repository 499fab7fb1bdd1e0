"""The plan of a restore into the configured database: what it would do and change. Nothing is touched to make it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.errors import NotADatabaseError, TargetUnwritableError, UsageError
from backupd.live.contents import Contents, Identity, contents_of_image, contents_of_live, has_page_checksums
from backupd.restore.placing import reporting_errors, side_files
from backupd.system.files import free_bytes, is_mounted_read_only

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.repository.moments import RestorePoint

_WAL_FRAME_BYTES = 24
_JOURNAL_PAGE_BYTES = 8
_WAL_BYTES_PER_SECOND = 180e6
_JOURNAL_BYTES_PER_SECOND = 220e6
"""Of the image: measured with up to 400 MB on two cores. The first writer after it pays for SQLite's checkpoint too."""

_FIXED_PAUSE_SECONDS = 0.05
_SAVING_SECONDS = 0.5
_SAVED_BYTES_PER_SECOND = 800e6


class Way(StrEnum):
    """How the restore point gets into the configured database."""

    LIVE = "live"
    REPLACEMENT = "replacement"
    NEW_FILE = "new-file"


@dataclass(frozen=True, slots=True)
class TableChange:
    """Rows of one table now and after the restore; None where there is no such table, or its rows were not counted."""

    table: str
    rows_now: int | None
    rows_then: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a restore: what it would do and change. Sizes are in bytes.

    `pause_seconds` is the time that the application is expected to wait: its writers in WAL mode, its readers too
    otherwise. `saving_seconds` is the time that its writers wait before that, if they write during the safety snapshot.
    Both are None where the application must be stopped. `schema` has the objects that differ: `+ index users_email`.
    """

    point: RestorePoint
    target: Path
    way: Way
    reason: str
    now: Contents | None
    then: Contents
    tables: tuple[TableChange, ...]
    schema: tuple[str, ...]
    fetched_bytes: int
    scratch_bytes: int
    log_bytes: int
    pause_seconds: float | None
    saving_seconds: float | None

    @property
    def writers_wait_seconds(self) -> float:
        """The longest time that a writer is expected to wait."""
        return (self.pause_seconds or 0.0) + (self.saving_seconds or 0.0)

    @property
    def changes_revision(self) -> bool:
        """Whether the Alembic revision of what is restored differs from that of now."""
        return self.now is not None and self.now.alembic_revisions != self.then.alembic_revisions

    @property
    def readers_wait(self) -> bool:
        """Whether the application's readers wait too."""
        return self.way is Way.LIVE and self.now is not None and not self.now.is_wal


@dataclass(frozen=True, slots=True)
class TargetState:
    """The state of the path to restore to, which decides the way to restore there.

    `contents` is None where there is no readable database; `reason` says why the way is not `LIVE`.
    """

    target: Path
    way: Way
    reason: str
    contents: Contents | None


def examine(
    target: Path, point: RestorePoint, *, scratch: Path, must_replace: bool, lock_timeout: float
) -> TargetState:
    """Find out how `point` can be restored into `target`, which may be in use, by way of `scratch`, a directory.

    Raises `BusyError`, `TargetUnwritableError`, and `SourceUnusableError` where a person has to look first.
    """
    with reporting_errors(target):
        _reject_odd_target(target)
        if not target.exists():
            if left := side_files(target):
                return TargetState(target, Way.REPLACEMENT, f"{left[0]} is left of a file that is gone", None)
            return TargetState(target, Way.NEW_FILE, "nothing is there", None)
        try:
            contents = contents_of_live(target, lock_timeout=lock_timeout)
        except NotADatabaseError as error:
            return TargetState(target, Way.REPLACEMENT, error.message, None)
    reason = "as requested" if must_replace else _why_misfit(target, contents, point)
    if reason is not None:
        return TargetState(target, Way.REPLACEMENT, reason, contents)
    reject_small_disk(target, contents, point, scratch=scratch)
    return TargetState(target, Way.LIVE, "", contents)


def make_plan(point: RestorePoint, found: TargetState, image: Path, fetched_bytes: int) -> Plan:
    """The plan for the proven `image` of `point`. Reads, and changes nothing."""
    now, then = found.contents, contents_of_image(image)
    is_live = found.way is Way.LIVE and now is not None
    return Plan(
        point=point,
        target=found.target,
        way=found.way,
        reason=found.reason,
        now=now,
        then=then,
        tables=_table_changes(now, then),
        schema=_schema_changes(now.schema if now else {}, then.schema),
        fetched_bytes=fetched_bytes,
        scratch_bytes=point.scratch_bytes,
        log_bytes=_log_bytes(now, point) if now and is_live else 0,
        pause_seconds=_pause_seconds(now, point) if now and is_live else None,
        saving_seconds=_SAVING_SECONDS + now.image_bytes / _SAVED_BYTES_PER_SECOND if now and is_live else None,
    )


def reject_change(planned: Plan, now: Identity) -> None:
    """Refuse when the database has changed in kind since the plan that the user agreed to."""
    if planned.now is not None and now != planned.now.identity:
        raise UsageError(
            f"{planned.target} has changed since the plan: it was {_described(planned.now.identity)}, and is "
            f"{_described(now)}",
            hint="look at the plan again: run the same command once more",
        )


def reject_small_disk(target: Path, now: Contents, point: RestorePoint, *, scratch: Path | None = None) -> None:
    """Refuse when the log of a live restore has no room; with the image, when `scratch` is on the same disk."""
    free = free_bytes(target.parent)
    needed = _log_bytes(now, point) + max(0, point.image_bytes - now.image_bytes)
    if scratch is not None and scratch.stat().st_dev == target.parent.stat().st_dev:
        needed += point.scratch_bytes
    if free is not None and free < needed:
        raise TargetUnwritableError(
            f"{target.parent} has {free >> 20} MiB free, and the restore needs {(needed >> 20) + 1} MiB there for its "
            f"{'WAL' if now.is_wal else 'journal'}",
            hint="free some space there, or restore to a file on another disk with --to FILE",
        )


def _reject_odd_target(target: Path) -> None:
    if target.exists() and not target.is_file():
        raise TargetUnwritableError(f"{target} is not a regular file", hint="check the path of the database")
    if not target.parent.is_dir():
        raise TargetUnwritableError(
            f"the directory {target.parent} does not exist",
            hint="check the path and, in a container, that the volume is mounted there",
        )
    if is_mounted_read_only(target.parent):
        raise TargetUnwritableError(
            f"the volume of {target} is mounted read-only",
            hint="mount it without :ro for the time of the restore, or restore to a file elsewhere with --to FILE",
        )
    unwritable = [path for path in (target, target.parent) if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    if unwritable:
        raise TargetUnwritableError(
            f"{unwritable[0]} cannot be written by uid {os.geteuid()}",
            hint="run backupd as the owner of the database or as root, or restore elsewhere with --to FILE",
        )


def _why_misfit(target: Path, now: Contents, point: RestorePoint) -> str | None:
    """Why open connections would break. SQLite refuses most of these itself, without a reason."""
    if has_page_checksums(target):
        # SQLite writes page 1 last, and not with the VFS of the application, which would not read it any more.
        return "its pages have the checksums of SQLite's checksum VFS, which only the application can write"
    if now.is_read_only:
        return "its header makes it read-only for SQLite (a write version above 2)"
    if not now.page_count or not point.page_count:
        return None
    manifest = point.manifest
    if now.is_wal and now.page_size != manifest.page_size:
        return f"it is in WAL mode with pages of {now.page_size} bytes, and the snapshot has {manifest.page_size}"
    if now.encoding != manifest.source.encoding:
        return f"its text is in {now.encoding}, and that of the snapshot in {manifest.source.encoding}"
    return None


def _described(identity: Identity) -> str:
    revisions = ", ".join(identity.alembic_revisions or ()) or "none"
    return (
        f"in {identity.journal_mode} mode with pages of {identity.page_size} bytes, {identity.encoding}, "
        f"Alembic revision {revisions}"
    )


def _log_bytes(now: Contents, point: RestorePoint) -> int:
    """The bytes that SQLite writes beside the database: all new pages in WAL mode, all old ones otherwise."""
    if now.is_wal:
        return point.page_count * (point.manifest.page_size + _WAL_FRAME_BYTES)
    return now.page_count * (now.page_size + _JOURNAL_PAGE_BYTES)


def _pause_seconds(now: Contents, point: RestorePoint) -> float:
    rate = _WAL_BYTES_PER_SECOND if now.is_wal else _JOURNAL_BYTES_PER_SECOND
    return _FIXED_PAUSE_SECONDS + max(point.image_bytes, now.image_bytes) / rate


def _table_changes(now: Contents | None, then: Contents) -> tuple[TableChange, ...]:
    rows_now = now.rows if now else {}
    names = sorted({*rows_now, *then.rows})
    return tuple(TableChange(name, rows_now.get(name), then.rows.get(name)) for name in names)


def _schema_changes(now: dict[str, str], then: dict[str, str]) -> tuple[str, ...]:
    """The objects of the schema that the restore adds (+), removes (-) and changes (~)."""
    signs = {
        name: "+" if name not in now else "-" if name not in then else "~"
        for name in sorted({*now, *then})
        if now.get(name) != then.get(name)
    }
    return tuple(f"{sign} {name}" for name, sign in signs.items())
