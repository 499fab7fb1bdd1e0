"""Take one snapshot of one database into every store: one capture feeds them all, and none can stop another."""

from __future__ import annotations

import math
import time
from concurrent.futures import wait
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from backupd.backup.hang_detection import Patience, SilentStores
from backupd.backup.pipeline import Comparison, Pipeline, share_streams
from backupd.backup.results import (
    BackupResult,
    KnownState,
    Outcome,
    Progress,
    SinceImage,
    SnapshotJob,
    SnapshotRequest,
    exit_code_of,
)
from backupd.backup.store_snapshot import StoreSnapshot, spool_failure
from backupd.capture.limits import CaptureRequest
from backupd.capture.process import Capture
from backupd.capture.unlocked import fingerprint
from backupd.errors import BackupdError, LostPacksError, StoreUnavailableError, as_backupd_error
from backupd.format.manifest import SnapshotKind
from backupd.live.intent import finish_interrupted
from backupd.store import canonical_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from backupd.capture.worker import Workers
    from backupd.config import Database, Settings
    from backupd.repository import Repository

__all__ = [
    "BackupResult",
    "KnownState",
    "Outcome",
    "Patience",
    "Progress",
    "SnapshotRequest",
    "back_up",
    "exit_code_of",
]

_SLOT_BYTES = 8 << 20
_FEWEST_SLOTS = 4
_FEW_PACKS = 256
_FULL_PACK_BYTES = 8 << 20
"""With far more packs than the image needs, the database is read, which stores pages of scattered packs again."""
_TICK_SECONDS = 0.1
_GRACE_SECONDS = 1.5
_PATIENCE = Patience()
_SILENT_STORES = SilentStores()


def back_up(
    database: Database,
    repositories: Sequence[Repository],
    settings: Settings,
    *,
    request: SnapshotRequest,
    on_progress: Callable[[Progress], None],
    known: Mapping[str, KnownState] | None = None,
    since: SinceImage | None = None,
    patience: Patience = _PATIENCE,
    workers: Workers | None = None,
) -> list[BackupResult]:
    """Take one snapshot of `database` into each of `repositories`, with the same id in all; a result for each.

    The repositories share one state directory. Expected failures are results, never exceptions. Repeatable. A store
    that lost acknowledged packs while the snapshot was written gets a second try, which writes their pages again. One
    that stops answering is given up as `patience` says, and the threads that wait for it are left behind.

    `known` has, by store (URL), the state that an earlier run has left there: the database is not read for a store that
    still has it where `stat` shows that the files have not changed. Nor is it read, unless the request says so, when
    all stores have the image in `since`: the snapshot is built from that and the commits since. The capture takes one
    of `workers`, which a run over several databases keeps; without them, it starts a process of its own.
    """
    job = SnapshotJob(database, settings, request, known or {}, since, patience, on_progress)
    results = _Attempt(job, repositories, workers).run()
    pairs = zip(repositories, results, strict=True)
    lost = [repository for repository, result in pairs if isinstance(result.error, LostPacksError)]
    if lost:
        again = iter(_Attempt(job, lost, workers).run())
        results = [next(again) if isinstance(result.error, LostPacksError) else result for result in results]
    return results


class _Attempt:
    """One try to take a snapshot into several stores, with one capture for all of them."""

    def __init__(self, job: SnapshotJob, repositories: Sequence[Repository], workers: Workers | None) -> None:
        self._job = job
        self._workers = workers
        self._state = repositories[0].state
        self._parts = [StoreSnapshot(job, repository) for repository in repositories]

    def run(self) -> list[BackupResult]:
        started = time.monotonic()
        lock_timeout = self._job.settings.capture.lock_timeout.total_seconds()
        try:
            if self._job.request.kind is SnapshotKind.REGULAR:  # a restore did so itself, and has the database open
                finish_interrupted(self._job.database.file(), self._state, lock_timeout=lock_timeout)
            with self._state.spool() as spool, ExitStack() as held:
                looks_like = fingerprint(self._job.database.path, now=datetime.now(UTC)) if self._job.known else None
                # A process that captures makes itself ready while the stores are asked, if it is likely to be needed.
                early = None if self._looks_unchanged(looks_like) else held.enter_context(Capture(self._workers))
                ready = [part for part in self._prepared() if not part.is_unchanged(looks_like)]
                if ready:
                    capture = early or held.enter_context(Capture(self._workers))
                    try:
                        self._capture(capture, ready, spool)
                    except BackupdError as error:
                        # Before the spool goes, or an upload that misses its file would be the first to fail.
                        for part in ready:
                            part.fail(error)
        except (BackupdError, OSError, MemoryError) as error:
            for part in self._parts:
                part.fail(spool_failure(error) if isinstance(error, OSError) else as_backupd_error(error))
        finally:
            for part in self._parts:
                part.uploads.drop()
            # A directory store removes its temporary file when it may finish; a store that hangs is not waited for.
            wait([call for part in self._parts for call in part.running], timeout=_GRACE_SECONDS)
            for part in self._parts:
                part.close()
        self._note_silent()
        return [part.result(time.monotonic() - started) for part in self._parts]

    def _looks_unchanged(self, looks_like: str | None) -> bool:
        """Whether an earlier run left each store the state that `stat` shows now; the stores may say otherwise."""
        known = [self._job.known.get(part.archive.url) for part in self._parts]
        return all(each is not None and each.fingerprint == looks_like for each in known)

    def _prepared(self) -> list[StoreSnapshot]:
        """Lock the database in the stores, and find what the snapshot builds on; return the parts without an error."""
        patience = self._job.patience
        for part in self._parts:
            rest = patience.rest
            if reason := _SILENT_STORES.reason_to_spare(part.store, self._job.database.name, rest_seconds=rest):
                part.fail(reason)
        asked = [part for part in self._parts if part.error is None]
        for part in sorted(asked, key=lambda part: canonical_url(part.archive.url)):
            part.lock()

        def report() -> None:
            self._job.on_progress(Progress(0, 0, 0))

        # All stores at once, so that a slow one costs its own time and no other's.
        return _all_do(StoreSnapshot.prepare, asked, report, patience.others_wait)

    def _capture(self, capture: Capture, parts: Sequence[StoreSnapshot], spool: Path) -> None:
        """Run the capture, hand its packs to the stores, and let each of them commit."""
        settings, path = self._job.settings, str(self._job.database.file())
        max_lock_seconds = settings.capture.max_lock.total_seconds()
        comparison = Comparison(self._state, path, max_lock_seconds=max_lock_seconds, now=datetime.now(UTC))
        since = self._job.since if self._can_be_replayed(parts) else None
        streams = share_streams(parts, spool, relocates=since is None)
        request = CaptureRequest(
            path=path,
            spool=str(spool),
            streams=[stream.base for stream in streams],
            level=settings.packs.compression_level,
            slots=max(_FEWEST_SLOTS, settings.packs.spool_limit // _SLOT_BYTES),
            lock_timeout=settings.capture.lock_timeout.total_seconds(),
            max_lock=max_lock_seconds,
            recipients=settings.encryption.recipients,
            compare_seconds=comparison.most_seconds,
            trusts_file=not comparison.differs,
            log=None if since is None else since.log_source(),
        )
        pipeline = Pipeline(request, streams, capture, comparison, settings.capture.max_wal_growth, since)
        deadline_seconds = settings.capture.deadline.total_seconds()
        report = self._job.on_progress
        image = pipeline.run(spool / "hashes", deadline_seconds=deadline_seconds, on_progress=report)
        _all_do(partial(StoreSnapshot.finish, image=image), parts, lambda: report(pipeline.progress))

    def _can_be_replayed(self, parts: Sequence[StoreSnapshot]) -> bool:
        """Whether each store has, whole, the image that the commits since would be added to."""
        since, request = self._job.since, self._job.request
        if since is None or request.must_read or request.is_full or request.kind is not SnapshotKind.REGULAR:
            return False
        image = since.image
        of_image = (image.page_size, image.page_count, image.digest)
        return all(
            base is not None
            and (base.manifest.page_size, base.manifest.page_count, base.manifest.image_digest) == of_image
            and not base.lost
            and len(base.manifest.packs) <= _FEW_PACKS + 2 * base.manifest.image_bytes // _FULL_PACK_BYTES
            and not part.baseline.needs_snapshot
            for part in parts
            for base in [part.baseline.base]
        )

    def _note_silent(self) -> None:
        """Record which stores did not answer, so that the next runs skip them for a while."""
        for part in self._parts:
            if part.error is None:
                _SILENT_STORES.forget(part.store)
                continue
            was_silent = part.was_silent_seconds > self._job.patience.others_wait
            if was_silent and isinstance(part.error, StoreUnavailableError):
                _SILENT_STORES.note(part.store, self._job.database.name, part.running)


def _all_do(
    step: Callable[[StoreSnapshot], None],
    parts: Sequence[StoreSnapshot],
    meanwhile: Callable[[], None],
    others_wait_seconds: float = math.inf,
) -> list[StoreSnapshot]:
    """Run `step` on all `parts` at once, and wait; returns the parts that completed it without failing.

    `meanwhile` is called now and then, and once at the end. A store that is silent for `others_wait_seconds` when
    another part is ready is given up.
    """
    doing = {part: part.start(step) for part in parts if part.error is None}
    while waiting := [call for part, call in doing.items() if part.error is None and not call.done()]:
        wait(waiting, timeout=_TICK_SECONDS)
        is_waited_for = any(part.error is None and call.done() for part, call in doing.items())
        for part in doing:
            part.fail_if_silent(others_wait_seconds if is_waited_for else math.inf)
        meanwhile()
    meanwhile()
    for call in doing.values():
        if call.done():
            call.result()  # an unexpected exception is a bug, and must not look like the store's
    return [part for part in doing if part.error is None]
