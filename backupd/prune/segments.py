"""Segments that are old: small ones of one quarter of an hour become one, and those of another day are removed.

A merged segment has every commit of those that it stands for, which are deleted when a listing shows it. A reader takes
any of them meanwhile. FORMAT.md, "Segments", says why nothing else depends on one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.format.segment import SEGMENT_LEVEL, encode_segment
from backupd.store.keys import segments_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from backupd.format import SnapshotId
    from backupd.format.segment import Segment
    from backupd.prune.sweep import StoreClock
    from backupd.repository.archive import Archive
    from backupd.repository.history import StoredSegment

    Windows = Mapping[SnapshotId, Sequence[StoredSegment]]

_SPAN = timedelta(minutes=15)
_SETTLED_AFTER = timedelta(minutes=2)
"""A segment may come late: the store was down, or another one is still on its way."""
_SMALL_BYTES = 256 << 10
_MOST_IMAGE_BYTES = 32 << 20
"""How many bytes of page images a merged segment may have: a reader of one commit holds all of them."""


def expired(windows: Windows, clock: StoreClock, keep: timedelta) -> list[StoredSegment]:
    """Return the segments that were stored longer than `keep` ago, by the store's clock."""
    return [segment for window in windows.values() for segment in window if clock.is_older(segment.stored, keep)]


def covered(windows: Windows, clock: StoreClock) -> Iterator[tuple[StoredSegment, list[StoredSegment]]]:
    """Yield a segment with those whose commits it has all: an interrupted merge, or a repeated upload, left them."""
    for window in windows.values():
        by_cover: dict[StoredSegment, list[StoredSegment]] = {}
        cover: StoredSegment | None = None
        for segment in sorted(window, key=lambda each: (each.key.first, -each.key.last)):
            if cover is None or segment.key.last > cover.key.last:
                cover = segment
            elif clock.is_older(cover.stored, _SETTLED_AFTER):
                by_cover.setdefault(cover, []).append(segment)
        yield from by_cover.items()


def remove_covered(archive: Archive, cover: StoredSegment, segments: Sequence[StoredSegment]) -> None:
    """Delete those of `segments` that say nothing which their cover does not, after all were read and found whole.

    Raises what `Archive.segment` raises.
    """
    anchors = {*archive.segment(cover).head.anchors}
    for stored in segments:
        if anchors.issuperset(archive.segment(stored).head.anchors):
            archive.delete_segment(stored)


def mergeable(windows: Windows, clock: StoreClock) -> Iterator[list[StoredSegment]]:
    """Yield small segments that continue each other and can become one: those of one span, when it is over."""
    for window in windows.values():
        for group in _neighbours(window):
            if len(group) > 1 and all(clock.is_older(segment.stored, _SPAN + _SETTLED_AFTER) for segment in group):
                yield group


def merge(archive: Archive, group: Sequence[StoredSegment]) -> None:
    """Put fewer segments in the place of those in `group`, which continue each other. Repeatable after a failure.

    One merged segment is in memory at a time. Raises `DamageError`, and deletes nothing, when one of them is damaged;
    `IdentityNeededError` when it cannot be decrypted here; and the errors of `Store`.
    """
    merged = {str(archive.put_segment(_joined(segments))): part for part, segments in _parts(archive, group)}
    if not merged:
        return
    prefix = f"{segments_prefix(archive.database)}{group[0].key.window}/"
    if merged.keys() <= {stored.key for stored in archive.repository.store.list(prefix)}:
        for stored in (stored for part in merged.values() for stored in part if str(stored.key) not in merged):
            archive.delete_segment(stored)


def _parts(archive: Archive, group: Sequence[StoredSegment]) -> Iterator[tuple[list[StoredSegment], list[Segment]]]:
    """Read a group, and divide it where the images become too many for one segment. One alone is left as it is."""
    part: list[StoredSegment] = []
    segments: list[Segment] = []
    for stored in group:
        segment = archive.segment(stored)
        if segments and sum(each.image_bytes for each in segments) + segment.image_bytes > _MOST_IMAGE_BYTES:
            if len(part) > 1:
                yield part, segments
            part, segments = [], []
        part.append(stored)
        segments.append(segment)
    if len(part) > 1:
        yield part, segments


def _joined(parts: Sequence[Segment]) -> bytes:
    # A snapshot may be the state at two places: either may be the only base of some commits.
    anchors = dict.fromkeys(anchor for part in parts for anchor in part.head.anchors)
    head = replace(parts[0].head, anchors=tuple(anchors))
    return encode_segment(head, [commit for part in parts for commit in part.with_images()], level=SEGMENT_LEVEL)


def _neighbours(segments: Iterable[StoredSegment]) -> Iterator[list[StoredSegment]]:
    """Divide segments, in their order, into those that are small, of one span, and continue each other."""
    group: list[StoredSegment] = []
    for stored in segments:
        fits = stored.size_bytes < _SMALL_BYTES
        if group and not (fits and _continues(group[-1], stored)):
            yield group
            group = []
        if fits:
            group.append(stored)
    yield group


def _continues(before: StoredSegment, stored: StoredSegment) -> bool:
    return before.key.last + 1 == stored.key.first and _span_of(before) == _span_of(stored)


def _span_of(stored: StoredSegment) -> float:
    return stored.key.seen_at.timestamp() // _SPAN.total_seconds()
