"""Replay commits over the image of a snapshot: the state after the last of them.

FORMAT.md, "To restore a commit", is the specification.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from blake3 import blake3

from backupd.capture.sink import completed_first_page
from backupd.concurrency import worker_threads
from backupd.errors import DamageError
from backupd.format.pack import HASH_BYTES, page_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from backupd.format.pagemap import PageHashes
    from backupd.format.segment import Segment
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
    replayed = _resized(hashes, replay.page_count, size)
    after = replay.after
    for stored, segment in zip(replay.segments, _read_ahead(point.archive, replay.segments), strict=True):
        if segment.head.page_size != size or segment.first > after + 1:
            raise DamageError(f"segment {stored.key} in {point.archive.url} does not continue what comes before it")
        changes = segment.changes(after, replay.until)
        images = memoryview(changes.images)
        for place, number in enumerate(changes.pages):
            if number <= replay.page_count:
                image = images[place * size : (place + 1) * size]
                write_all(descriptor, image, (number - 1) * size)
                replayed[(number - 1) * HASH_BYTES : number * HASH_BYTES] = page_hash(image)
        after = max(after, segment.last)
    if after < replay.until:
        raise DamageError(f"the segments of {point.manifest.database} in {point.archive.url} end at commit {after}")
    os.truncate(descriptor, replay.page_count * size)
    _complete_first_page(descriptor, size, replayed)
    return sum(stored.size_bytes for stored in replay.segments)


def _read_ahead(archive: Archive, segments: Sequence[StoredSegment]) -> Iterator[Segment]:
    """Yield the segments in their order, and read the next few at the same time: stores answer slowly."""
    with worker_threads(_READERS, name="segments") as threads:
        waiting: deque[tuple[int, Future[Segment]]] = deque()
        for stored in segments:
            while len(waiting) >= _READERS or sum(size for size, _ in waiting) > _READ_AHEAD_BYTES:
                yield waiting.popleft()[1].result()
            waiting.append((stored.size_bytes, threads.submit(archive.segment, stored)))
        while waiting:
            yield waiting.popleft()[1].result()


def _resized(hashes: PageHashes, page_count: int, page_size: int) -> bytearray:
    """Return the hashes of so many pages: those that are known, and that of zeros for the others."""
    resized = bytearray(hashes[: page_count * HASH_BYTES])
    resized += page_hash(bytes(page_size)) * (page_count - len(resized) // HASH_BYTES)
    return resized


def _complete_first_page(descriptor: int, page_size: int, hashes: bytearray) -> None:
    """Give page 1 the change counter that it has in the image of a snapshot with the same content."""
    page = os.pread(descriptor, page_size, 0)
    others = memoryview(hashes)[HASH_BYTES:]
    completed = completed_first_page(
        page,
        schema_version=int.from_bytes(page[40:44], "big"),
        writer_version=int.from_bytes(page[96:100], "big"),
        digest_of_image=lambda first_page: blake3(first_page).update(others).digest(),
    )
    write_all(descriptor, memoryview(completed), 0)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in as many steps as the system needs."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
