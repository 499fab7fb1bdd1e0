"""Retention: which snapshots a policy keeps. Pure: values in, decisions out. `holds` prevents every removal."""

from __future__ import annotations

from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from backupd.config.values import format_duration
from backupd.format.manifest import SnapshotKind
from backupd.format.records import CheckOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, tzinfo

    from backupd.config import RetentionSettings
    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary

_NO_REASON = ("no rule keeps it",)
_DAY_CHARACTERS = len("20261122")
_LAST_OF_DAY = timedelta(days=1, microseconds=-1)
_by_order = attrgetter("sequence", "id")
"""The sort key `Summary.order`; for thousands of snapshots, it is faster than the property."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Whether a snapshot stays, and why in a few words; one that stays may have several reasons."""

    manifest: AnySummary
    is_kept: bool
    reasons: tuple[str, ...]


def decide(
    manifests: Sequence[AnySummary],
    policy: RetentionSettings | None,
    *,
    now: datetime,
    known: Mapping[SnapshotId, CheckOutcome],
    undeleted: Collection[SnapshotId],
) -> list[Decision]:
    """Decide for each of `manifests` (one database in one store, oldest first) whether it stays, in their order.

    A snapshot stays when any rule keeps it. Whatever the rules say, these stay: the newest of any kind, the newest
    regular one, by what checks have found (`known`) the newest proven one and, when it is newer, the newest intact one,
    the `undeleted`, and all of them without a policy or with an empty one. `now` is aware; ages count from the newest
    regular snapshot if that is older.

    Snapshots that are known to be damaged take no place from others: the rules choose among the others as if those were
    not there. They themselves go when the rules would have them go anyway, and no sooner: a damaged copy may be the
    only one of its time, and most of it can be read.
    """
    reasons: dict[SnapshotId, tuple[str, ...]] = {}
    for snapshot_id, reason in _kept(manifests, policy, now, known, undeleted):
        reasons[snapshot_id] = (*reasons.get(snapshot_id, ()), reason)
    return [Decision(manifest, manifest.id in reasons, reasons.get(manifest.id, _NO_REASON)) for manifest in manifests]


def _kept(
    manifests: Sequence[AnySummary],
    policy: RetentionSettings | None,
    now: datetime,
    known: Mapping[SnapshotId, CheckOutcome],
    undeleted: Collection[SnapshotId],
) -> Iterator[tuple[SnapshotId, str]]:
    """Every reason to keep a snapshot, in the order in which they are shown."""
    newest_first = sorted(manifests, key=_by_order, reverse=True)
    yield from _newest(newest_first, known)
    for manifest in newest_first if undeleted else ():
        if manifest.id in undeleted:
            yield manifest.id, "undeleted by hand"
    if policy is None or policy.is_empty:
        yield from ((manifest.id, "no policy") for manifest in newest_first)
        return
    damaged = {snapshot_id for snapshot_id, outcome in known.items() if outcome.is_damage}
    others = [manifest for manifest in newest_first if manifest.id not in damaged]
    counted_from = min(_counted_from(others, now), _counted_from(newest_first, now))
    yield from _by_rules(others, policy, counted_from)
    if damaged:
        for snapshot_id, reason in _by_rules(newest_first, policy, counted_from):
            if snapshot_id in damaged:
                yield snapshot_id, f"{reason} (damaged)"


def _by_rules(
    newest_first: Sequence[AnySummary], policy: RetentionSettings, counted_from: datetime
) -> Iterator[tuple[SnapshotId, str]]:
    regular = _regular(newest_first)
    for position, manifest in enumerate(regular[: policy.keep_last], 1):
        yield manifest.id, f"last {position}"
    for count, rule, period in _calendar(policy):
        yield from _newest_of_each(regular, _periods(regular, period, policy.zone), count, rule)
    yield from _young_enough(newest_first, policy, counted_from)


def _newest(
    newest_first: Sequence[AnySummary], known: Mapping[SnapshotId, CheckOutcome]
) -> Iterator[tuple[SnapshotId, str]]:
    if newest_first:
        yield newest_first[0].id, "newest"
    # After a safety snapshot, the newest regular one is what `latest` means.
    regular = _regular(newest_first)
    if regular and regular[0] is not newest_first[0]:
        yield regular[0].id, "newest regular"
    proofs = [(manifest.id, known.get(manifest.id)) for manifest in (newest_first if known else ())]
    found = next((position for position, (_, outcome) in enumerate(proofs) if outcome is CheckOutcome.PROVEN), None)
    if found is not None:
        yield proofs[found][0], "newest proven"
    for snapshot_id, outcome in proofs[:found]:
        if outcome is CheckOutcome.INTACT:
            yield snapshot_id, "newest intact"
            break


def _regular(newest_first: Iterable[AnySummary]) -> list[AnySummary]:
    return [manifest for manifest in newest_first if manifest.kind is SnapshotKind.REGULAR]


def _calendar(policy: RetentionSettings) -> Iterator[tuple[int, str, Callable[[datetime], str]]]:
    """The calendar rules: how many periods each keeps, its name, and the function that names the period of a time."""
    yield policy.hourly, "hourly", _hour
    yield policy.daily, "daily", _day
    yield policy.weekly, "weekly", _week
    yield policy.monthly, "monthly", _month
    yield policy.yearly, "yearly", _year


def _periods(manifests: Iterable[AnySummary], period: Callable[[datetime], str], zone: tzinfo | None) -> Iterator[str]:
    """The period of each snapshot, by its local time.

    For 10,000 snapshots, local times cost more than all else here, so that one that all of a day have is found once.
    """
    of_days: dict[str, str | None] = {}
    for manifest in manifests:
        day = manifest.id[:_DAY_CHARACTERS]
        if day not in of_days:
            of_days[day] = _of_whole_day(manifest.id.taken_at, period, zone)
        yield of_days[day] or period(_local(manifest.id.taken_at, zone))


def _of_whole_day(moment: datetime, period: Callable[[datetime], str], zone: tzinfo | None) -> str | None:
    """The period that contains the whole day of `moment` (UTC), or None.

    Local time is not monotonic on a day when clocks are changed.
    """
    begin = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    first, last = _local(begin, zone), _local(begin + _LAST_OF_DAY, zone)
    is_monotonic = first.utcoffset() == last.utcoffset()
    return period(first) if is_monotonic and period(first) == period(last) else None


def _local(moment: datetime, zone: tzinfo | None) -> datetime:
    try:
        return moment.astimezone(zone)
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
    newest_first: Iterable[AnySummary], periods: Iterable[str], count: int, rule: str
) -> Iterator[tuple[SnapshotId, str]]:
    """The newest of each of the last `count` periods that have one; `periods` are those of the snapshots.

    Which period is last follows from the order of the snapshots, not from its name: a snapshot that a wrong clock
    dated years ahead would otherwise stay in the last year for years.
    """
    newest: dict[str, SnapshotId] = {}
    for manifest, period in zip(newest_first, periods, strict=False) if count else ():
        newest.setdefault(period, manifest.id)
        if len(newest) == count:
            break
    for period, snapshot_id in newest.items():
        yield snapshot_id, f"{rule} {period}"


def _counted_from(newest_first: Sequence[AnySummary], now: datetime) -> datetime:
    """The time from which ages count: that of the newest snapshot, so that nothing gets older while none is taken."""
    newest = next(iter(_regular(newest_first) or newest_first), None)
    return now if newest is None else min(now, newest.id.taken_at)


def _young_enough(
    newest_first: Sequence[AnySummary], policy: RetentionSettings, counted_from: datetime
) -> Iterator[tuple[SnapshotId, str]]:
    for manifest in newest_first:
        is_plain = manifest.kind is SnapshotKind.REGULAR and not manifest.tags
        if is_plain and policy.within is None:
            continue
        age = counted_from - manifest.id.taken_at
        is_regular = manifest.kind is SnapshotKind.REGULAR
        if policy.within is not None and is_regular and age <= policy.within:
            yield manifest.id, f"within {format_duration(policy.within)}"
        # What a safety snapshot holds may be what its user fled from, so no other rule lets it stand for a period.
        if age <= policy.tagged and not is_plain:
            yield manifest.id, "tagged" if is_regular else "before a restore"


def newest_regular(manifests: Iterable[AnySummary]) -> AnySummary | None:
    """The newest regular snapshot, whose shrinking `--accept-shrink` accepts."""
    regular = (manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR)
    return max(regular, key=_by_order, default=None)
