"""One store's part in a snapshot."""

from __future__ import annotations

import math
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from backupd import __version__
from backupd.backup.assembly import assemble, count_changed
from backupd.backup.remarks import remarks, source_remarks
from backupd.backup.results import BackupResult, Outcome
from backupd.backup.silence import HINT, WatchedStore
from backupd.backup.spooled import spool_failure
from backupd.base import find_base
from backupd.cache import map_hashes
from backupd.capture.process import StreamBase
from backupd.cleaning import pages_to_relocate
from backupd.errors import BackupdError, StoreRefusedError, StoreUnavailableError
from backupd.format.manifest import Manifest, Writer
from backupd.format.pagemap import encode_page_map
from backupd.proofs import read_proofs
from backupd.receipt import receipt_of
from backupd.repository import Repository
from backupd.survey import History

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from backupd.backup.results import Wish
    from backupd.backup.silence import Patience
    from backupd.backup.spooled import Image, SpooledPack
    from backupd.base import BaseSnapshot
    from backupd.capture.process import Pinned
    from backupd.config import Database, Settings
    from backupd.state import StateDirectory
    from backupd.store import Store
    from backupd.survey import Survey

_TICK_SECONDS = 0.1
_ANY_PAGE_SIZE = 512


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
        self.stream = 0
        self.error: BackupdError | None = None
        self.uploaded_bytes = 0
        self._database = database
        self._state = state
        self._longest_silence_seconds = patience.longest_for(store, settings.stores)
        self._lock_timeout = settings.capture.lock_timeout.total_seconds()
        self._wish = wish
        self._base: BaseSnapshot | None = None
        self._history = History((), ())
        self._is_newest_unreadable = False
        self._unread_drills: BackupdError | None = None
        self._relocate: list[int] = []
        self._packs: list[SpooledPack] = []
        self._uploads = ThreadPoolExecutor(settings.packs.upload_threads, thread_name_prefix="upload")
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

        self._steps.append(ended)
        threading.Thread(target=run, name="store-part", daemon=True).start()
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
        """Find out what the snapshot builds on. Writes nothing: the source may turn out to be unusable."""
        try:
            is_repository = self.repository.exists()
            survey = self.repository.survey(self._database.name)
            if not survey.manifests:
                return
            if not is_repository:
                self.repository.create_if_missing()  # somebody removed the one object that says what this is
            self._history = self.repository.history(self._database.name, survey)
            if self._history.lacks_some_of(survey):
                # Another host removes snapshots. It keeps the newest, which may be newer than those that were listed.
                survey = self.repository.survey(self._database.name)
                self._history = self.repository.history(self._database.name, survey)
            newest = self._history.newest
            self._is_newest_unreadable = _is_newest_unreadable(self._history, survey)
            if isinstance(newest, Manifest):
                condemned = self._condemned_packs(newest, survey)
                self._base = find_base(self.repository, newest, survey, condemned=condemned)
                self._relocate = pages_to_relocate(newest.packs, self._base.page_map, newest.page_size)
        except BackupdError as error:
            self.fail(error)

    def _condemned_packs(self, newest: Manifest, survey: Survey) -> Collection[str]:
        try:
            return read_proofs(self.repository, self._database.name, survey).condemned_packs(newest)
        except StoreRefusedError as error:  # keys that may do no more than put are enough for a snapshot
            self._unread_drills = error
            return ()

    @property
    def _compares(self) -> bool:
        return self._base is not None and not self._wish.is_full

    def stream_key(self) -> object:
        """Equal for parts that need the same pages stored."""
        if self._base is None or not self._compares:
            return None
        manifest = self._base.manifest
        return (manifest.page_size, manifest.image_digest, self._base.lost.tobytes(), tuple(self._relocate))

    def stream_base(self, expected: Path) -> StreamBase:
        """What this part's stream is compared with; `expected` is a file that may be written for it."""
        if self._base is None or not self._compares:
            return StreamBase(page_size=_ANY_PAGE_SIZE, hashes=None, relocate=())
        file = self._base.hashes
        if len(self._base.lost):
            hashes = self._base.read_hashes().copy()
            hashes[self._base.lost] = 0
            expected.write_bytes(hashes.tobytes())
            file = expected
        return StreamBase(page_size=self._base.manifest.page_size, hashes=str(file), relocate=self._relocate)

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
                self.repository.put_pack(self._database.name, pack.file, pack.written.entry)
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
        base = self._base
        if base is not None and not self._needs_snapshot and image.is_that_of(base.manifest):
            manifest, outcome = base.manifest, Outcome.UNCHANGED
            changed = stored = replaced = 0
        else:
            manifest = self._manifest(image)
            self.repository.commit(manifest, image.hashes)
            outcome, changed, stored = Outcome.CREATED, manifest.changed_pages, manifest.stored_bytes
            replaced = 0 if base is None else base.damaged_packs
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
            is_schema_readable=image.pinned.facts.tables is not None,
            warnings=(
                *self._told_of_unread(),
                *source_remarks(image.pinned.facts, self._database.path),
                *remarks(self.repository.url, self._history, self._describe_writer(image.pinned), image.id),
            ),
        )

    @property
    def _needs_snapshot(self) -> bool:
        """Whether there is a new one even of an unchanged database: the last one cannot be restored as it should."""
        is_damaged = self._base is not None and self._base.damaged_packs > 0
        return bool(self._packs) or is_damaged or self._is_newest_unreadable or self._wish.needs_snapshot

    def _told_of_unread(self) -> Iterator[str]:
        unread = self._base.unread if self._base is not None and self._compares else None
        if unread is not None:
            yield (
                f"pages that had not changed were stored again in {self.repository.url}, because the state directory "
                f"does not know the snapshot before this one: {unread.message}; keep state_dir"
            )
        if self._unread_drills is not None:
            yield (
                "what test restores have found cannot be read, so damaged packs are not stored again by themselves: "
                f"{self._unread_drills.message}"
            )

    def _manifest(self, image: Image) -> Manifest:
        pinned, newest = image.pinned, self._history.newest
        base = self._base if self._base is not None and self._base.manifest.page_size == pinned.page_size else None
        builds_on = base if self._compares else None
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
            base=newest.id if newest else None,
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
            host=socket.gethostname(),
            path=os.fsencode(self._database.path).decode(errors="backslashreplace"),
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


def _is_newest_unreadable(history: History, survey: Survey) -> bool:
    """Whether the manifest that the store got last is damaged: what it said of its own place cannot be known."""
    if history.newest is None:
        return bool(history.damaged)
    put_at = survey.manifests[history.newest.id].modified_at
    return any(survey.manifests[damaged.id].modified_at > put_at for damaged in history.damaged)
