"""One snapshot in one store: its lock, its baseline, the uploads of its packs, and the commit."""

from __future__ import annotations

import math
import threading
from concurrent.futures import wait
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from backupd.backup.assembly import WrittenPack, assemble_manifest, describe_writer
from backupd.backup.baseline import Baseline, find_baseline
from backupd.backup.hang_detection import HINT, WatchedStore
from backupd.backup.results import (
    BackupResult,
    Outcome,
    UploadCheck,
    find_passed_over,
    history_warnings,
    recipients_warning,
    source_warnings,
)
from backupd.concurrency import WorkerThreads, start_call
from backupd.errors import BackupdError, StoreUnavailableError, TargetUnwritableError, limit_reached
from backupd.format.manifest import Manifest, PackEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from backupd.backup.assembly import Image
    from backupd.backup.results import SnapshotJob
    from backupd.capture.process import Capture, PackReady
    from backupd.repository import Repository
    from backupd.repository.archive import Archive

_TICK_SECONDS = 0.1


class StoreSnapshot:
    """One store's part in a snapshot: its lock, baseline, uploads and commit. Its errors end no other store's part.

    `prepare`, `finish` and the uploads run in threads that are left behind when the store hangs.
    """

    def __init__(self, job: SnapshotJob, repository: Repository) -> None:
        self.store = repository.store
        """The store itself, without the watch over it."""
        self._watched = WatchedStore(repository.store)
        self.archive = repository.through(self._watched).archive(job.database.name)
        self.baseline = Baseline(is_full=job.request.is_full)
        self.error: BackupdError | None = None
        self.uploads = Uploads(
            self.archive,
            job.settings.packs.upload_threads,
            is_given_up=lambda: self.error is not None,
            on_failure=self.fail,
        )
        self._job = job
        self._longest_unanswered_seconds = job.patience.longest_for(repository.store, job.settings.stores)
        self._steps: list[Future[None]] = []
        self._lock = threading.Lock()
        self._result: BackupResult | None = None
        self._held = ExitStack()

    def start(self, step: Callable[[StoreSnapshot], None]) -> Future[None]:
        """Run `step`, one of the methods, in a thread that can be left behind in a store that hangs."""
        call = start_call(partial(step, self), name="store-snapshot")
        self._steps.append(call)
        return call

    @property
    def running(self) -> list[Future[None]]:
        """The calls that have not ended, whether any thread waits for them or not."""
        return [*(step for step in self._steps if not step.done()), *self.uploads.running]

    def fail(self, error: BackupdError) -> None:
        """Give this store up for this run, unless it is done. The first error is kept.

        Frees the spool even of an upload that hangs, and lets no thread ask the store for more.
        """
        with self._lock:
            if self._result is None:
                self.error = self.error or error
                self._watched.abandon()
        self.uploads.release_all()

    def fail_if_silent(self, most_seconds: float = math.inf) -> None:
        """Give this store up when it has answered nothing for `most_seconds`, or for as long as any store may take."""
        silent_seconds, asked = self._watched.unanswered()
        if silent_seconds > min(most_seconds, self._longest_unanswered_seconds):
            message = f"{self.archive.url} has not answered for {silent_seconds:.0f} s ({asked})"
            self.fail(StoreUnavailableError(message, hint=HINT))

    @property
    def was_silent_seconds(self) -> float:
        """How long the store has not answered: until now, or until it reported that it cannot be reached."""
        return max(self._watched.unanswered()[0], self._watched.silent_before_error_seconds)

    def lock(self) -> None:
        """Lock the database in this store against other runs. Several stores are locked in the order of their URLs."""
        timeout = self._job.settings.capture.lock_timeout.total_seconds()
        try:
            self._held.enter_context(self.archive.lock(timeout=timeout))
        except BackupdError as error:
            self.fail(error)

    def prepare(self) -> None:
        """Find out what the snapshot builds on."""
        try:
            self.baseline = find_baseline(self.archive, is_full=self._job.request.is_full)
        except BackupdError as error:
            self.fail(error)

    def is_unchanged(self, looks_like: str | None) -> bool:
        """Whether `stat`, as `looks_like` says, shows that the store has the present state; this part is done then.

        The store has shown its newest snapshot with all its packs, it is the one that an earlier run left, and nothing
        asks for another one. A snapshot that another installation took proves nothing of the files here.
        """
        known, base = self._job.known.get(self.archive.url), self.baseline.base
        if known is None or base is None or known.fingerprint != looks_like:
            return False
        manifest = base.manifest
        is_own = manifest.writer_id == self.archive.repository.state.writer_id()
        if str(manifest.id) != known.snapshot_id or not is_own or len(base.lost):
            return False
        if self.baseline.needs_snapshot or self._job.request.needs_snapshot:
            return False
        try:
            result = self._result_of(
                manifest,
                manifest,
                outcome=Outcome.UNCHANGED,
                changed_pages=0,
                was_read=False,
                journal_mode=manifest.source.journal_mode,
            )
        except BackupdError as error:
            self.fail(error)
            return False
        with self._lock:
            if self.error is not None:
                return False
            self._result = result
        return True

    def finish(self, image: Image) -> None:
        """Wait for the uploads, then commit, or find that nothing changed."""
        try:
            packs = self.uploads.ended(tick_seconds=_TICK_SECONDS)
            if packs is not None:
                self._result = self._commit(image, packs)
        except BackupdError as error:
            self.fail(error)

    def _commit(self, image: Image, packs: Sequence[WrittenPack]) -> BackupResult:
        baseline, request = self.baseline, self._job.request
        base = baseline.base
        writer = describe_writer(image.pinned, self.archive.repository.state.writer_id(), self._job.database.path)
        # What was built from the log is confirmed by a snapshot of the database itself.
        is_confirmed = base is not None and (base.manifest.replayed is None or image.replayed is not None)
        needs_snapshot = bool(packs) or baseline.needs_snapshot or request.needs_snapshot or not is_confirmed
        if base is not None and not needs_snapshot and image.is_image_of(base.manifest):
            manifest, outcome = base.manifest, Outcome.UNCHANGED
            changed = stored = replaced = 0
            # They are the same; but the digests of blocks, which the first snapshot lacks, are beside them now.
            self.archive.catalog.keep_hashes(manifest.id, image.hashes)
        else:
            manifest = assemble_manifest(image, baseline, request, packs, writer, self.archive.database)
            self.archive.commit(manifest, image.hashes)
            outcome, changed, stored = Outcome.CREATED, manifest.changed_pages, manifest.stored_bytes
            replaced = 0 if base is None else base.damaged_packs
        return self._result_of(
            manifest,
            None if base is None else base.manifest,
            *source_warnings(image.pinned, self._job.database.path),
            *history_warnings(self.archive.url, baseline, writer, image.id),
            outcome=outcome,
            changed_pages=changed,
            stored_bytes=stored,
            replaced_packs=replaced,
            was_read=image.replayed is None,
            image=image.to_build_on(),
            is_schema_readable=image.pinned.is_schema_readable,
            journal_mode=image.pinned.facts.journal_mode,
            api_differs=image.api_differs,
        )

    def _result_of(self, manifest: Manifest, base: Manifest | None, *warnings: str, **facts: Any) -> BackupResult:
        """The result with `manifest` as the newest snapshot, which builds on `base`; `facts` are more of its fields."""
        passed_over = find_passed_over(self.archive, self.baseline)
        return BackupResult(
            database=self.archive.database,
            store=self.archive.url,
            id=manifest.id,
            page_size=manifest.page_size,
            page_count=manifest.page_count,
            upload_check=UploadCheck.of(manifest),
            passed_over=passed_over,
            warnings=(
                *recipients_warning(self.archive, manifest, base),
                *self.baseline.warnings(self.archive.url),
                *warnings,
                *(() if passed_over is None else passed_over.news),
            ),
            **facts,
        )

    def close(self) -> None:
        """Release the lock."""
        self._held.close()

    def result(self, duration_seconds: float) -> BackupResult:
        """The outcome, after all steps."""
        if self._result is None:
            error = self.error or BackupdError(f"the snapshot in {self.archive.url} was not finished")
            return BackupResult(
                database=self.archive.database,
                store=self.archive.url,
                outcome=Outcome.FAILED,
                duration_seconds=duration_seconds,
                error=error,
            )
        return replace(self._result, duration_seconds=duration_seconds)


class Uploads:
    """Sends packs of one snapshot to one store in the background, a few at once.

    `is_given_up` says when nothing more has to be sent; an expected failure goes to `on_failure`.
    """

    def __init__(
        self,
        archive: Archive,
        threads: int,
        *,
        is_given_up: Callable[[], bool],
        on_failure: Callable[[BackupdError], None],
    ) -> None:
        self.uploaded_bytes = 0
        self._archive = archive
        self._is_given_up = is_given_up
        self._on_failure = on_failure
        self._threads = WorkerThreads(threads, thread_name_prefix="upload")
        self._packs: list[SpooledPack] = []
        self._calls: list[Future[None]] = []
        self._unreleased: set[SpooledPack] = set()
        self._lock = threading.Lock()

    def add(self, pack: SpooledPack) -> None:
        """Send one pack when a thread is free."""
        self._packs.append(pack)
        with self._lock:
            self._unreleased.add(pack)
        self._calls.append(self._threads.submit(self._upload, pack))

    @property
    def waiting(self) -> int:
        """How many packs are in the spool for this store."""
        return len(self._unreleased)

    @property
    def running(self) -> list[Future[None]]:
        """The uploads that have not ended, which may hang in the store."""
        return [call for call in self._calls if not call.done()]

    def ended(self, *, tick_seconds: float) -> tuple[WrittenPack, ...] | None:
        """Wait for all uploads: the packs in their order, or None when the store is given up. Raises bugs only."""
        while not self._is_given_up():
            if not wait(self._calls, timeout=tick_seconds).not_done:
                if self._is_given_up():
                    return None
                for call in self._calls:
                    call.result()
                return tuple(pack.written for pack in sorted(self._packs, key=lambda pack: pack.order))
        return None

    def release_all(self) -> None:
        """Free the spool of all packs that wait, even of one whose upload hangs."""
        with self._lock:
            packs = [*self._unreleased]
        for pack in packs:
            self._release(pack)

    def drop(self) -> None:
        """Drop uploads that have not begun; after success there are none."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _upload(self, pack: SpooledPack) -> None:
        try:
            if not self._is_given_up():
                self._archive.put_pack(pack.written.entry, pack.file)
                with self._lock:
                    self.uploaded_bytes += pack.written.entry.stored_bytes
        except BackupdError as error:
            self._on_failure(error)
        except OSError as error:
            self._on_failure(spool_failure(error))
        finally:
            self._release(pack)

    def _release(self, pack: SpooledPack) -> None:
        with self._lock:
            if pack not in self._unreleased:
                return
            self._unreleased.remove(pack)
        pack.release()


class SpooledPack:
    """A finished pack in the spool, removed when the last store that takes it has it or has failed."""

    def __init__(self, pack: PackReady, takers: int, capture: Capture, *, is_encrypted: bool) -> None:
        self.file = pack.file
        self.order = pack.order
        entry = PackEntry(
            sha256=pack.sha256,
            stored_bytes=pack.file.stat().st_size,
            pages=len(pack.page_numbers) // 4,
            index_bytes=pack.index_bytes,
            index_hash=pack.index_hash,
            encryption="age" if is_encrypted else None,
        )
        self.written = WrittenPack(entry, pack.page_numbers)
        self._takers = takers
        self._capture = capture
        self._lock = threading.Lock()
        if not takers:
            self._remove()

    def release(self) -> None:
        """Note that one store no longer needs the file."""
        with self._lock:
            self._takers -= 1
            is_last = self._takers == 0
        if is_last:
            self._remove()

    def _remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self._capture.pack_left_spool()


def spool_failure(error: OSError) -> BackupdError:
    """Build the error for a spool that cannot be written or read, or for a limit that was reached there."""
    return limit_reached(error) or TargetUnwritableError(
        f"{error.filename or 'the spool'}: {error.strerror}",
        hint="check the space and the permissions of state_dir; the stores are as they were",
    )
