"""Replay commits over the image of a snapshot: the state after the last of them.

FORMAT.md, "To restore a commit", is the specification.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from backupd.capture.sink import completed_first_page
from backupd.concurrency import worker_threads
from backupd.errors import DamagedSegmentError
from backupd.format.pack import HASH_BYTES, page_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from backupd.format.pagemap import PageHashes
    from backupd.format.segment import Changes, Segment
    from backupd.repository.archive import Archive
    from backupd.repository.history import StoredSegment
    from backupd.repository.moments import Replay, RestorePoint

_READERS = 4
_READ_AHEAD_BYTES = 4 << 20
"""Of stored segments: not many large ones are in memory, decompressed."""


def replay_segments(point: RestorePoint, replay: Replay, descriptor: int, hashes: PageHashes) -> int:
    """Make the state after a commit of the image of its snapshot in `descriptor`; the number of bytes fetched.

    `hashes` are the page hashes of that image. A few segments at a time are in memory, and of large ones two. Raises
    `DamageError`, `StoreError` and OSError.
    """
    size = point.manifest.page_size
    state = ReplayedState(hashes, os.pread(descriptor, size, 0), page_size=size)
    for step in replay_steps(point.archive, replay.segments, replay.after, [replay.until], page_size=size):
        state.take(step)
        images = memoryview(step.changes.images)
        for place, number in enumerate(step.changes.pages):
            if number <= replay.page_count:
                write_all(descriptor, images[place * size : (place + 1) * size], (number - 1) * size)
    os.truncate(descriptor, replay.page_count * size)
    write_all(descriptor, memoryview(state.first_page(replay.page_count)), 0)
    return sum(stored.size_bytes for stored in replay.segments)


class ReplayStep(NamedTuple):
    """What the commits after the step before, up to commit `until`, have changed; `page_count` is the size after it.

    `most_pages` is the largest size after any of them: pages beyond it do not matter.
    """

    until: int
    page_count: int
    most_pages: int
    changes: Changes


def replay_steps(
    archive: Archive, segments: Sequence[StoredSegment], after: int, stops: Sequence[int], *, page_size: int
) -> Iterator[ReplayStep]:
    """Yield what the commits from `after + 1` to the last of `stops` change, with a step that ends at each of `stops`.

    `stops` ascend; a step ends with each of `segments`, too. Raises `DamagedSegmentError` when a commit is missing, or
    was left out that is one of `stops`, and what `Archive.segment` raises.
    """
    for stored, segment in zip(segments, read_segments(archive, segments), strict=True):
        if segment.head.page_size != page_size or segment.first > after + 1:
            raise DamagedSegmentError(f"segment {stored.key} in {archive.url} does not continue what comes before it")
        for until in (*(stop for stop in stops if stop < segment.last), min(segment.last, stops[-1])):
            if until > after:
                index = segment.index_of(until)
                if segment.first + segment.commits[index].offset != until:
                    raise DamagedSegmentError(f"segment {stored.key} in {archive.url} does not have commit {until}")
                sizes = [commit.page_count for commit in segment.commits[segment.index_of(after + 1) : index + 1]]
                yield ReplayStep(until, sizes[-1], max(sizes), segment.changes(after, until))
                after = until
    if after < stops[-1]:
        raise DamagedSegmentError(f"the segments of {archive.database} in {archive.url} end at commit {after}")


class ReplayedState:
    """The page hashes of a snapshot after the commits that were added to it, and its first page."""

    def __init__(self, hashes: PageHashes, first_page: bytes, *, page_size: int) -> None:
        """Take those of the image of the snapshot; `first_page` is empty when that has no page."""
        self._hashes = bytearray(hashes)
        self._first_page = first_page
        self._page_size = page_size

    def take(self, step: ReplayStep) -> None:
        """Add what some commits have changed."""
        size = self._page_size
        self._extend(step.most_pages)
        images = memoryview(step.changes.images)
        for place, number in enumerate(step.changes.pages):
            if number > step.most_pages:
                break
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
