"""The image of a restore point, out of packs and segments: fetched in parallel, and proven before it is used."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backupd.concurrency import worker_threads
from backupd.errors import BackupdError, DamageError
from backupd.format.pagemap import ImageCheck, image_digest
from backupd.live.soundness import why_unreadable
from backupd.restore.replay import Replaying, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from backupd.format.manifest import Manifest, PackEntry
    from backupd.format.pagemap import PageHashes
    from backupd.repository.archive import Archive, StoredPack
    from backupd.repository.moments import Replay, RestorePoint

_FETCHERS = 4
"""Each holds a pack as it is stored, and one of its frames decompressed."""

_FLUSHED_AT_ONCE_BYTES = 128 << 20
_SNAPSHOTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of writing an image: bytes written, bytes in all, and bytes of packs fetched for them."""

    restored_bytes: int
    image_bytes: int
    fetched_bytes: int


def write_image(point: RestorePoint, file: Path, descriptor: int, on_progress: Callable[[Progress], None]) -> int:
    """Write the image of `point` into `file`, open as `descriptor`, and prove it; the number of bytes fetched.

    The SHA-256 of each pack and segment, their zstd checksums and the image digest of the snapshot are checked, and
    SQLite opens the image; after a replay, it checks all pages. Durable. Raises `DamageError`, `StoreError` and
    OSError, and then what is in the file is worthless.
    """
    if point.replay is None:
        fetched_bytes = fetch_image(point.archive, point.manifest, descriptor, on_progress)
        _prove_by_sqlite(point, file)
        return fetched_bytes
    fetched_bytes = _fetch_and_replay(point, point.replay, descriptor, on_progress)
    with worker_threads(1, name="flush") as threads, _with_hint_to_snapshot(point):
        flushed = threads.submit(os.fsync, descriptor)  # the disk works while SQLite reads what is in memory
        _prove_by_sqlite(point, file)
        flushed.result()
    return fetched_bytes


def _fetch_and_replay(
    point: RestorePoint, replay: Replay, descriptor: int, on_progress: Callable[[Progress], None]
) -> int:
    """Write the image of a snapshot and the commits after it, both at the same time; the number of bytes fetched."""
    replaying = Replaying(point, replay, descriptor)

    def run() -> int:
        with _with_hint_to_snapshot(point):
            return replaying.run()

    def report(progress: Progress) -> None:
        if replayed.done():
            replayed.result()  # when it has failed, no more packs are needed
        on_progress(progress)

    fetch = _Fetch(point.archive, point.manifest, descriptor, report, write=replaying.write_below)
    with worker_threads(1, name="replay") as threads:
        replayed = threads.submit(run)
        try:
            fetch.run()
            fetched_bytes = fetch.fetched_bytes + replayed.result()
        finally:
            replaying.stop()
    replaying.finish(fetch.hashes)
    return fetched_bytes


@contextmanager
def _with_hint_to_snapshot(point: RestorePoint) -> Iterator[None]:
    """Extend a `DamageError` of what comes after the snapshot of `point` by a hint to that snapshot."""
    try:
        yield
    except DamageError as error:
        if point.replay is None:
            raise
        snapshot = f"{point.manifest.database}@{point.manifest.id}"
        raise DamageError(
            f"{error.message}; nothing was written",
            hint=f"restore {snapshot}, the snapshot before that commit, or use another store with --store",
        ) from error


def fetch_image(archive: Archive, manifest: Manifest, descriptor: int, on_progress: Callable[[Progress], None]) -> int:
    """Write the image of a snapshot, and check what `write_image` checks, without SQLite: damage is that of the store.

    `on_progress` is called from several threads, one at a time; what it raises ends the fetching.
    """
    fetch = _Fetch(archive, manifest, descriptor, on_progress)
    fetch.run()
    os.fsync(descriptor)
    return fetch.fetched_bytes


class _Fetch:
    """Packs on their way into the image file, several at once."""

    def __init__(
        self,
        archive: Archive,
        manifest: Manifest,
        descriptor: int,
        on_progress: Callable[[Progress], None],
        *,
        write: Callable[[memoryview, int], None] | None = None,
    ) -> None:
        """`write` puts pages at their place, from a number on; without it, all are written."""
        os.truncate(descriptor, manifest.image_bytes)
        self._write = write or self._write_all
        self.fetched_bytes = 0
        self._archive = archive
        self._manifest = manifest
        self._descriptor = descriptor
        self._on_progress = on_progress
        self._fitting = ImageCheck(archive.page_map(manifest), page_size=manifest.page_size, packs=len(manifest.packs))
        self._restored_bytes = 0
        self._flushed_bytes = 0
        self._lock = threading.Lock()

    @property
    def hashes(self) -> PageHashes:
        """The page hashes of the image, complete after `run`."""
        return self._fitting.hashes

    def run(self) -> None:
        """Fetch everything and compare the image digest. Stops at the first damage or failure."""
        with worker_threads(_FETCHERS, name="fetch") as threads:
            futures = [
                threads.submit(self._fetch, position, pack) for position, pack in enumerate(self._manifest.packs, 1)
            ]
            for future in futures:
                future.result()
        if image_digest(self._fitting.hashes) != self._manifest.image_digest:
            raise DamageError(
                f"the packs of snapshot {self._manifest.id} in {self._archive.url} do not make up its image",
                hint="restore another snapshot, or this one from another store with --store",
            )

    def _fetch(self, position: int, pack: PackEntry) -> None:
        try:
            pages = self._place(position, self._archive.pack(pack))
        except DamageError as error:
            raise self._with_victims(error, pack) from error
        with self._lock:
            self.fetched_bytes += pack.stored_bytes
            self._restored_bytes += pages * self._manifest.page_size
            self._on_progress(Progress(self._restored_bytes, self._manifest.image_bytes, self.fetched_bytes))
            needs_flush = self._restored_bytes - self._flushed_bytes >= _FLUSHED_AT_ONCE_BYTES
            if needs_flush:
                self._flushed_bytes = self._restored_bytes
        if needs_flush:
            os.fdatasync(self._descriptor)  # the disk works while the others decompress, not only at the end

    def _place(self, position: int, pack: StoredPack) -> int:
        """Write the live pages of one pack to their places; their number. Frames without one are left out."""
        reason = self._fitting.place(pack.index, position)
        if reason is not None:
            raise DamageError(f"pack {pack.name}: {reason}")
        places, indices = self._fitting.live(pack.index, position)
        frames, page_size = pack.index.frames, self._manifest.page_size
        runs = _runs(places, indices, pack.index.pages_per_frame)
        for number, of_frame in groupby(runs, key=lambda run: run.place // pack.index.pages_per_frame):
            frame = frames[number]
            images = memoryview(pack.images(frame))
            for run in of_frame:
                start = (run.place - frame.first_page) * page_size
                self._write(images[start : start + run.pages * page_size], run.first + 1)
        return len(places)

    def _write_all(self, data: memoryview, first: int) -> None:
        write_all(self._descriptor, data, (first - 1) * self._manifest.page_size)

    def _with_victims(self, error: DamageError, pack: PackEntry) -> DamageError:
        """Extend `error` by the snapshots that need the same pack, and the newest that does not."""
        try:
            needing, spared = self._archive.history().needing(pack)
        except BackupdError:
            needing, spared = [self._manifest.id], None  # the damage is what matters to the user
        rest = len(needing) - _SNAPSHOTS_SHOWN
        shown = ", ".join(str(each) for each in needing[-_SNAPSHOTS_SHOWN:]) + (f" and {rest} more" if rest > 0 else "")
        other = f"restore {spared}, the newest that does not need it, or use" if spared else "use"
        return DamageError(
            f"{error.message}; it is needed by {shown}", hint=f"{other} another store with --store; nothing was written"
        )


class _Run(NamedTuple):
    """Neighbours both in one frame and in the image: the first by its place in the pack and by its index there."""

    place: int
    first: int
    pages: int


def _runs(places: npt.NDArray[np.intp], indices: npt.NDArray[np.int64], pages_per_frame: int) -> Iterator[_Run]:
    """Divide the pages at `places` of a pack, which belong at `indices` of the image, into as few runs as possible."""
    if not len(places):
        return
    is_other = (np.diff(places) != 1) | (np.diff(indices) != 1) | (np.diff(places // pages_per_frame) != 0)
    breaks = (np.flatnonzero(is_other) + 1).tolist()
    for start, end in zip([0, *breaks], [*breaks, len(places)], strict=True):
        yield _Run(int(places[start]), int(indices[start]), end - start)


def _prove_by_sqlite(point: RestorePoint, file: Path) -> None:
    manifest = point.manifest
    if point.page_count == 0:
        return
    reason = why_unreadable(
        file,
        point.page_count,
        needs_schema=manifest.source.tables is not None,
        checks_pages=point.replay is not None,
    )
    if reason is not None:
        raise DamageError(
            f"{point.name} in {point.archive.url} is complete, but SQLite does not open it: {reason}",
            hint="the database was damaged when it was taken; restore an older snapshot",
        )
