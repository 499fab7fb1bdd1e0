"""Which snapshots a policy keeps, and when nothing may be removed whatever it says. Pure: values in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backupd.config.values import format_duration
from backupd.format.manifest import SnapshotKind
from backupd.format.records import Shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from backupd.config import RetentionSettings
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Manifest

_CLOCK_TOLERANCE = timedelta(minutes=1)
_TURNS_SEEN_IN = 8
_TURNS_HELD = 4
_SHRUNK_BELOW = 0.5
_PASSING_TABLES = ("sqlite_", "_alembic_tmp_")
_TABLES_SHOWN = 4
_REASON_CHARACTERS = 1000
_MEGABYTES_FROM = 10**7


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a snapshot stays, and why in a few words; one that stays may have several reasons."""

    manifest: Manifest
    is_kept: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nothing is removed for now although the policy would, and what to do about it; each on one line."""

    message: str
    hint: str


def decide(
    manifests: Sequence[Manifest],
    policy: RetentionSettings | None,
    *,
    now: datetime,
    proven: Collection[SnapshotId],
    undeleted: Collection[SnapshotId],
) -> list[Decision]:
    """A decision for each of `manifests` (one database in one store, oldest first), in their order.

    A snapshot stays when any rule keeps it. Whatever the rules say, these stay: the newest of any kind, the newest
    regular one, the newest of the `proven`, the `undeleted`, and all of them without a policy or with an empty one.
    `now` is aware; ages count from the newest regular snapshot if that is older.
    """
    reasons: dict[SnapshotId, list[str]] = {manifest.id: [] for manifest in manifests}
    for snapshot_id, reason in _kept(manifests, policy, now, proven, undeleted):
        reasons[snapshot_id].append(reason)
    return [
        Decision(manifest, bool(reasons[manifest.id]), tuple(reasons[manifest.id]) or ("no rule keeps it",))
        for manifest in manifests
    ]


def _kept(
    manifests: Sequence[Manifest],
    policy: RetentionSettings | None,
    now: datetime,
    proven: Collection[SnapshotId],
    undeleted: Collection[SnapshotId],
) -> Iterator[tuple[SnapshotId, str]]:
    """Every reason to keep a snapshot, in the order in which they are told."""
    newest_first = sorted(manifests, key=lambda manifest: manifest.order, reverse=True)
    regular = [manifest for manifest in newest_first if manifest.kind is SnapshotKind.REGULAR]
    yield from _newest(newest_first, regular, proven)
    for manifest in newest_first:
        if manifest.id in undeleted:
            yield manifest.id, "undeleted by hand"
    if policy is None or policy.is_empty:
        yield from ((manifest.id, "no policy") for manifest in newest_first)
        return
    for position, manifest in enumerate(regular[: policy.keep_last], 1):
        yield manifest.id, f"last {position}"
    moments = [(manifest.id, _local(manifest.id.taken_at, policy)) for manifest in regular]
    for count, rule, period in _calendar(policy):
        periods = [(snapshot_id, period(local)) for snapshot_id, local in moments]
        yield from _newest_of_each(periods, count, rule)
    yield from _young_enough(newest_first, regular, policy, now)


def _newest(
    newest_first: Sequence[Manifest], regular: Sequence[Manifest], proven: Collection[SnapshotId]
) -> Iterator[tuple[SnapshotId, str]]:
    if newest_first:
        yield newest_first[0].id, "newest"
    # After a safety snapshot, the newest regular one is what `latest` means.
    if regular and regular[0] is not newest_first[0]:
        yield regular[0].id, "newest regular"
    found = next((manifest for manifest in newest_first if manifest.id in proven), None)
    if found is not None:
        yield found.id, "newest proven"


def _calendar(policy: RetentionSettings) -> Iterator[tuple[int, str, Callable[[datetime], str]]]:
    """How many periods each calendar rule keeps, what it is called, and what names the period of a local time."""
    yield policy.hourly, "hourly", _hour
    yield policy.daily, "daily", _day
    yield policy.weekly, "weekly", _week
    yield policy.monthly, "monthly", _month
    yield policy.yearly, "yearly", _year


def _local(moment: datetime, policy: RetentionSettings) -> datetime:
    try:
        return moment.astimezone(policy.zone)
    except (OverflowError, OSError, ValueError):
        return moment  # a clock gone mad: in the first or last hours that there are, every zone may be out of them


def _hour(local: datetime) -> str:
    # With its offset: when the clocks go back, an hour comes twice, and is two.
    return local.isoformat(sep=" ", timespec="hours")


def _day(local: datetime) -> str:
    return local.date().isoformat()


def _week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year:04}-W{week:02}"


def _month(local: datetime) -> str:
    return local.date().isoformat()[:7]


def _year(local: datetime) -> str:
    return local.date().isoformat()[:4]


def _newest_of_each(
    periods: Iterable[tuple[SnapshotId, str]], count: int, rule: str
) -> Iterator[tuple[SnapshotId, str]]:
    """The newest of each of the last `count` periods that have one; `periods` of snapshots, newest first.

    Which period is last follows from the order of the snapshots, not from its name: a snapshot that a wrong clock
    dated years ahead would else stay in the last year for years.
    """
    newest: dict[str, SnapshotId] = {}
    for snapshot_id, period in periods:
        newest.setdefault(period, snapshot_id)
    for period in [*newest][:count]:
        yield newest[period], f"{rule} {period}"


def _young_enough(
    newest_first: Sequence[Manifest], regular: Sequence[Manifest], policy: RetentionSettings, now: datetime
) -> Iterator[tuple[SnapshotId, str]]:
    # An age counts from the newest snapshot: where none was taken for long, or the clock is ahead, nothing gets older.
    counted_from = min(now, (regular or newest_first)[0].id.taken_at) if newest_first else now
    for manifest in newest_first:
        age = counted_from - manifest.id.taken_at
        is_regular = manifest.kind is SnapshotKind.REGULAR
        if policy.within is not None and is_regular and age <= policy.within:
            yield manifest.id, f"within {format_duration(policy.within)}"
        # What a safety snapshot holds may be what its user fled from, so no other rule lets it stand for a period.
        if age <= policy.tagged and not (is_regular and not manifest.tags):
            yield manifest.id, "tagged" if is_regular else "before a restore"


def why_held(
    manifests: Sequence[Manifest],
    *,
    now: datetime,
    accepted: tuple[int, SnapshotId] | None,
    held: Shrink | None = None,
    trashed: Sequence[Manifest] = (),
) -> Hold | None:
    """Why nothing may be removed of these snapshots (one database in one store, oldest first), or None.

    Because the clock is more than a minute behind one of them; because two writers take turns; because the newest
    regular one uses less than half of the bytes of the largest regular one there is; or because it has lost tables of
    another. Those older than `accepted`, the `Manifest.order` of the snapshot whose shrinking was accepted last, do not
    count. `held`, what was found before and not accepted yet, holds whatever came after it. `trashed` are the
    removed ones, which tell of writers too. `now` is aware.
    """
    return (
        _behind(manifests, now)
        or _taking_turns({each.id: each for each in (*trashed, *manifests)}.values())
        or why_shrunk(manifests, accepted=accepted, held=held)
    )


def _behind(manifests: Sequence[Manifest], now: datetime) -> Hold | None:
    """The hold of a clock that is behind any snapshot: after one by the wrong clock, the newest shows nothing."""
    latest = max(manifests, key=lambda manifest: manifest.id.taken_at, default=None)
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


def _taking_turns(manifests: Iterable[Manifest]) -> Hold | None:
    """The hold of two databases under one name: each would need the places that the other's snapshots take."""
    regular = (manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR)
    newest = sorted(regular, key=lambda manifest: manifest.order)[-_TURNS_SEEN_IN:]
    returns = [position for position in range(1, len(newest)) if _returns_at(position, newest)]
    if len(returns) < _TURNS_HELD:
        return None
    one, other = (newest[position].writer for position in (returns[-1], returns[-1] - 1))
    return Hold(
        f"two writers take turns: {one.path} on {one.host} and {other.path} on {other.host}",
        hint="give each its own name or store; this ends after a few snapshots by one of them alone",
    )


def _returns_at(position: int, newest: Sequence[Manifest]) -> bool:
    """Whether the writer at `position` is another than before, and was there before that.

    One that takes over for good never was, nor was a container with a new id. A host without a lasting state directory
    has many ids and one place, and after a move there are two places and one id: neither is a change of both.
    """
    *earlier, last, writer = (manifest.writer for manifest in newest[: position + 1])
    place = (writer.host, writer.path)
    if writer.id == last.id or place == (last.host, last.path):
        return False
    return any(writer.id == each.id or place == (each.host, each.path) for each in earlier)


def why_shrunk(
    manifests: Sequence[Manifest], *, accepted: tuple[int, SnapshotId] | None, held: Shrink | None = None
) -> Hold | None:
    """The part of `why_held` that accepting the newest regular snapshot ends; `held` goes before what is found now."""
    newest = newest_regular(manifests)
    shrink = held or find_shrink(manifests, accepted=accepted)
    if newest is None or shrink is None:
        return None
    name = newest.database
    if shrink.snapshot == newest.id:
        message = f"the newest snapshot, {shrink.snapshot}, {shrink.reason}"
    else:
        message = f"{shrink.snapshot} was the newest snapshot and {shrink.reason}; nobody has accepted that yet"
    return Hold(
        message,
        hint=f"if the newest is right: backupd prune {name} --accept-shrink; if not, an older one still has it: "
        f"backupd list {name}; after its restore and a new snapshot, accept too",
    )


def find_shrink(manifests: Sequence[Manifest], *, accepted: tuple[int, SnapshotId] | None) -> Shrink | None:
    """What the newest regular one of these snapshots has lost that others have, as far as those count."""
    newest = newest_regular(manifests)
    if newest is None:
        return None
    compared = _not_older_than(accepted, newest, manifests)
    found = _lost_bytes(newest, compared) or _lost_tables(newest, compared)
    return None if found is None else Shrink(snapshot=newest.id, reason=found[:_REASON_CHARACTERS])


def newest_regular(manifests: Iterable[Manifest]) -> Manifest | None:
    """The snapshot whose shrinking `--accept-shrink` accepts: the newest regular one."""
    regular = (manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR)
    return max(regular, key=lambda manifest: manifest.order, default=None)


def _not_older_than(
    accepted: tuple[int, SnapshotId] | None, newest: Manifest, manifests: Iterable[Manifest]
) -> list[Manifest]:
    """The regular ones that count when the newest is looked at for what it lost."""
    regular = [manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR]
    if accepted is None or newest.order < accepted:  # the latter: a history that began anew
        return regular
    return [manifest for manifest in regular if manifest.order >= accepted]


def used_bytes(manifest: Manifest) -> int:
    """How much of a database is in use. In bytes: VACUUM can change the page size, and so the number of pages."""
    return max(0, manifest.page_count - manifest.source.free_pages) * manifest.page_size


def _lost_bytes(newest: Manifest, compared: Iterable[Manifest]) -> str | None:
    largest = max(compared, key=used_bytes, default=newest)
    if used_bytes(newest) >= _SHRUNK_BELOW * used_bytes(largest):
        return None
    return f"has {_size(used_bytes(newest))} in use, and {largest.id} had {_size(used_bytes(largest))}"


def _lost_tables(newest: Manifest, compared: Iterable[Manifest]) -> str | None:
    remaining = {_folded(name) for name in newest.source.tables or ()}
    lost = {
        name: manifest
        for manifest in compared
        for name in manifest.source.tables or ()
        if _folded(name) not in remaining and not _folded(name).startswith(_PASSING_TABLES)
    }
    if not lost:
        return None
    last = max(lost.values(), key=lambda manifest: manifest.order)
    if newest.source.tables is None:
        return f"has a schema that could not be read, and {last.id} had tables"
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
