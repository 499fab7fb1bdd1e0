"""Recovery windows in a store, put together by the rules of FORMAT.md, and compared with what was booked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.packs import decode_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.segment import Anchor, Segment
    from backupd.repository.archive import Archive


@dataclass(slots=True)
class Window:
    """The segments of one window, in the order of their first commits."""

    id: SnapshotId
    segments: list[Segment] = field(default_factory=list)

    @property
    def gap(self) -> str | None:
        """Why the window before this one ended, as the first segment says."""
        return self.segments[0].head.gap

    @property
    def anchors(self) -> list[Anchor]:
        """The snapshots that lie in it."""
        return [anchor for segment in self.segments for anchor in segment.head.anchors]

    def reach(self, after: int = 0) -> int:
        """The last commit up to which all those behind `after` are here."""
        for segment in self.segments:
            if segment.first > after + 1:
                break
            after = max(after, segment.last)
        return after

    def image(self, base: bytes, anchor: Anchor, number: int) -> bytes:
        """The database after commit `number`, made of the image of the snapshot that `anchor` is about."""
        assert anchor.by <= number <= self.reach(anchor.after)
        size = self.segments[0].head.page_size
        pages = {place: base[place * size :][:size] for place in range(len(base) // size)}
        at, page_count = anchor.after, 0
        for segment in self.segments:
            until = min(segment.last, number)
            if until > at:
                changed, images = segment.changes(at, until)
                pages |= {page - 1: images[place * size :][:size] for place, page in enumerate(changed)}
                at = until
            if segment.first <= number <= segment.last:
                page_count = segment.commits[number - segment.first].page_count
        return b"".join(pages.get(place, bytes(size)) for place in range(page_count))


def windows_of(segments: Iterable[Segment]) -> list[Window]:
    """The windows that these segments are of, the oldest first."""
    windows: dict[SnapshotId, Window] = {}
    for segment in segments:
        windows.setdefault(segment.head.window, Window(segment.head.window)).segments.append(segment)
    for window in windows.values():
        window.segments.sort(key=lambda each: (each.first, each.last))
    return sorted(windows.values(), key=lambda each: each.id)


def stored_windows(archive: Archive) -> list[Window]:
    """The windows in a store."""
    listed = archive.listing().segments.values()
    return windows_of(archive.segment(stored) for segments in listed for stored in segments)


def base_image(archive: Archive, snapshot: SnapshotId) -> bytes:
    """The image of a snapshot, page by page from its packs."""
    manifest = archive.opened(archive.manifest(snapshot))
    size = manifest.page_size
    packs = []
    for entry in manifest.packs:
        content = archive.repository.store.get(archive.pack_key(entry), limit_bytes=entry.most_bytes)
        if entry.encryption is not None:
            content = archive.repository.encryption.decrypt(content, what=entry.sha256)
        index, images = decode_pack(content)
        numbers = memoryview(index.page_numbers).cast("I")
        packs.append({page: images[place * size :][:size] for place, page in enumerate(numbers)})
    places = manifest.decode_map().tolist()
    return b"".join(packs[place - 1][page] if place else bytes(size) for page, place in enumerate(places, 1))


def last_booking(image: bytes, scratch: Path) -> int:
    """The last number booked in a database that holds exactly the bookings up to it."""
    scratch.write_bytes(image[:18] + b"\1\1" + image[20:])  # no log beside it is to be looked for
    with closing(sqlite3.connect(f"file:{scratch}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        count, last = connection.execute("SELECT count(*), coalesce(max(number), 0) FROM booking").fetchone()
    assert count == last
    return int(last)


def require_truth(
    archive: Archive,
    acknowledged: int,
    scratch: Path,
    *,
    moments: int = 12,
    last_number: Callable[[bytes, Path], int] = last_booking,
) -> list[Window]:
    """Every window that has a snapshot gives exact states, and what is in none was lost to a gap that is named.

    Returns the windows. The commits of an application do one booking each, so that the numbers of both go up together:
    `last_number` finds the last one in an image, by way of a scratch file, and fails for a state that there never was.
    """
    windows = stored_windows(archive)
    newest = max(archive.listing().manifests)
    reached = last_number(base_image(archive, newest), scratch)
    for place, window in enumerate(windows):
        assert window.segments[0].first == 1, "the beginning of a window is missing"
        last = window.reach()
        assert last == max(each.last for each in window.segments), "a window has a hole"
        assert place == 0 or window.gap, "a window began again without a reason"
        for anchor in window.anchors:
            base = base_image(archive, anchor.snapshot)
            step = max(1, (last - anchor.by) // moments)
            found = {number: 0 for number in [*range(anchor.by, last, step), last] if number >= max(1, anchor.by)}
            for number in found:
                found[number] = last_number(window.image(base, anchor, number), scratch)
            offsets = {booked - number for number, booked in found.items()}
            assert len(offsets) == 1, f"commits of {window.id} are not where they should be: {found}"
            reached = max(reached, *found.values())
    assert reached >= acknowledged, f"{acknowledged} was acknowledged, and {reached} is the last one that was kept"
    return windows
