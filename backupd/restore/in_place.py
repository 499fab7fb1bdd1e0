"""Restore into the configured database: beside a running application, or by another file in its place.

First a plan, which a person may look at; then, in this order, the safety snapshot and the change. A kill at any moment
leaves the old content or the new, and the next command cleans up.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backupd.capture.database_files import warm_file_cache
from backupd.capture.side_files import reject_foreign_files
from backupd.errors import BusyError, NotADatabaseError, SourceUnusableError, UsageError
from backupd.live.contents import holders
from backupd.live.destination import LiveDatabase, settle
from backupd.live.files import Replacement, no_second_name
from backupd.live.intent import announced_transaction, finish_interrupted, replace_files
from backupd.logs import log
from backupd.restore import restore_to_file
from backupd.restore.image import Progress, write_image
from backupd.restore.placing import (
    copy_image,
    foreign_owner,
    free_name,
    partial_file,
    reject_no_room,
    reporting_errors,
    side_files,
    take_over_ownership,
)
from backupd.restore.plan import Plan, Way, examine, make_plan, reject_change, reject_small_disk
from backupd.system.trust import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.manifest import Manifest
    from backupd.live.contents import Contents
    from backupd.repository.moments import RestorePoint
    from backupd.state import StateDirectory

    TakeSafetySnapshot = Callable[[], SnapshotId]
    """Takes a snapshot of the database as it is now, or raises why there is none."""

_TRIES = 5
_LEAST_SAVING_SECONDS = 3.0
_EXPECTED_TIMES = 3
_SIDE_SUFFIXES = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Target:
    """The database file to restore into, and what every access to it needs."""

    path: Path
    state: StateDirectory
    lock_timeout: float
    """Seconds to wait for the locks of the application, and of other restores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceRequest:
    """A request for a restore in place, with the user's statements about the application."""

    is_dry_run: bool = False
    must_replace: bool = False
    is_app_stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceResult:
    """The result of a restore in place. `backupd undo` returns to `safety_snapshot`; `kept_as` is a replaced file.

    `pause_seconds` is the longest that the application was kept waiting: its writers, and in rollback mode its readers
    too; None where it was stopped.
    """

    plan: Plan
    safety_snapshot: SnapshotId | None = None
    kept_as: Path | None = None
    pause_seconds: float | None = None
    duration_seconds: float = 0.0


@contextmanager
def planned_restore(
    point: RestorePoint, target: Target, request: InPlaceRequest, on_progress: Callable[[Progress], None]
) -> Iterator[PlannedRestore]:
    """Fetch and prove the image into scratch, which is gone after the block, and plan its restore.

    Unless in a dry run, a replacement that was not requested, or whose application is not stopped, is refused. Raises
    `BackupdError`.
    """
    finish_interrupted(target.path, target.state, lock_timeout=target.lock_timeout)
    if not request.is_dry_run:
        _settle_hot_journal(target)
    with target.state.spool() as spool:
        found = examine(
            target.path,
            point,
            scratch=spool,
            must_replace=request.must_replace,
            lock_timeout=target.lock_timeout,
        )
        seen = status_of(os.fspath(target.path))
        if not request.is_dry_run and found.way is Way.REPLACEMENT:
            _reject_unstopped(
                target.path,
                found.reason,
                must_replace=request.must_replace,
                is_app_stopped=request.is_app_stopped,
            )
        reject_no_room(spool, point.scratch_bytes)
        image = spool / "image.db"
        fetched_bytes = _fetch(point, image, on_progress)
        yield PlannedRestore(make_plan(point, found, image, fetched_bytes), image, target, seen)


def _settle_hot_journal(target: Target) -> None:
    """Roll back what a crashed application left, which it would do itself: then there is something to save."""
    with reporting_errors(target.path):
        is_hot = target.path.is_file() and any(file.name.endswith("-journal") for file in side_files(target.path))
    if is_hot:
        with suppress(NotADatabaseError):
            settle(target.path, lock_timeout=target.lock_timeout)


def _fetch(point: RestorePoint, image: Path, on_progress: Callable[[Progress], None]) -> int:
    with reporting_errors(image):
        descriptor = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return write_image(point, image, descriptor, on_progress)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class PlannedRestore:
    """A restore that can be carried out within the block of `planned_restore`."""

    plan: Plan
    image: Path
    """The file that is restored, for a look into it; it is gone after the block."""
    _target: Target
    _seen: os.stat_result | None

    def carry_out(
        self, take_safety_snapshot: TakeSafetySnapshot | None, on_progress: Callable[[int, int], None]
    ) -> InPlaceResult:
        """Do what the plan says; `on_progress` gets bytes done and bytes in all of a live restore.

        When the safety snapshot fails, its error is raised and nothing was changed. Raises `BackupdError`.
        """
        started = time.monotonic()
        now = self.plan.now
        if self.plan.way is Way.NEW_FILE:
            restore_to_file(
                self.plan.point,
                self._target.path,
                force=False,
                as_source=True,
                on_progress=lambda _: None,  # the image has been fetched once already, so the second time is quick
            )
            result = InPlaceResult(plan=self.plan)
        elif self.plan.way is Way.LIVE and now is not None:
            result = self._restore_live(now, take_safety_snapshot, on_progress)
        else:
            result = self._restore_by_replacement(take_safety_snapshot)
        return replace(result, duration_seconds=time.monotonic() - started)

    def _restore_live(
        self,
        now: Contents,
        take_safety_snapshot: TakeSafetySnapshot | None,
        on_progress: Callable[[int, int], None],
    ) -> InPlaceResult:
        path, state = self._target.path, self._target.state
        page_size = self.plan.then.page_size
        # Longer than it should take, and yet not so long that a store that hangs stops the application.
        most_seconds = max(_LEAST_SAVING_SECONDS, _EXPECTED_TIMES * (self.plan.saving_seconds or 0.0))
        safety: SnapshotId | None = None
        if not now.is_wal:
            warm_file_cache(os.fspath(path))  # SQLite copies all of it into its journal under the lock
        with LiveDatabase(path, lock_timeout=self._target.lock_timeout) as database:
            self._reject_another_file()
            if take_safety_snapshot is not None:
                saved_version = database.version()
                safety = take_safety_snapshot()
            with database.opened(self.image) as image:
                for _ in range(_TRIES):
                    with ExitStack() as announcement:
                        with database.writers_waiting(most_seconds=most_seconds):
                            version = database.version()
                            reject_change(self.plan, database.identity())
                            # What was written since then is saved too, while writers wait: undo brings all of it back.
                            if take_safety_snapshot is not None and version != saved_version:
                                saved_version = version
                                safety = take_safety_snapshot()
                            reject_small_disk(path, now, self.plan.point)
                            with reporting_errors(path):
                                announcement.enter_context(announced_transaction(path, state))
                        is_done = database.replace_content(
                            image, version, lambda done, pages: on_progress(done * page_size, pages * page_size)
                        )
                    if is_done:
                        return InPlaceResult(
                            plan=self.plan, safety_snapshot=safety, pause_seconds=database.pause_seconds
                        )
        raise BusyError(
            f"{path} was written again before each of {_TRIES} safety snapshots was stored",
            hint="stop the application for a moment, or try again when the stores are faster; nothing was changed",
        )

    def _restore_by_replacement(self, take_safety_snapshot: TakeSafetySnapshot | None) -> InPlaceResult:
        # A file that is no database cannot be captured; the old file itself, which is kept, is the way back.
        is_readable = self.plan.now is not None
        safety = take_safety_snapshot() if take_safety_snapshot is not None and is_readable else None
        _reject_use(self._target.path)
        self._reject_another_file()
        aside = _replace_database(
            self._target.path,
            self.image,
            self.plan.point.manifest,
            self._target.state,
            is_readable=is_readable,
            lock_timeout=self._target.lock_timeout,
        )
        return InPlaceResult(plan=self.plan, safety_snapshot=safety, kept_as=aside)

    def _reject_another_file(self) -> None:
        """Refuse another file in the place of the one that the plan was made for."""
        now = status_of(os.fspath(self._target.path))
        if self._seen is None or now is None or not os.path.samestat(self._seen, now):
            raise UsageError(
                f"{self._target.path} is no longer the file that the plan was made for",
                hint="look at the plan again: run the same command once more",
            )


def _reject_unstopped(target: Path, reason: str, *, must_replace: bool, is_app_stopped: bool) -> None:
    """Refuse a replacement, necessary for `reason`, that was not requested, or whose application may be running."""
    if not must_replace:
        raise UsageError(
            f"{target} cannot be restored while the application runs: {reason}",
            hint="stop the application, restore with --replace --app-stopped, and start it; or restore to a file with "
            "--to",
        )
    if not is_app_stopped:
        raise UsageError(
            f"replacing {target} needs the application to be stopped, and SQLite cannot tell: "
            "an idle connection in rollback mode is invisible",
            hint="stop the application, and confirm it with --app-stopped",
        )
    _reject_foreign_owner(target)
    _reject_use(target)
    _reject_no_hard_links(target)


def _reject_use(target: Path) -> None:
    """Refuse to replace the file of a database that SQLite's locks show in use. No connection may be open here."""
    with reporting_errors(target):
        using = holders(target)
    if using:
        who = ", ".join(f"process {number}" if number else "a process in another container" for number in sorted(using))
        raise UsageError(
            f"{target} is in use by {who}",
            hint="stop the application, and then restore with --replace --app-stopped; or leave --replace out",
        )


def _reject_foreign_owner(target: Path) -> None:
    """Refuse to put another file in place that could not have the owner of the old one."""
    if not target.exists():
        return
    with reporting_errors(target):
        try:
            reject_foreign_files(os.fspath(target))
        except SourceUnusableError as error:
            raise foreign_owner(target, target.stat().st_uid) from error


def _reject_no_hard_links(target: Path) -> None:
    """Refuse to replace a file where it could not be kept under a second name. Leaves nothing."""
    with reporting_errors(target), partial_file(target) as (partial, _):
        second = partial.with_name(f"{partial.name}-link")
        try:
            os.link(partial, second)
        except FileExistsError:
            pass  # left by a kill
        except OSError as error:
            raise no_second_name(target, error) from error
        second.unlink()


def _replace_database(
    target: Path, image: Path, manifest: Manifest, state: StateDirectory, *, is_readable: bool, lock_timeout: float
) -> Path:
    """Put a copy of `image` in the place of `target`, and keep the old file under the name that is returned.

    A target that is a database, and so `is_readable`, is first made one whole file: every moment of the change of
    names has the old content or the new.
    """
    if is_readable:
        settle(target, lock_timeout=lock_timeout)
    with reporting_errors(target), partial_file(target) as (partial, descriptor):
        reject_no_room(target.parent, image.stat().st_size)
        take_over_ownership(descriptor, manifest, target)
        copy_image(image, descriptor)
        _reject_use(target)
        if is_readable:
            _reject_unsettled(target)
        aside = free_name(target, ("", *_SIDE_SUFFIXES))
        inode = os.fstat(descriptor).st_ino
        # All of them, also of a database that is one whole file: one that is made now belongs to the old file.
        moves = tuple((f"{target.name}{suffix}", f"{aside.name}{suffix}") for suffix in _SIDE_SUFFIXES)
        replace_files(target, Replacement(f"{partial.parent.name}/{partial.name}", inode, aside.name, moves), state)
    _warn_of_users(aside)
    return aside


def _reject_unsettled(target: Path) -> None:
    if left := side_files(target):
        raise BusyError(
            f"{left[0]} holds changes that are not in {target.name} yet: something has the database open",
            hint="stop the application and restore again; the database is as it was",
        )


def _warn_of_users(aside: Path) -> None:
    """Warn of processes that opened the old file in the last moment: they continue to write to it."""
    with reporting_errors(aside):
        using = holders(aside) if aside.exists() else set()
    if using:
        log.warning(
            "the old file was opened while it was replaced, and is in use",
            file=str(aside),
            processes=sorted(using),
            hint="stop the application, look for what it wrote there, and start it",
        )
