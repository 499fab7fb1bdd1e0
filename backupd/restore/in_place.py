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

from backupd.capture.source import warm_file_cache
from backupd.errors import BusyError, NotADatabaseError, UsageError
from backupd.live.destination import LiveDatabase, settle
from backupd.live.intent import Replacement, announced_transaction, finish_interrupted, replace_files
from backupd.live.locks import holders
from backupd.logs import log
from backupd.restore.image import Progress, write_image
from backupd.restore.placing import (
    copy_image,
    free_name,
    partial_file,
    reject_no_hard_links,
    reject_no_room,
    reporting_errors,
    side_files,
    take_over_ownership,
)
from backupd.restore.plan import (
    LookAtTarget,
    Plan,
    Way,
    look_at,
    plan,
    reject_change,
    reject_foreign_owner,
    reject_running,
    reject_small_disk,
    reject_use,
)
from backupd.restore.to_file import restore_to_file
from backupd.trust import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Manifest
    from backupd.repository import Repository
    from backupd.state import StateDirectory

    TakeSafetySnapshot = Callable[[], SnapshotId]
    """Takes a snapshot of the database as it is now, or raises why there is none."""

_TRIES = 5
_LEAST_SAVING_SECONDS = 3.0
_EXPECTED_TIMES = 3
_SIDE_SUFFIXES = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceResult:
    """What was done. `safety_snapshot` is what `backupd undo` goes back to; `kept_as` the old file, if it was replaced.

    `pause_seconds` is the longest that the application was kept waiting: its writers, and in rollback mode its readers
    too; None where it was stopped.
    """

    plan: Plan
    safety_snapshot: SnapshotId | None
    kept_as: Path | None
    pause_seconds: float | None
    duration_seconds: float


class InPlaceRestore:
    """One restore of `manifest` into `target`. Making it touches nothing.

    Use `planned` for the plan, and inside its block `carry_out`, or not. Both raise `BackupdError`.
    """

    def __init__(
        self,
        repository: Repository,
        manifest: Manifest,
        target: Path,
        state: StateDirectory,
        *,
        must_replace: bool,
        is_app_stopped: bool,
        lock_timeout: float,
    ) -> None:
        self._repository = repository
        self._manifest = manifest
        self._target = target
        self._state = state
        self._must_replace = must_replace
        self._is_app_stopped = is_app_stopped
        self._lock_timeout = lock_timeout
        self._image: Path | None = None
        self._seen: os.stat_result | None = None

    @contextmanager
    def planned(self, on_progress: Callable[[Progress], None], *, is_dry_run: bool) -> Iterator[Plan]:
        """Fetch and prove the image into scratch, gone with the block, and say what restoring it would do.

        Unless in a dry run, a replacement that nobody asked for, or whose application is not stopped, is refused.
        """
        finish_interrupted(self._target, self._state, lock_timeout=self._lock_timeout)
        if not is_dry_run:
            self._settle_hot_journal()
        with self._state.spool() as spool:
            look = look_at(
                self._target,
                self._manifest,
                scratch=spool,
                must_replace=self._must_replace,
                lock_timeout=self._lock_timeout,
            )
            self._seen = status_of(os.fspath(self._target))
            if not is_dry_run:
                self._reject_unstopped(look)
            reject_no_room(spool, self._manifest.image_bytes)
            self._image = spool / "image.db"
            fetched_bytes = _fetch(self._repository, self._manifest, self._image, on_progress)
            yield plan(self._repository, self._manifest, look, self._image, fetched_bytes)

    def _settle_hot_journal(self) -> None:
        """Roll back what a crashed application left, as it would itself: then there is something to save."""
        with reporting_errors(self._target):
            is_hot = self._target.is_file() and any(file.name.endswith("-journal") for file in side_files(self._target))
        if is_hot:
            with suppress(NotADatabaseError):
                settle(self._target, lock_timeout=self._lock_timeout)

    def _reject_unstopped(self, look: LookAtTarget) -> None:
        if look.way is not Way.REPLACEMENT:
            return
        if not self._must_replace:
            reject_running(look)
        if not self._is_app_stopped:
            raise UsageError(
                f"replacing {self._target} needs the application to be stopped, and SQLite cannot tell: "
                "an idle connection in rollback mode is invisible",
                hint="stop the application, and say so with --app-stopped",
            )
        reject_foreign_owner(self._target)
        reject_use(self._target)
        reject_no_hard_links(self._target)

    def carry_out(
        self,
        planned: Plan,
        take_safety_snapshot: TakeSafetySnapshot | None,
        on_progress: Callable[[int, int], None],
    ) -> InPlaceResult:
        """Do what `planned` says; `on_progress` gets bytes done and bytes in all of a live restore.

        When the safety snapshot fails, its error comes out and nothing was changed.
        """
        started = time.monotonic()
        match planned.way:
            case Way.LIVE:
                result = self._restore_live(planned, take_safety_snapshot, on_progress)
            case Way.REPLACEMENT:
                result = self._restore_by_replacement(planned, take_safety_snapshot)
            case Way.NEW_FILE:
                restore_to_file(
                    self._repository, self._manifest, self._target, force=False, as_source=True, on_progress=_ignore
                )
                result = _result(planned)
        return replace(result, duration_seconds=time.monotonic() - started)

    def _restore_live(
        self,
        planned: Plan,
        take_safety_snapshot: TakeSafetySnapshot | None,
        on_progress: Callable[[int, int], None],
    ) -> InPlaceResult:
        assert self._image is not None and planned.now is not None  # noqa: PT018, S101
        page_size = planned.then.page_size
        # Longer than it should take, and yet not so long that a store that hangs stops the application.
        most_seconds = max(_LEAST_SAVING_SECONDS, _EXPECTED_TIMES * (planned.saving_seconds or 0.0))
        safety: SnapshotId | None = None
        if not planned.now.is_wal:
            warm_file_cache(os.fspath(self._target))  # SQLite copies all of it into its journal under the lock
        with LiveDatabase(self._target, lock_timeout=self._lock_timeout) as database:
            self._reject_another_file()
            if take_safety_snapshot is not None:
                saved_version = database.version()
                safety = take_safety_snapshot()
            with database.opened(self._image) as image:
                for _ in range(_TRIES):
                    with ExitStack() as announcement:
                        with database.writers_waiting(most_seconds=most_seconds):
                            version = database.version()
                            reject_change(planned, database.identity())
                            # What was written since then is saved too, while writers wait: undo brings all of it back.
                            if take_safety_snapshot is not None and version != saved_version:
                                saved_version = version
                                safety = take_safety_snapshot()
                            reject_small_disk(self._target, planned.now, self._manifest)
                            with reporting_errors(self._target):
                                announcement.enter_context(announced_transaction(self._target, self._state))
                        is_done = database.replace_content(
                            image, version, lambda done, pages: on_progress(done * page_size, pages * page_size)
                        )
                    if is_done:
                        return _result(planned, safety_snapshot=safety, pause_seconds=database.pause_seconds)
        raise BusyError(
            f"{self._target} was written again before each of {_TRIES} safety snapshots was stored",
            hint="stop the application for a moment, or try again when the stores are faster; nothing was changed",
        )

    def _restore_by_replacement(self, planned: Plan, take_safety_snapshot: TakeSafetySnapshot | None) -> InPlaceResult:
        assert self._image is not None  # noqa: S101
        # What is no database cannot be captured: the old file itself, which is kept, is what there is to go back to.
        is_readable = planned.now is not None
        safety = take_safety_snapshot() if take_safety_snapshot is not None and is_readable else None
        reject_use(self._target)
        self._reject_another_file()
        if is_readable:
            # One whole file, so that every moment of the change of names has the old content or the new.
            settle(self._target, lock_timeout=self._lock_timeout)
        with reporting_errors(self._target), partial_file(self._target) as (partial, descriptor):
            reject_no_room(self._target.parent, self._manifest.image_bytes)
            take_over_ownership(descriptor, self._manifest, self._target)
            copy_image(self._image, descriptor)
            reject_use(self._target)
            self._reject_unsettled(is_readable=is_readable)
            aside = free_name(self._target, ("", *_SIDE_SUFFIXES))
            inode = os.fstat(descriptor).st_ino
            # All of them, also of a database that is one whole file: what somebody makes now belongs to the old one.
            image = f"{partial.parent.name}/{partial.name}"
            replace_files(self._target, Replacement(image, inode, aside.name, self._moves(aside)), self._state)
        self._tell_of_users(aside)
        return _result(planned, safety_snapshot=safety, kept_as=aside)

    def _reject_another_file(self) -> None:
        """Refuse what has taken the place of the file that the plan was made for."""
        now = status_of(os.fspath(self._target))
        if self._seen is None or now is None or not os.path.samestat(self._seen, now):
            raise UsageError(
                f"{self._target} is not the file any more that the plan was made for",
                hint="look at the plan again: run the same command once more",
            )

    def _tell_of_users(self, aside: Path) -> None:
        """Somebody who opened the old file in the last moment goes on with it, unless told."""
        with reporting_errors(aside):
            using = holders(aside) if aside.exists() else set()
        if using:
            log.warning(
                "the old file was opened while it was replaced, and is in use",
                file=str(aside),
                processes=sorted(using),
                hint="stop the application, look for what it wrote there, and start it",
            )

    def _moves(self, aside: Path) -> tuple[tuple[str, str], ...]:
        return tuple((f"{self._target.name}{suffix}", f"{aside.name}{suffix}") for suffix in _SIDE_SUFFIXES)

    def _reject_unsettled(self, *, is_readable: bool) -> None:
        if is_readable and (left := side_files(self._target)):
            raise BusyError(
                f"{left[0]} holds changes that are not in {self._target.name} yet: something has the database open",
                hint="stop the application and restore again; the database is as it was",
            )


def _fetch(repository: Repository, manifest: Manifest, image: Path, on_progress: Callable[[Progress], None]) -> int:
    with reporting_errors(image):
        descriptor = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return write_image(repository, manifest, image, descriptor, on_progress)
        finally:
            os.close(descriptor)


def _result(
    planned: Plan,
    *,
    safety_snapshot: SnapshotId | None = None,
    kept_as: Path | None = None,
    pause_seconds: float | None = None,
) -> InPlaceResult:
    return InPlaceResult(
        plan=planned,
        safety_snapshot=safety_snapshot,
        kept_as=kept_as,
        pause_seconds=pause_seconds,
        duration_seconds=0.0,
    )


def _ignore(_: Progress) -> None:
    """The image has been fetched once already, so the second time is quick."""
