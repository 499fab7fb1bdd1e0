"""One store's part in a snapshot."""

from __future__ import annotations

import math
import os
import socket
import threading
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from backupd import __version__
from backupd.backup.assembly import assemble, count_changed
from backupd.backup.ground import Ground, find_ground
from backupd.backup.recipients import remark_on_recipients
from backupd.backup.remarks import passed_over, remarks, source_remarks
from backupd.backup.results import BackupResult, Outcome
from backupd.backup.silence import HINT, WatchedStore
from backupd.backup.spooled import spool_failure
from backupd.cache import map_hashes
from backupd.errors import BackupdError, StoreUnavailableError
from backupd.format.manifest import Manifest, Writer
from backupd.format.pagemap import encode_page_map
from backupd.receipt import receipt_of
from backupd.repository import Repository
from backupd.repository.writing import commit, put_pack
from backupd.threads import WorkerThreads, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.backup.results import Wish
    from backupd.backup.silence import Patience
    from backupd.backup.spooled import Image, SpooledPack
    from backupd.capture.process import Pinned
    from backupd.config import Database, Settings
    from backupd.state import StateDirectory
    from backupd.store import Store

_TICK_SECONDS = 0.1
_LONGEST_HOST = 255


class StorePart:
    """One store's part in a snapshot: what it has, what it is sent, what becomes of it. Its errors stay here."""

    def __init__(
        self,
        database: Database,
        store: Store,
        state: StateDirectory,
        settings: Settings,
        wish: Wish,
        patience: Patience,
    ) -> None:
        self._watched = WatchedStore(store)
        self.repository = Repository(self._watched, state, settings.open_encryption())
        self.ground = Ground(wish.is_full)
        self.stream = 0
        self.error: BackupdError | None = None
        self.uploaded_bytes = 0
        self._database = database
        self._state = state
        self._longest_silence_seconds = patience.longest_for(store, settings.stores)
        self._lock_timeout = settings.capture.lock_timeout.total_seconds()
        self._wish = wish
        self._packs: list[SpooledPack] = []
        self._uploads = WorkerThreads(settings.packs.upload_threads, thread_name_prefix="upload")
        self._pending: list[Future[None]] = []
        self._steps: list[Future[None]] = []
        self._outstanding: set[SpooledPack] = set()
        self._lock = threading.Lock()
        self._result: BackupResult | None = None
        self._held = ExitStack()

    def drop(self) -> list[Future[None]]:
        """Drop uploads that have not begun, which after success are none; what cannot be stopped, as `running`."""
        self._uploads.shutdown(wait=False, cancel_futures=True)
        return self.running

    def close(self) -> None:
        """Let go of the lock."""
        self._held.close()

    def start(self, step: Callable[[], None]) -> Future[None]:
        """Do `step`, one of this part's methods, in a thread that can be left behind in a store that hangs."""
        ended: Future[None] = Future()

        def run() -> None:
            try:
                step()
            except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
                ended.set_exception(error)
            else:
                ended.set_result(None)

        start_thread(run, name="store-part")
        self._steps.append(ended)
        return ended

    @property
    def running(self) -> list[Future[None]]:
        """What this part still does, until the store answers, whether anybody waits for it or not."""
        return [each for each in (*self._steps, *self._pending) if not each.done()]

    def fail(self, error: BackupdError) -> None:
        """Give this store up for this run, unless it is done. The first error is kept.

        Frees the spool even of an upload that hangs, and lets no thread ask the store for more.
        """
        with self._lock:
            if self._result is None:
                self.error = self.error or error
                self._watched.abandon()
            outstanding = [*self._outstanding]
        for pack in outstanding:
            self._release(pack)

    def fail_if_silent(self, most_seconds: float = math.inf) -> None:
        """Give this store up when it has answered nothing that it was asked for so long, or for the longest of all."""
        silent_seconds, asked = self._watched.silence()
        if silent_seconds > min(most_seconds, self._longest_silence_seconds):
            self.fail(
                StoreUnavailableError(
                    f"{self.repository.url} has not answered for {silent_seconds:.0f} s ({asked})", hint=HINT
                )
            )

    @property
    def was_silent_seconds(self) -> float:
        """For how long the store has been silent: now, or before it said itself that it cannot be reached."""
        return max(self._watched.silence()[0], self._watched.silent_before_error_seconds)

    def lock(self) -> None:
        """Lock the database in this store against other runs. Several stores are locked in the order of their URLs."""
        try:
            self._held.enter_context(self.repository.lock(self._database.name, timeout=self._lock_timeout))
        except BackupdError as error:
            self.fail(error)

    def prepare(self) -> None:
        """Find out what the snapshot builds on."""
        try:
            self.ground = find_ground(self.repository, self._database.name, is_full=self._wish.is_full)
        except BackupdError as error:
            self.fail(error)

    def upload(self, pack: SpooledPack) -> None:
        """Send one pack of this part's stream, in the background."""
        self._packs.append(pack)
        with self._lock:
            self._outstanding.add(pack)
        self._pending.append(self._uploads.submit(self._upload, pack))

    @property
    def waiting_packs(self) -> int:
        """How many packs wait in the spool for this store."""
        return len(self._outstanding)

    def _upload(self, pack: SpooledPack) -> None:
        try:
            if self.error is None:
                put_pack(self.repository, self._database.name, pack.file, pack.written.entry)
                with self._lock:
                    self.uploaded_bytes += pack.written.entry.stored_bytes
        except BackupdError as error:
            self.fail(error)
        except OSError as error:
            self.fail(spool_failure(error))
        finally:
            self._release(pack)

    def _release(self, pack: SpooledPack) -> None:
        with self._lock:
            if pack not in self._outstanding:
                return
            self._outstanding.remove(pack)
        pack.taken()

    def finish(self, image: Image) -> None:
        """Wait for the uploads, then commit, or find that nothing changed."""
        try:
            while self.error is None and wait(self._pending, timeout=_TICK_SECONDS).not_done:
                pass
            if self.error is None:
                for upload in self._pending:
                    upload.result()  # what nobody expected is a bug, and must not look like a store's
                self._result = self._commit(image)
        except BackupdError as error:
            self.fail(error)

    def _commit(self, image: Image) -> BackupResult:
        base = self.ground.base
        needs_snapshot = bool(self._packs) or self.ground.needs_snapshot or self._wish.needs_snapshot
        if base is not None and not needs_snapshot and image.is_that_of(base.manifest):
            manifest, outcome = base.manifest, Outcome.UNCHANGED
            changed = stored = replaced = 0
        else:
            manifest = self._manifest(image)
            commit(self.repository, manifest, image.hashes)
            outcome, changed, stored = Outcome.CREATED, manifest.changed_pages, manifest.stored_bytes
            replaced = 0 if base is None else base.damaged_packs
        odd = passed_over(self._database.name, self.repository.url, self.ground, self._state)
        return BackupResult(
            database=self._database.name,
            store=self.repository.url,
            outcome=outcome,
            id=manifest.id,
            page_size=manifest.page_size,
            page_count=manifest.page_count,
            changed_pages=changed,
            stored_bytes=stored,
            receipt=receipt_of(manifest),
            replaced_packs=replaced,
            is_schema_readable=image.pinned.is_schema_readable,
            api_differs=image.api_differs,
            passed_over=odd,
            warnings=(
                *filter(None, [self._remark_on_recipients(manifest)]),
                *self.ground.warnings(self.repository.url),
                *source_remarks(image.pinned, self._database.path),
                *remarks(self.repository.url, self.ground, self._describe_writer(image.pinned), image.id),
                *(() if odd is None else odd.news),
            ),
        )

    def _remark_on_recipients(self, manifest: Manifest) -> str | None:
        base = None if self.ground.base is None else self.ground.base.manifest
        return remark_on_recipients(
            manifest, base, self.repository.url, self.repository.encryption.recipients, self._state
        )

    def _manifest(self, image: Image) -> Manifest:
        pinned, newest = image.pinned, self.ground.history.newest
        base = self.ground.base
        if base is not None and base.manifest.page_size != pinned.page_size:
            base = None
        builds_on = None if self._wish.is_full else base
        packs, page_map = assemble(
            pinned.page_size,
            pinned.page_count,
            builds_on.manifest.packs if builds_on else (),
            builds_on.page_map if builds_on else None,
            [pack.written for pack in sorted(self._packs, key=lambda pack: pack.order)],
        )
        return Manifest(
            id=image.id,
            sequence=newest.sequence + 1 if newest else 1,
            base=self.ground.base.manifest.id if self.ground.base else newest.id if newest else None,
            database=self._database.name,
            kind=self._wish.kind,
            tags=self._wish.tags,
            page_size=pinned.page_size,
            page_count=pinned.page_count,
            changed_pages=count_changed(map_hashes(image.hashes), base.read_hashes() if base else None),
            stored_bytes=sum(pack.written.entry.stored_bytes for pack in self._packs),
            image_digest=image.digest,
            packs=packs,
            page_map=encode_page_map(page_map),
            source=pinned.facts,
            writer=self._describe_writer(pinned),
        )

    def _describe_writer(self, pinned: Pinned) -> Writer:
        return Writer(
            id=self._state.writer_id(),
            host=_text(socket.gethostname())[:_LONGEST_HOST],
            path=_text(self._database.path),
            uid=pinned.uid,
            gid=pinned.gid,
            mode=pinned.mode,
            backupd_version=__version__,
        )

    def result(self, duration_seconds: float) -> BackupResult:
        """What became of it, after everything."""
        if self._result is None:
            error = self.error or BackupdError(f"the snapshot in {self.repository.url} was not finished")
            return BackupResult(
                database=self._database.name,
                store=self.repository.url,
                outcome=Outcome.FAILED,
                duration_seconds=duration_seconds,
                error=error,
            )
        return replace(self._result, duration_seconds=duration_seconds)


def _text(name: str | os.PathLike[str]) -> str:
    """What the system calls something, as text that every reader takes, with escapes for bytes that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
