"""Replay commits over the image of a snapshot: the state after the last of them.

FORMAT.md, "To restore a commit", is the specification.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from backupd.capture.sink import completed_first_page
from backupd.concurrency import worker_threads
from backupd.errors import DamagedSegmentError
from backupd.format.pack import HASH_BYTES, page_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from backupd.format.manifest import AnySummary
    from backupd.format.pagemap import PageHashes
    from backupd.format.segment import Changes, Segment
    from backupd.repository.archive import Archive
    from backupd.repository.history import StoredSegment
    from backupd.repository.moments import Replay, RestorePoint

_READERS = 4
_READ_AHEAD_BYTES = 4 << 20
"""Of stored segments: not many large ones are in memory, decompressed."""


class Replaying:
    """The commits after a snapshot on their way into its image, while its packs are fetched into the same file.

    The newest segment comes first, so that each page is hashed and written once: of 270,000 images in a quarter of an
    hour with 100 commits a second, 19,000 are the last ones of their pages. A few segments at a time are in memory, and
    of large ones two.
    """

    def __init__(self, point: RestorePoint, replay: Replay, descriptor: int) -> None:
        self._archive = point.archive
        self._replay = replay
        self._page_size = point.manifest.page_size
        self._descriptor = descriptor
        self._base_pages = point.manifest.page_count
        self.written: dict[int, bytes] = {}
        """By number, the hashes of the pages that have their last image from a commit."""
        self._lock = threading.Lock()
        self._has_to_stop = False

    def run(self) -> int:
        """Write what the commits have changed; the number of bytes fetched. Raises `DamageError` and `StoreError`."""
        replay, oldest, images = self._replay, self._replay.until + 1, 0
        newest_first = replay.segments[::-1]
        for stored, segment in zip(newest_first, read_segments(self._archive, newest_first), strict=True):
            if self._has_to_stop:
                break
            until = min(segment.last, replay.until)
            if segment.head.page_size != self._page_size or until < oldest - 1:
                raise DamagedSegmentError(f"segment {stored.key} in {self._archive.url} does not go up to what is next")
            _require_commit(self._archive, stored, segment, until)
            images += self._write_newest(segment.newest(replay.after, until))
            oldest = min(oldest, segment.first)
        if oldest > replay.after + 1 and not self._has_to_stop:
            raise DamagedSegmentError(f"no segment in {self._archive.url} has commit {oldest - 1} of this window")
        if not self._has_to_stop:
            _reject_more_pages(
                self._archive, replay.page_count, self._base_pages + 1 + images * _new_pages(self._page_size)
            )
        return sum(stored.size_bytes for stored in replay.segments)

    def stop(self) -> None:
        """Let `run` end soon: the image is not needed any more."""
        self._has_to_stop = True

    def write_below(self, data: memoryview, first: int) -> None:
        """Write pages of the snapshot, from number `first` on, but for those that a commit has written."""
        size = self._page_size
        number, end = first, first + len(data) // size
        with self._lock:  # or this could come just after the image of a commit
            for stop in [*filter(self.written.__contains__, range(first, end)), end]:
                write_all(self._descriptor, data[(number - first) * size : (stop - first) * size], (number - 1) * size)
                number = stop + 1

    def finish(self, hashes: PageHashes) -> None:
        """Give the image its size and its first page, when all else is there; `hashes` are those of the snapshot."""
        size, page_count = self._page_size, self._replay.page_count
        replayed = bytearray(hashes)
        replayed += page_hash(bytes(size)) * (page_count - len(replayed) // HASH_BYTES)
        for number, digest in self.written.items():
            replayed[(number - 1) * HASH_BYTES : number * HASH_BYTES] = digest
        state = ReplayedState(replayed, os.pread(self._descriptor, size, 0), page_size=size, most_pages=page_count)
        os.truncate(self._descriptor, page_count * size)
        write_all(self._descriptor, memoryview(state.first_page(page_count)), 0)

    def _write_newest(self, images: Iterable[tuple[int, memoryview]]) -> int:
        """Write those of these pages that no later commit has written; return how many pages there were."""
        size, page_count, written = self._page_size, self._replay.page_count, self.written
        count = 0
        with self._lock:
            for number, image in images:
                count += 1
                if number <= page_count and number not in written:
                    written[number] = page_hash(image)
                    write_all(self._descriptor, image, (number - 1) * size)
        return count


def _new_pages(page_size: int) -> int:
    """Return how many new pages there are at most for each page that was written: that one, or those that it lists.

    A new page is written, or is free: then a page that was written lists it, with 4 bytes for each.
    """
    return page_size // 4


def _reject_more_pages(archive: Archive, pages: int, most_pages: int) -> None:
    if pages > most_pages:
        claim = f"claims {pages} pages, more than its commits can leave"
        raise DamagedSegmentError(f"a segment of {archive.database} in {archive.url} {claim}")


def _require_commit(archive: Archive, stored: StoredSegment, segment: Segment, number: int) -> None:
    if segment.first + segment.commits[segment.index_of(number)].offset != number:
        raise DamagedSegmentError(f"segment {stored.key} in {archive.url} does not have commit {number}")


class ReplayStep(NamedTuple):
    """What the commits after the step before, up to commit `until`, have changed; `page_count` is the size after it."""

    until: int
    page_count: int
    changes: Changes


def replay_steps(
    archive: Archive, segments: Sequence[StoredSegment], after: int, stops: Sequence[int], *, of: AnySummary
) -> Iterator[ReplayStep]:
    """Yield what the commits from `after + 1` to the last of `stops` change, with a step that ends at each of `stops`.

    They are added to the snapshot `of`. `stops` ascend; a step ends with each of `segments`, too. Raises
    `DamagedSegmentError` when a commit is missing, was left out that is one of `stops`, or leaves more pages than it
    can, and what `Archive.segment` raises.
    """
    page_size, most_pages = of.page_size, of.page_count + 1  # the lock-byte page is never written
    for stored, segment in zip(segments, read_segments(archive, segments), strict=True):
        if segment.head.page_size != page_size or segment.first > after + 1:
            raise DamagedSegmentError(f"segment {stored.key} in {archive.url} does not continue what comes before it")
        for until in (*(stop for stop in stops if stop < segment.last), min(segment.last, stops[-1])):
            if until > after:
                _require_commit(archive, stored, segment, until)
                first, last = segment.index_of(after + 1), segment.index_of(until)
                sizes = [commit.page_count for commit in segment.commits[first : last + 1]]
                changes = segment.changes(after, until)
                most_pages += len(changes.pages) * _new_pages(page_size)
                _reject_more_pages(archive, max(sizes), most_pages)
                yield ReplayStep(until, sizes[-1], changes)
                after = until
    if after < stops[-1]:
        raise DamagedSegmentError(f"the segments of {archive.database} in {archive.url} end at commit {after}")


class ReplayedState:
    """The page hashes of a snapshot after the commits that were added to it, and its first page."""

    def __init__(self, hashes: PageHashes, first_page: bytes, *, page_size: int, most_pages: int) -> None:
        """Take those of the image of the snapshot; `first_page` is empty when that has no page.

        Pages above `most_pages` are not wanted, and take no memory.
        """
        self._hashes = bytearray(hashes)
        self._first_page = first_page
        self._page_size = page_size
        self._most_pages = most_pages

    def take(self, step: ReplayStep) -> None:
        """Add what some commits have changed."""
        size = self._page_size
        images = memoryview(step.changes.images)
        for place, number in enumerate(step.changes.pages):
            if number > self._most_pages:
                break
            self._extend(number)
            image = images[place * size : (place + 1) * size]
            self._hashes[(number - 1) * HASH_BYTES : number * HASH_BYTES] = page_hash(image)
            if number == 1:
                self._first_page = bytes(image)

    def first_page(self, page_count: int) -> bytes:
        """Return page 1 with the change counter that the image of a snapshot of this state has, with so many pages."""
        return self._completed(self._others(page_count))

    def digest(self, page_count: int) -> str:
        """Return the image digest of this state, with so many pages."""
        others = self._others(page_count)
        return blake3(page_hash(self._completed(others))).update(others).hexdigest()

    def _completed(self, others: bytes) -> bytes:
        page = self._first_page
        return completed_first_page(
            page,
            schema_version=int.from_bytes(page[40:44], "big"),
            writer_version=int.from_bytes(page[96:100], "big"),
            digest_of_image=lambda first_page: blake3(first_page).update(others).digest(),
        )

    def _others(self, page_count: int) -> bytes:
        """Return the hashes of all pages but the first."""
        self._extend(page_count)
        return bytes(memoryview(self._hashes)[HASH_BYTES : page_count * HASH_BYTES])

    def _extend(self, page_count: int) -> None:
        """Have hashes of at least so many pages. A page that was never written is zeros."""
        missing = page_count - len(self._hashes) // HASH_BYTES
        if missing > 0:
            self._hashes += page_hash(bytes(self._page_size)) * missing


def read_segments(archive: Archive, segments: Sequence[StoredSegment]) -> Iterator[Segment]:
    """Yield the segments in their order, and read the next few at the same time: stores answer slowly."""
    with worker_threads(_READERS, name="segments") as threads:
        waiting: deque[tuple[int, Future[Segment]]] = deque()
        for stored in segments:
            while len(waiting) >= _READERS or sum(size for size, _ in waiting) > _READ_AHEAD_BYTES:
                yield waiting.popleft()[1].result()
            waiting.append((stored.size_bytes, threads.submit(archive.segment, stored)))
        while waiting:
            yield waiting.popleft()[1].result()


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in as many steps as the system needs."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
