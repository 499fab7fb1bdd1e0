"""Segments that are old: small ones of a quarter of an hour become one; a day later they are thinned, and then removed.

A merged segment has every commit of those that it stands for, a thinned one the last of each minute. Those are deleted
when a listing shows it. A reader takes any of them meanwhile. FORMAT.md, "Segments", says why nothing else depends on
one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.format.segment import SEGMENT_LEVEL, encode_segment, thinned
from backupd.store.keys import segments_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from backupd.format import SnapshotId
    from backupd.format.segment import Commit, SegmentHead
    from backupd.prune.sweep import StoreClock
    from backupd.repository.archive import Archive
    from backupd.repository.history import StoredSegment

    Windows = Mapping[SnapshotId, Sequence[StoredSegment]]

_SPAN = timedelta(minutes=15)
_THINNED_SPAN = timedelta(hours=6)
_LEAST_WINDOW = timedelta(hours=1)
_MINUTE_MS = 60_000
_SETTLED_AFTER = timedelta(minutes=2)
"""A segment may come late: the store was down, or another one is still on its way."""
_SMALL_BYTES = 256 << 10
_MOST_IMAGE_BYTES = 32 << 20
"""How many bytes of page images a merged segment may have: a reader of one commit holds all of them."""


def expired(windows: Windows, clock: StoreClock, *, commits: timedelta, minutes: timedelta) -> list[StoredSegment]:
    """Return the segments that were stored too long ago, by the store's clock: `commits`, or if thinned, `minutes`."""
    lasting = {*lasting_windows(windows)} if minutes > commits else set()
    return [
        segment
        for window, segments in windows.items()
        for segment in segments
        if clock.is_older(segment.stored, minutes if window in lasting else commits)
    ]


def thinnable(windows: Windows, clock: StoreClock, commits: timedelta) -> Iterator[list[StoredSegment]]:
    """Yield the segments of one span, when all of them were stored longer than `commits` ago, unless they are thinned.

    A segment counts as thinned when the store got it so long after its last commit: so does one that came as late
    because the store was down, and that keeps all of its commits.
    """
    for window in lasting_windows(windows):
        for group in _neighbours(windows[window], _THINNED_SPAN, most_bytes=None):
            is_due = all(clock.is_older(segment.stored, commits) for segment in group)
            if is_due and any(each.stored.modified_at - each.key.seen_at < commits for each in group):
                yield group


def lasting_windows(windows: Windows) -> list[SnapshotId]:
    """Return the windows that last an hour or more: a snapshot from which they begin is worth its space.

    An application that closes its log all the time leaves one window after the other.
    """
    return [
        window
        for window, segments in windows.items()
        if segments and max(each.key.seen_at for each in segments) - window.taken_at >= _LEAST_WINDOW
    ]


def covered(windows: Windows, clock: StoreClock) -> Iterator[tuple[StoredSegment, list[StoredSegment]]]:
    """Yield a segment with those whose commits it has all: an interrupted merge, or a repeated upload, left them."""
    for window in windows.values():
        by_cover: dict[StoredSegment, list[StoredSegment]] = {}
        cover: StoredSegment | None = None
        for segment in sorted(window, key=_order_of_covers):
            if cover is None or segment.key.last > cover.key.last:
                cover = segment
            elif clock.is_older(cover.stored, _SETTLED_AFTER):
                by_cover.setdefault(cover, []).append(segment)
        yield from by_cover.items()


def _order_of_covers(segment: StoredSegment) -> tuple[int, int, float]:
    """The longest first, and of equal ones the newest: what another host is about to delete is older than its cover."""
    return segment.key.first, -segment.key.last, -segment.stored.modified_at.timestamp()


def remove_covered(
    archive: Archive,
    cover: StoredSegment,
    segments: Sequence[StoredSegment],
    may_thin: Callable[[StoredSegment], bool],
) -> None:
    """Delete those of `segments` that say nothing which their cover does not, after all were read and found whole.

    A cover that was thinned may lack all commits of a minute but the last, where `may_thin` says so. Raises what
    `Archive.segment` raises.
    """
    whole = archive.segment(cover)
    anchors, numbers = {*whole.head.anchors}, {*whole.numbers}
    minutes = {commit.seen_at_ms // _MINUTE_MS for commit in whole.commits}
    for stored in segments:
        segment = archive.segment(stored)
        last_ones = {commit.seen_at_ms // _MINUTE_MS: segment.first + commit.offset for commit in segment.commits}
        # The last minute may continue in another segment, of which the cover has the commits, too.
        is_thinned = may_thin(stored) and all(
            number in numbers or (number == segment.last and minute in minutes) for minute, number in last_ones.items()
        )
        if anchors.issuperset(segment.head.anchors) and (numbers.issuperset(segment.numbers) or is_thinned):
            archive.delete_segment(stored)


def mergeable(windows: Windows, clock: StoreClock) -> Iterator[list[StoredSegment]]:
    """Yield small segments that continue each other and can become one: those of one span, when it is over."""
    for window in windows.values():
        for group in _neighbours(window, _SPAN, most_bytes=_SMALL_BYTES):
            if len(group) > 1 and all(clock.is_older(segment.stored, _SPAN + _SETTLED_AFTER) for segment in group):
                yield group


def merge(archive: Archive, group: Sequence[StoredSegment], *, thins: bool = False) -> None:
    """Put fewer segments in the place of those in `group`, which continue each other. Repeatable after a failure.

    With `thins`, they have the last commit of each minute of the segments that they stand for. One merged segment is in
    memory at a time. Raises `DamageError`, and deletes nothing, when one of them is damaged; `IdentityNeededError` when
    it cannot be decrypted here; and the errors of `Store`.
    """
    merged = {str(archive.put_segment(part.encoded())): part.stored for part in _parts(archive, group, thins=thins)}
    if not merged:
        return
    prefix = f"{segments_prefix(archive.database)}{group[0].key.window}/"
    if merged.keys() <= {stored.key for stored in archive.repository.store.list(prefix)}:
        for stored in (stored for part in merged.values() for stored in part if str(stored.key) not in merged):
            archive.delete_segment(stored)


@dataclass(slots=True)
class _Part:
    """What becomes one segment: the segments that it stands for, their heads, and their commits."""

    stored: list[StoredSegment] = field(default_factory=list)
    heads: list[SegmentHead] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    image_bytes: int = 0

    def encoded(self) -> bytes:
        # A snapshot may be the state at two places: either may be the only base of some commits.
        anchors = dict.fromkeys(anchor for head in self.heads for anchor in head.anchors)
        head = replace(self.heads[0], anchors=tuple(anchors))
        return encode_segment(head, self.commits, level=SEGMENT_LEVEL)


def _parts(archive: Archive, group: Sequence[StoredSegment], *, thins: bool) -> Iterator[_Part]:
    """Read a group, and divide it where the images become too many for one segment.

    One segment alone is left as it is, unless it is thinned.
    """
    part = _Part()
    for stored in group:
        segment = archive.segment(stored)
        commits = segment.with_images()
        if thins:
            commits = thinned(commits, _MINUTE_MS)
        image_bytes = sum(len(commit.images) for commit in commits)
        if part.stored and part.image_bytes + image_bytes > _MOST_IMAGE_BYTES:
            if thins or len(part.stored) > 1:
                yield part
            part = _Part()
        part.stored.append(stored)
        part.heads.append(segment.head)
        if thins:  # a minute may have begun in the segment before
            part.commits[-1:] = thinned([*part.commits[-1:], *commits], _MINUTE_MS)
        else:
            part.commits += commits
        part.image_bytes = sum(len(commit.images) for commit in part.commits)
    if thins or len(part.stored) > 1:
        yield part


def _neighbours(
    segments: Iterable[StoredSegment], span: timedelta, *, most_bytes: int | None
) -> Iterator[list[StoredSegment]]:
    """Divide segments, in their order, into those that are small, of one span, and continue each other."""
    group: list[StoredSegment] = []
    for stored in segments:
        fits = most_bytes is None or stored.size_bytes < most_bytes
        if group and not (fits and _continues(group[-1], stored, span)):
            yield group
            group = []
        if fits:
            group.append(stored)
    if group:
        yield group


def _continues(before: StoredSegment, stored: StoredSegment, span: timedelta) -> bool:
    return before.key.last + 1 == stored.key.first and _number_of(before, span) == _number_of(stored, span)


def _number_of(stored: StoredSegment, span: timedelta) -> float:
    """Return the number of the span in which the last commit was seen, since 1970."""
    return stored.key.seen_at.timestamp() // span.total_seconds()
