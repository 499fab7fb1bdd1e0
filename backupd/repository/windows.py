"""Recovery windows: segments that continue each other, and what a check has found of those of a window.

FORMAT.md, "Segments", is the specification. A recovery window here is a chain of segments without a hole: a window of
the format that lacks a segment is two.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  (the note is read by its annotations)
from typing import TYPE_CHECKING, ClassVar

import msgspec

from backupd.errors import NoSuchObjectError, StoreError, UnsupportedFormatError
from backupd.format import FormatError
from backupd.format.records import Continuity
from backupd.repository.history import Listing
from backupd.state import UNUSABLE_STATE, Note
from backupd.store import canonical_url
from backupd.store.keys import continuity_prefix

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary
    from backupd.format.segment import Anchor, Segment
    from backupd.repository.archive import Archive
    from backupd.repository.history import StoredSegment
    from backupd.state import StateDirectory


_MOST_NOTED = 500


class NotedWindow(msgspec.Struct, frozen=True):
    """A recovery window as a listing showed it: when its first and its last commit were seen, and what it takes up."""

    id: str
    began_at: datetime
    ended_at: datetime
    stored_bytes: int


class NotedWindows(msgspec.Struct, frozen=True):
    """The recovery windows of a database in a store at the time of one listing, oldest first."""

    kind: ClassVar[str] = "recovery-windows"

    listed_at: datetime
    windows: tuple[NotedWindow, ...] = ()


@dataclass(frozen=True, slots=True)
class RecoveryWindow:
    """Segments that continue each other, oldest first; none of them has only commits that others have."""

    id: SnapshotId
    segments: tuple[StoredSegment, ...]

    @property
    def first(self) -> int:
        """The number of its first commit."""
        return self.segments[0].key.first

    @property
    def last(self) -> int:
        """The number of its last commit."""
        return self.segments[-1].key.last

    @property
    def began_at(self) -> datetime | None:
        """When following began; None for what follows a hole."""
        return self.id.taken_at if self.first == 1 else None

    @property
    def ended_at(self) -> datetime:
        """When its last commit was seen."""
        return self.segments[-1].key.seen_at

    def place_of(self, number: int) -> int:
        """Return the place among the segments of the first one that has commit `number`."""
        return bisect_left(self.segments, number, key=lambda stored: stored.key.last)


def recovery_windows(listing: Listing) -> list[RecoveryWindow]:
    """Return the recovery windows that `listing` shows, oldest first."""
    return [
        RecoveryWindow(window, tuple(chain))
        for window, segments in sorted(listing.segments.items())
        for chain in _chains(segments)
    ]


def _chains(segments: Iterable[StoredSegment]) -> Iterator[list[StoredSegment]]:
    """Divide the segments of one window where commits are missing; leave out those that only repeat others."""
    chain: list[StoredSegment] = []
    for stored in sorted(segments, key=lambda stored: (stored.key.first, -stored.key.last)):
        if chain and stored.key.first > chain[-1].key.last + 1:
            yield chain
            chain = []
        if not chain or stored.key.last > chain[-1].key.last:
            chain.append(stored)
    if chain:
        yield chain


def usable_anchors(window: RecoveryWindow, segment: Segment, snapshots: Collection[SnapshotId]) -> list[Anchor]:
    """Return the anchors of existing snapshots in `segment` from which all commits are in `window`."""
    return [each for each in segment.head.anchors if each.snapshot in snapshots and each.after + 1 >= window.first]


def is_built_wrong(snapshot: AnySummary, checked: Mapping[SnapshotId, Continuity]) -> bool:
    """Whether a snapshot was built from commits that a check has found wrong. `checked` is by the window's id."""
    replayed = snapshot.replayed
    record = None if replayed is None else checked.get(replayed.window)
    return replayed is not None and record is not None and record.is_broken and replayed.commit > record.after


def read_continuity(archive: Archive, listing: Listing | None = None) -> Mapping[SnapshotId, Continuity]:
    """Read what the last check of each recovery window has found, by the window's id. Raises the errors of `Store`.

    Without a `listing`, the records are listed. One that cannot be read, or is of another window, is left out: it
    proves nothing.
    """
    if listing is None:
        prefix = continuity_prefix(archive.database)
        listing = Listing.of(archive.database, archive.repository.store.list(prefix))
    found = {}
    for window, stored in listing.continuity.items():
        try:
            record = archive.record(stored, Continuity.decode)
        except (FormatError, NoSuchObjectError, UnsupportedFormatError):
            continue
        if (record.database, record.window) == (archive.database, window):
            found[window] = record
    return found


def read_all_continuity(listings: Mapping[Archive, Listing | None]) -> Mapping[SnapshotId, Continuity]:
    """Read what the last checks in any of some archives of one database have found, by the window's id.

    `listings` has a listing of everything in each archive, or None where only the records are to be listed. A window
    that is broken in one of them is broken in all: they have the same commits. A store that does not answer is left
    out.
    """
    merged: dict[SnapshotId, Continuity] = {}
    for archive, listing in listings.items():
        with suppress(StoreError):
            for window, record in read_continuity(archive, listing).items():
                if window not in merged or record.is_broken:
                    merged[window] = record
    return merged


def note_windows(archive: Archive, listing: Listing, *, now: datetime) -> None:
    """Remember which recovery windows `listing` shows, for who asks this machine alone. That may be lost."""
    note = noted_windows(archive.repository.state, archive.database, archive.url)
    windows = tuple(
        NotedWindow(
            str(window.id),
            window.began_at or window.segments[0].key.seen_at,
            window.ended_at,
            sum(stored.size_bytes for stored in window.segments),
        )
        for window in recovery_windows(listing)[-_MOST_NOTED:]
    )
    with suppress(*UNUSABLE_STATE):
        if windows or note.read() is not None:
            note.write(NotedWindows(now, windows))


def noted_windows(state: StateDirectory, database: str, store: str) -> Note[NotedWindows]:
    """Return the note of the recovery windows of `database` in `store`, a URL."""
    return Note(state, NotedWindows, database, canonical_url(store))
