"""Holds: when and why nothing may be removed, whatever a policy says. Pure: values in, holds out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import nlargest
from operator import attrgetter
from typing import TYPE_CHECKING

from backupd.format.manifest import SnapshotKind, Summary
from backupd.format.records import CheckOutcome, Shrink
from backupd.retention import newest_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary

_CLOCK_TOLERANCE = timedelta(minutes=1)
_TURNS_SEEN_IN = 8
_TURNS_HELD = 4
_SHRUNK_BELOW = 0.5
_PASSING_TABLES = ("sqlite_", "_alembic_tmp_")
_TABLES_SHOWN = 4
_REASON_CHARACTERS = 1000
_MEGABYTES_FROM = 10**7


@dataclass(frozen=True, slots=True)
class Hold:
    """A reason why nothing is removed for now although the policy would, and what to do about it; each on one line."""

    message: str
    hint: str
    ends_by_itself: bool = False
    """Whether it ends with the next test restore that succeeds."""


def why_distrusted(manifests: Sequence[AnySummary], known: Mapping[SnapshotId, CheckOutcome]) -> Hold | None:
    """Return a hold if, by what checks have found (`known`), the newest snapshot of which anything is known is damaged.

    What came after it may be damaged too, by the same disk or in the same source, and must not take the places of older
    snapshots. The hold need not be accepted: it ends when a newer snapshot is proven, or at least intact.
    """
    looked_at = [manifest for manifest in manifests if manifest.id in known]
    newest = max(looked_at, key=lambda manifest: manifest.order, default=None)
    if newest is None or not known[newest.id].is_damage:
        return None
    name = newest.database
    if known[newest.id] is CheckOutcome.DAMAGED_SOURCE:
        return Hold(
            f"{newest.id} was restored to test it, and is a damaged database as it was captured; nothing newer is "
            "proven",
            hint=f"check the live database with PRAGMA integrity_check; when it is repaired: backupd now {name}, then "
            f"backupd verify {name}@latest --level drill",
            ends_by_itself=True,
        )
    return Hold(
        f"{newest.id} is damaged in the store, and nothing newer is proven",
        hint=f"store the damaged pages again: backupd now {name}, then see whether it is sound: "
        f"backupd verify {name}@latest --level drill",
        ends_by_itself=True,
    )


def why_held(
    manifests: Sequence[AnySummary],
    *,
    now: datetime,
    accepted: tuple[int, SnapshotId] | None,
    held: Shrink | None = None,
    trashed: Sequence[AnySummary] = (),
) -> Hold | None:
    """Return the hold on these snapshots (one database in one store, oldest first), or None.

    There is one when the clock is more than a minute behind a snapshot; when two writers take turns; when the newest
    regular snapshot uses less than half the bytes of the largest regular one; or when it has lost tables of another.
    Those older than `accepted`, the `Summary.order` of the snapshot whose shrinking was accepted last, do not
    count. `held`, what was found before and not accepted yet, holds whatever came after it. `trashed` are the
    removed ones, which show writers too. `now` is aware.
    """
    return (
        _behind(manifests, now)
        or _taking_turns({each.id: each for each in (*trashed, *manifests)}.values() if trashed else manifests)
        or why_shrunk(manifests, accepted=accepted, held=held)
    )


def _behind(manifests: Sequence[AnySummary], now: datetime) -> Hold | None:
    """The hold for a clock that is behind a snapshot: after one with a wrong time, the newest one proves nothing."""
    latest = max(manifests, key=attrgetter("id"), default=None)  # ids sort by time
    if latest is None or latest.id.taken_at <= now + _CLOCK_TOLERANCE:
        return None
    name = latest.database
    newest = max(manifests, key=lambda manifest: manifest.order)
    is_needed = latest in (newest, newest_regular(manifests))
    first = f"backupd now {name} --full, then " if is_needed else ""
    return Hold(
        f"the clock of this machine ({now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}) is behind the snapshot {latest.id}",
        hint=f"set the clock right; or, if it is: {first}backupd forget {name}@{latest.id}",
    )


def _taking_turns(manifests: Iterable[AnySummary]) -> Hold | None:
    """The hold for two databases under one name: each would need the places that the other's snapshots take."""
    regular = (manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR)
    newest = nlargest(_TURNS_SEEN_IN, regular, key=attrgetter("sequence", "id"))[::-1]
    returns = [position for position in range(1, len(newest)) if _returns_at(position, newest)]
    if len(returns) < _TURNS_HELD:
        return None
    one, other = (_writer_called(newest[position]) for position in (returns[-1], returns[-1] - 1))
    return Hold(
        f"two writers take turns: {one} and {other}",
        hint="give each its own name or store; this ends after a few snapshots by one of them alone",
    )


def _returns_at(position: int, newest: Sequence[AnySummary]) -> bool:
    """Whether the writer at `position` differs from the one before it, and had written earlier.

    A writer that takes over for good had not, nor had a container with a new id. A host without a lasting state
    directory has many ids and one place, and after a move there are two places and one id: neither changes both.
    """
    *earlier, last, now = newest[: position + 1]
    return not _is_same_writer(now, last) and any(_is_same_writer(now, each) for each in earlier)


def _is_same_writer(one: AnySummary, other: AnySummary) -> bool:
    place = _place(one)
    return one.writer_id == other.writer_id or (place is not None and place == _place(other))


def _place(manifest: AnySummary) -> tuple[str, str] | None:
    """Path and host of the database, where they can be read."""
    return (manifest.writer.path, manifest.writer.host) if isinstance(manifest, Summary) else None


def _writer_called(manifest: AnySummary) -> str:
    place = _place(manifest)
    return f"installation {manifest.writer_id}" if place is None else f"{place[0]} on {place[1]}"


def why_shrunk(
    manifests: Sequence[AnySummary], *, accepted: tuple[int, SnapshotId] | None, held: Shrink | None = None
) -> Hold | None:
    """Return the hold that accepting the newest regular snapshot ends; `held` precedes what is found now."""
    newest = newest_regular(manifests)
    shrink = held or find_shrink(manifests, accepted=accepted)
    if newest is None or shrink is None:
        return None
    name = newest.database
    if shrink.snapshot == newest.id:
        message = f"the newest snapshot, {shrink.snapshot}, {shrink.reason}"
    else:
        message = f"{shrink.snapshot} was the newest snapshot and {shrink.reason}; that is not accepted yet"
    return Hold(
        message,
        hint=f"if the newest is right: backupd prune {name} --accept-shrink; if not, an older one still has it: "
        f"backupd list {name}; after its restore and a new snapshot, accept too",
    )


def find_shrink(manifests: Sequence[AnySummary], *, accepted: tuple[int, SnapshotId] | None) -> Shrink | None:
    """Find what the newest regular one of these snapshots has lost that others have, as far as those count."""
    newest = newest_regular(manifests)
    if newest is None:
        return None
    compared = _not_older_than(accepted, newest, manifests)
    found = _lost_bytes(newest, compared) or _lost_tables(newest, compared)
    return None if found is None else Shrink(snapshot=newest.id, reason=found[:_REASON_CHARACTERS])


def _not_older_than(
    accepted: tuple[int, SnapshotId] | None, newest: AnySummary, manifests: Iterable[AnySummary]
) -> list[AnySummary]:
    """The regular snapshots that the newest one is compared with to find what it lost."""
    regular = [manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR]
    if accepted is None or newest.order < accepted:  # the latter: a history that started again
        return regular
    return [manifest for manifest in regular if manifest.order >= accepted]


def used_bytes(manifest: AnySummary) -> int:
    """The bytes of a database that are in use: VACUUM can change the page size, and so the number of pages."""
    free_pages = manifest.source.free_pages if isinstance(manifest, Summary) else 0
    return max(0, manifest.page_count - free_pages) * manifest.page_size


def _lost_bytes(newest: AnySummary, compared: Iterable[AnySummary]) -> str | None:
    largest = max(compared, key=used_bytes, default=newest)
    if used_bytes(newest) >= _SHRUNK_BELOW * used_bytes(largest):
        return None
    return f"has {_size(used_bytes(newest))} in use, and {largest.id} had {_size(used_bytes(largest))}"


def _lost_tables(newest: AnySummary, compared: Iterable[AnySummary]) -> str | None:
    if not isinstance(newest, Summary):
        return None  # encrypted by another host: what it has is not known here
    remaining = {_folded(name) for name in newest.source.tables or ()}
    # Most snapshots have the same tables.
    last_with = {manifest.source.tables: manifest for manifest in compared if isinstance(manifest, Summary)}
    lost = {
        name: manifest
        for tables, manifest in sorted(last_with.items(), key=lambda each: each[1].order)
        for name in tables or ()
        if _folded(name) not in remaining and not _folded(name).startswith(_PASSING_TABLES)
    }
    if not lost:
        return None
    last = max(lost.values(), key=lambda manifest: manifest.order)
    if newest.source.tables is None:
        return f"has a schema that could not be read, and {last.id} had tables"
    if any(pack.encryption for pack in newest.packs):
        return f"has lost {len(lost)} tables that {last.id} had"  # their names must not be readable in the store
    return f"has lost tables that {last.id} had: {_some(sorted(lost))}"


def _folded(table: str) -> str:
    # SQLite takes names that differ in case for one.
    return table.lower()


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _TABLES_SHOWN
    return ", ".join(names[:_TABLES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _size(size_bytes: int) -> str:
    if size_bytes < _MEGABYTES_FROM:
        return f"{size_bytes / 10**3:,.0f} kB"
    return f"{size_bytes / 10**6:,.0f} MB"
