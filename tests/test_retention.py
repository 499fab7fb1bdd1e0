from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from harness.extent import sampled, slow
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from backupd.config import RetentionSettings
from backupd.format import SnapshotId
from backupd.format.manifest import Manifest, SnapshotKind, SourceFacts, Writer
from backupd.format.records import RECORDED_OUTCOMES, CheckOutcome
from backupd.retention import Decision, decide, newest_regular
from backupd.retention.holds import find_shrink, why_distrusted, why_held, why_shrunk

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

_SOURCE = SourceFacts(
    journal_mode="wal",
    encoding="UTF-8",
    free_pages=0,
    schema_version=1,
    user_version=0,
    application_id=0,
    sqlite_version="3.45.1",
    tables=("users",),
    schema_digest=None,
    alembic_revisions=None,
)
_WRITER = Writer(id="0", host="web-1", path="/data/app.db", uid=0, gid=0, mode=0o600, backupd_version="0.1.0")
_NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_COUNTS = ("keep_last", "hourly", "daily", "weekly", "monthly", "yearly")
_NOTHING = dict.fromkeys(_COUNTS, 0)
_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu")


def snapshot(
    taken_at: datetime,
    sequence: int,
    *,
    tags: tuple[str, ...] = (),
    kind: SnapshotKind = SnapshotKind.REGULAR,
    pages: int = 100,
    page_size: int = 4096,
    free_pages: int = 0,
    tables: tuple[str, ...] | None = ("users",),
) -> Manifest:
    """The snapshot that is number `sequence` of its database."""
    return Manifest(
        id=SnapshotId.new(taken_at, sequence),
        sequence=sequence,
        base=None,
        database="app",
        kind=kind,
        tags=tags,
        page_size=page_size,
        page_count=pages,
        changed_pages=0,
        stored_bytes=0,
        image_digest="0" * 64,
        packs=(),
        page_map="",
        source=replace(_SOURCE, free_pages=free_pages, tables=tables),
        writer=_WRITER,
    )


def at(moments: Iterable[datetime]) -> list[Manifest]:
    """A regular snapshot at each moment, in this order."""
    return [snapshot(moment, sequence) for sequence, moment in enumerate(moments, 1)]


def rules(**values: Any) -> RetentionSettings:
    """A policy in UTC of these rules only."""
    return RetentionSettings(**{**_NOTHING, "time_zone": "UTC", **values})


def decided(
    manifests: Sequence[Manifest],
    policy: RetentionSettings | None,
    *,
    proven: Collection[SnapshotId] = (),
    known: Mapping[SnapshotId, CheckOutcome] = MappingProxyType({}),
    undeleted: Collection[SnapshotId] = (),
    now: datetime = _NOW,
) -> list[Decision]:
    """What `decide` says at noon of 22 November 2026."""
    known = {**dict.fromkeys(proven, CheckOutcome.PROVEN), **known}
    return decide(manifests, policy, now=now, known=known, undeleted=undeleted)


def kept(*arguments: Any, **options: Any) -> list[Manifest]:
    """The snapshots that stay."""
    return [decision.manifest for decision in decided(*arguments, **options) if decision.is_kept]


def reasons(*arguments: Any, **options: Any) -> list[tuple[str, ...]]:
    """The reasons for each snapshot."""
    return [decision.reasons for decision in decided(*arguments, **options)]


# Laws, for every history and policy


@st.composite
def histories(draw: st.DrawFn) -> list[Manifest]:
    """Snapshots of some years, in order of their sequence; now and then a clock was wrong."""
    moments = draw(st.lists(st.integers(-3 * 365 * 24 * 60, 0), max_size=30))
    if draw(st.booleans()):
        moments.sort()
    return [
        snapshot(
            _NOW + timedelta(minutes=minutes),
            sequence,
            tags=("tag",) if draw(st.integers(0, 7)) == 0 else (),
            kind=SnapshotKind.BEFORE_RESTORE if draw(st.integers(0, 7)) == 0 else SnapshotKind.REGULAR,
        )
        for sequence, minutes in enumerate(moments, 1)
    ]


_AGES = st.integers(1, 3 * 365 * 24).map(lambda hours: hours * _HOUR)
_POLICIES = st.builds(
    RetentionSettings,
    **dict.fromkeys(_COUNTS, st.integers(0, 5)),
    within=st.none() | _AGES,
    tagged=_AGES,
    time_zone=st.sampled_from(_ZONES),
)
_CHOICES = st.sets(st.integers(0, 29), max_size=4)


def _chosen(manifests: Sequence[Manifest], choice: Collection[int]) -> set[SnapshotId]:
    return {manifest.id for position, manifest in enumerate(manifests) if position in choice}


@given(histories(), _POLICIES, _CHOICES, _CHOICES)
def test_what_must_never_go_stays(manifests, policy, proven_choice, undeleted_choice):
    """The newest, the newest regular, the newest proven one and what was undeleted by hand stay under any policy."""
    proven, undeleted = _chosen(manifests, proven_choice), _chosen(manifests, undeleted_choice)
    stay = kept(manifests, policy, proven=proven, undeleted=undeleted)
    must = [manifest for manifest in manifests if manifest.id in undeleted]
    must += manifests[-1:]
    must += [manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR][-1:]
    must += [manifest for manifest in manifests if manifest.id in proven][-1:]
    assert all(manifest in stay for manifest in must)


_FINDINGS = st.dictionaries(st.integers(0, 29), st.sampled_from(RECORDED_OUTCOMES), max_size=12)


def _known(manifests: Sequence[Manifest], findings: Mapping[int, CheckOutcome]) -> dict[SnapshotId, CheckOutcome]:
    return {manifest.id: findings[position] for position, manifest in enumerate(manifests) if position in findings}


@given(histories(), _POLICIES, _FINDINGS)
def test_pruning_twice_removes_nothing_more(manifests, policy, findings):
    """What stays once stays again, at the same time and under the same policy."""
    known = _known(manifests, findings)
    once = kept(manifests, policy, known=known)
    assert kept(once, policy, known=known) == once


@given(histories(), _POLICIES, _FINDINGS)
def test_what_drills_find_removes_nothing_that_would_have_stayed(manifests, policy, findings):
    """Known damage removes no snapshot sooner, neither the damaged one nor another."""
    known = _known(manifests, findings)
    before = kept(manifests, policy)
    after = kept(manifests, policy, known=known)
    assert all(manifest in after for manifest in before)
    damaged = {snapshot_id for snapshot_id, outcome in known.items() if outcome.is_damage}
    others = [manifest for manifest in manifests if manifest.id not in damaged]
    assert all(manifest in after for manifest in kept(others, policy, known=known))


@given(histories(), _POLICIES, _FINDINGS)
def test_the_last_snapshots_that_were_found_right_stay(manifests, policy, findings):
    """The newest proven one, and a newer one that was at least intact, however many damaged ones came after them."""
    known = _known(manifests, findings)
    stay = kept(manifests, policy, known=known)
    right = [each for each in manifests if known.get(each.id) in {CheckOutcome.PROVEN, CheckOutcome.INTACT}]
    assert all(manifest in stay for manifest in right[-1:])
    assert all(each in stay for each in [each for each in right if known[each.id] is CheckOutcome.PROVEN][-1:])


@st.composite
def courses(draw: st.DrawFn) -> tuple[list[Manifest], list[tuple[int, CheckOutcome | None]]]:
    """What happens to a database, one snapshot after the other: by its position, what a drill found right after it."""
    manifests = draw(histories())
    outcomes = draw(
        st.lists(st.none() | st.sampled_from(RECORDED_OUTCOMES), min_size=len(manifests), max_size=len(manifests))
    )
    return manifests, [*enumerate(outcomes)]


@given(courses(), _POLICIES)
def test_nothing_sound_is_ever_rotated_out_by_something_damaged(course, policy):
    """While the newest tested snapshot is damaged, no prune removes anything.

    So what was there when the damage came stays until something newer was found right, and what was found right last
    stays in any case.
    """
    manifests, outcomes = course
    there: list[Manifest] = []
    known: dict[SnapshotId, CheckOutcome] = {}
    last_right: Manifest | None = None
    for position, outcome in outcomes:
        there.append(manifests[position])
        if outcome is not None:
            known[manifests[position].id] = outcome
            last_right = last_right if outcome.is_damage else manifests[position]
        looked_at = [each for each in there if each.id in known]
        is_damaged = bool(looked_at) and known[looked_at[-1].id].is_damage
        hold = why_distrusted(there, known)
        assert (hold is not None) == is_damaged
        if hold is None:
            there = kept(there, policy, known=known)
        assert last_right is None or last_right in there
        assert manifests[position] in there


@given(histories(), _POLICIES)
def test_without_drills_nothing_is_held(manifests, policy):
    """Without any drill, nothing is held."""
    assert why_distrusted(manifests, {}) is None
    assert decided(manifests, policy) == decided(manifests, policy, known={})


def test_damaged_snapshots_take_no_place():
    """The rules count the others; a damaged one has the reasons that it would have, and says so."""
    manifests = at(_NOW - days * _DAY for days in (4, 3, 2, 1, 0))
    known = {manifests[3].id: CheckOutcome.DAMAGED_STORE, manifests[2].id: CheckOutcome.DAMAGED_SOURCE}
    assert reasons(manifests, rules(keep_last=2), known=known) == [
        ("no rule keeps it",),
        ("last 2",),
        ("no rule keeps it",),
        ("last 2 (damaged)",),
        ("newest", "last 1"),
    ]


def test_a_hold_for_damage_says_what_ends_it():
    """A hold for damage names the snapshot and the remedy, which differs for the store and the database."""
    manifests = at(_NOW - days * _DAY for days in (2, 1, 0))
    known = {manifests[0].id: CheckOutcome.PROVEN, manifests[1].id: CheckOutcome.DAMAGED_STORE}
    store = why_distrusted(manifests, known)
    source = why_distrusted(manifests, known | {manifests[1].id: CheckOutcome.DAMAGED_SOURCE})
    assert store is not None
    assert source is not None
    for hold in (store, source):
        assert str(manifests[1].id) in hold.message
        assert "backupd verify app@latest --level drill" in hold.hint
        assert hold.ends_by_itself
    assert "damaged in the store" in store.message
    assert "integrity_check" in source.hint
    assert why_distrusted(manifests, known | {manifests[2].id: CheckOutcome.INTACT}) is None


@given(histories(), _POLICIES, st.data())
def test_a_stricter_policy_never_keeps_more(manifests, policy, data):
    """Smaller counts and shorter ages keep a part of what greater ones keep, unless nothing at all is left of them."""
    counts = {key: data.draw(st.integers(0, getattr(policy, key)), label=key) for key in _COUNTS}
    shorter = {
        key: age and max(_HOUR, age * data.draw(st.floats(0, 1)))
        for key, age in {"within": policy.within, "tagged": policy.tagged}.items()
    }
    stricter = policy.replaced(**counts, **shorter)
    if not stricter.is_empty:
        assert {manifest.id for manifest in kept(manifests, stricter)} <= {
            manifest.id for manifest in kept(manifests, policy) if not policy.is_empty
        }


@given(histories(), _POLICIES, _CHOICES)
def test_rules_are_a_union(manifests, policy, proven_choice):
    """A snapshot stays exactly when one of the rules alone would keep it."""
    proven = _chosen(manifests, proven_choice)
    alone = [{**_NOTHING, "within": None, key: getattr(policy, key)} for key in (*_COUNTS, "within")]
    singles = [policy.replaced(**values) for values in alone]
    singles = [single for single in singles if not single.is_empty]
    by_any = [kept(manifests, single, proven=proven) for single in singles]
    together = kept(manifests, policy, proven=proven)
    if singles:
        assert together == [manifest for manifest in manifests if any(manifest in each for each in by_any)]
    else:
        assert together == manifests


@given(histories(), _POLICIES, _CHOICES, st.integers(0, 60 * 24 * 40), st.sampled_from(SnapshotKind))
def test_a_new_snapshot_removes_only_what_no_other_rule_keeps(manifests, policy, proven_choice, minutes, kind):
    """What goes because of a new snapshot was kept by rules that count, as their last, or is now too old for an age."""
    proven = _chosen(manifests, proven_choice)
    added = snapshot(_NOW + timedelta(minutes=minutes), len(manifests) + 1, kind=kind)
    before = decided(manifests, policy, proven=proven)
    now = added.id.taken_at
    after = {
        decision.manifest.id: decision for decision in decided([*manifests, added], policy, proven=proven, now=now)
    }
    assert after[added.id].is_kept
    gone = [decision for decision in before if decision.is_kept and not after[decision.manifest.id].is_kept]
    reported = Counter(reason.split()[0] for decision in gone for reason in decision.reasons)
    for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        assert reported.pop(rule, 0) <= 1
    assert reported.pop("newest", 0) <= 2
    assert reported.keys() <= {"within", "tagged", "before"}
    for decision in gone:
        age = now - decision.manifest.id.taken_at
        assert not any(reason.startswith("within") for reason in decision.reasons) or age > policy.within
        assert not {"tagged", "before a restore"} & {*decision.reasons} or age > policy.tagged


@given(histories(), _POLICIES, _CHOICES, st.integers(0, 60 * 24 * 365 * 30))
def test_time_alone_removes_nothing(manifests, policy, proven_choice, minutes):
    """Without a new snapshot no snapshot is removed, however much time passes."""
    proven = _chosen(manifests, proven_choice)
    later = _NOW + timedelta(minutes=minutes)
    assert kept(manifests, policy, proven=proven, now=later) == kept(manifests, policy, proven=proven)


@given(histories(), _POLICIES)
def test_every_decision_has_its_reason(manifests, policy):
    """Each snapshot has one decision with a reason, in order, and a count keeps as many as it can."""
    found = decided(manifests, policy)
    assert [decision.manifest for decision in found] == manifests
    assert all(decision.reasons for decision in found)
    assert all(decision.is_kept != (decision.reasons == ("no rule keeps it",)) for decision in found)
    regular = [manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR]
    zone = ZoneInfo(policy.time_zone)
    local = [manifest.id.taken_at.astimezone(zone) for manifest in regular]
    reported = Counter(reason.split()[0] for decision in found for reason in decision.reasons)
    if not policy.is_empty:
        assert reported["last"] == min(policy.keep_last, len(regular))
        assert reported["daily"] == min(policy.daily, len({moment.date() for moment in local}))
        assert reported["weekly"] == min(policy.weekly, len({moment.isocalendar()[:2] for moment in local}))
        assert reported["monthly"] == min(policy.monthly, len({(moment.year, moment.month) for moment in local}))
        assert reported["yearly"] == min(policy.yearly, len({moment.year for moment in local}))


@given(histories(), _CHOICES)
def test_without_a_policy_everything_stays(manifests, proven_choice):
    """A policy that is missing or empty removes nothing, however old a snapshot is."""
    proven = _chosen(manifests, proven_choice)
    for policy in (None, rules(), rules(tagged=_HOUR)):
        assert kept(manifests, policy, proven=proven) == manifests
        assert all("no policy" in each for each in reasons(manifests, policy))


# Rules, one by one


def test_reasons_tell_what_keeps_a_snapshot():
    """The reasons name each rule that keeps a snapshot."""
    manifests = at([_NOW - 400 * _DAY, _NOW - 10 * _DAY, _NOW - _DAY - _HOUR, _NOW - _DAY, _NOW - _HOUR])
    policy = rules(keep_last=2, hourly=1, daily=2, weekly=2, monthly=1, yearly=2, within=timedelta(hours=25))
    assert reasons(manifests, policy, proven={manifests[1].id}, undeleted={manifests[0].id}) == [
        ("undeleted by hand", "yearly 2025"),
        ("newest proven", "weekly 2026-W46"),
        ("within 1d1h",),
        ("last 2", "daily 2026-11-21", "within 1d1h"),
        (
            "newest",
            "last 1",
            "hourly 2026-11-22 11+00:00",
            "daily 2026-11-22",
            "weekly 2026-W47",
            "monthly 2026-11",
            "yearly 2026",
            "within 1d1h",
        ),
    ]
    assert reasons(manifests, rules(keep_last=1))[:2] == [("no rule keeps it",)] * 2


def test_periods_without_a_snapshot_are_not_counted():
    """Periods without a snapshot are not counted: after a long holiday the days before it are still there."""
    manifests = at(_NOW - age * _DAY for age in (300, 200, 199, 100, 0))
    assert kept(manifests, rules(daily=4)) == manifests[1:]
    assert kept(manifests, rules(yearly=1)) == manifests[-1:]


def test_the_newest_of_a_period_is_kept():
    """The last snapshot of a day by its sequence is kept, even if a clock was set back during the day."""
    day = _NOW.replace(hour=0)
    manifests = at([day + 9 * _HOUR, day + 8 * _HOUR, day + 24 * _HOUR])
    assert kept(manifests, rules(daily=5), now=day + 2 * _DAY) == manifests[1:]


def test_iso_weeks_begin_on_monday_and_belong_to_one_year():
    """The first days of January may be in the last week of the old year."""
    manifests = at(datetime(2026, 12, day, 12, tzinfo=UTC) for day in (27, 28))
    manifests.append(snapshot(datetime(2027, 1, 3, 12, tzinfo=UTC), 3))
    manifests.append(snapshot(datetime(2027, 1, 4, 12, tzinfo=UTC), 4))
    assert reasons(manifests, rules(weekly=9)) == [
        ("weekly 2026-W52",),
        ("no rule keeps it",),
        ("weekly 2026-W53",),
        ("newest", "weekly 2027-W01"),
    ]


def test_days_are_those_of_the_configured_time_zone():
    """Half past midnight in Berlin is the day before in UTC."""
    evening, night = datetime(2026, 11, 21, 22, 30, tzinfo=UTC), datetime(2026, 11, 21, 23, 30, tzinfo=UTC)
    manifests = at([evening, night])
    assert kept(manifests, rules(daily=2, time_zone="UTC")) == [manifests[1]]
    assert reasons(manifests, rules(daily=2, time_zone="Europe/Berlin")) == [
        ("daily 2026-11-21",),
        ("newest", "daily 2026-11-22"),
    ]


def test_without_a_time_zone_days_are_those_of_the_machine(monkeypatch):
    """Without a time zone days are those of the machine, with its offset on that date."""
    manifests = at([datetime(2026, 7, 1, 3, 30, tzinfo=UTC), datetime(2026, 7, 1, 4, 30, tzinfo=UTC)])
    with monkeypatch.context() as context:
        context.setenv("TZ", "America/New_York")
        time.tzset()
        found = reasons(manifests, rules(daily=2, time_zone=None))
    time.tzset()
    assert found == [("daily 2026-06-30",), ("newest", "daily 2026-07-01")]


def test_snapshot_is_kept_to_the_last_millisecond_of_its_age():
    """A snapshot stays through the last millisecond of its age, and goes with the next."""
    manifests = at([_NOW - 7 * _DAY - timedelta(milliseconds=1), _NOW - 7 * _DAY, _NOW])
    assert kept(manifests, rules(within=7 * _DAY)) == manifests[1:]
    tagged = [snapshot(manifest.id.taken_at, manifest.sequence, tags=("v1",)) for manifest in manifests]
    assert kept(tagged, rules(keep_last=1, tagged=7 * _DAY)) == tagged[1:]


def test_age_counts_from_the_newest_regular_snapshot():
    """A service that was off for a year keeps what was there; safety snapshots and wrong dates change nothing."""
    manifests = at(_NOW - age * _DAY for age in (8, 7, 1, 0))
    policy = rules(within=7 * _DAY)
    assert kept(manifests, policy, now=_NOW + 365 * _DAY) == manifests[1:]
    safety = snapshot(_NOW + 364 * _DAY, 5, kind=SnapshotKind.BEFORE_RESTORE)
    assert kept([*manifests, safety], policy, now=_NOW + 365 * _DAY) == [*manifests[1:], safety]
    assert kept([*manifests[:-1], snapshot(_NOW + 99 * _DAY, 4)], policy)[0] == manifests[1]
    tagged = [snapshot(_NOW - age * _DAY, 9 - age, tags=("v1",)) for age in (8, 7, 0)]
    assert kept(tagged, rules(keep_last=1, tagged=7 * _DAY), now=_NOW + 365 * _DAY) == tagged[1:]


def test_a_tagged_snapshot_takes_part_in_all_rules():
    """A tag adds a reason, and takes no place away from the calendar's."""
    manifests = [snapshot(_NOW - 2 * _DAY, 1), snapshot(_NOW - _DAY, 2, tags=("v1",)), snapshot(_NOW, 3)]
    assert reasons(manifests, rules(keep_last=2)) == [
        ("no rule keeps it",),
        ("last 2", "tagged"),
        ("newest", "last 1"),
    ]


def test_a_safety_snapshot_never_stands_for_a_period():
    """What was there before a restore may be what had to go: it is kept for its age, and takes no other's place."""
    safety = snapshot(_NOW - _HOUR, 2, kind=SnapshotKind.BEFORE_RESTORE)
    manifests = [snapshot(_NOW - 2 * _HOUR, 1), safety]
    policy = rules(keep_last=1, daily=1, within=9 * _DAY, tagged=2 * _HOUR)
    assert reasons(manifests, policy) == [
        ("newest regular", "last 1", "daily 2026-11-22", "within 9d"),
        ("newest", "before a restore"),
    ]
    assert safety in kept([*manifests, snapshot(_NOW + _HOUR, 3)], policy, now=_NOW + 2 * _HOUR)
    assert safety not in kept([*manifests, snapshot(_NOW + 2 * _HOUR, 3)], policy, now=_NOW + 2 * _HOUR)


def test_the_newest_proven_one_goes_by_sequence_and_only_one_stays():
    """A newer proof lets the older one go."""
    manifests = at(_NOW - age * _DAY for age in (3, 2, 1, 0))
    proven = {manifests[0].id, manifests[1].id}
    assert kept(manifests, rules(keep_last=1), proven=proven) == [manifests[1], manifests[3]]


def test_a_snapshot_dated_years_ahead_does_not_hold_a_place_for_years():
    """A clock that was wrong once: its snapshot goes when enough newer ones are there."""
    manifests = at([_NOW + 3000 * _DAY, *(_NOW - age * _DAY for age in (3, 2, 1))])
    assert kept(manifests, rules(daily=3)) == manifests[1:]


@pytest.mark.parametrize("year", ["0001", "9999"])
@pytest.mark.parametrize("zone", _ZONES)
def test_a_time_at_the_end_of_the_calendar_is_no_crash(year, zone):
    """An id can name a time that no time zone can show."""
    ends = {"0001": "00010101T000000000Z", "9999": "99991231T235959999Z"}
    manifests = [replace(snapshot(_NOW, 1), id=SnapshotId(f"{ends[year]}-00000001"))]
    assert kept(manifests, rules(hourly=1, daily=1, weekly=1, monthly=1, yearly=1, time_zone=zone)) == manifests


# The days on which clocks change


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 24),  # 23.5 hours: 02:00 becomes 02:30
        ("Australia/Lord_Howe", "2026-04-05", 25),  # 24.5 hours: 02:00 becomes 01:30
        ("UTC", "2026-10-25", 24),
    ],
)
def test_every_hour_of_a_day_when_clocks_change_is_one(zone, day, hours):
    """Hours that are left out keep nothing, and an hour that comes twice keeps two; each day keeps its last minute."""
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    # Wall-clock arithmetic: the length of this day follows from the zone.
    start, end = midnight.astimezone(UTC), (midnight + _DAY).astimezone(UTC)
    minutes = int((end - start) / timedelta(minutes=1))
    manifests = at(start + timedelta(minutes=minute) for minute in range(minutes))
    hourly = kept(manifests, rules(hourly=100, time_zone=zone), now=end)
    assert len(hourly) == hours
    assert (
        len({reason for each in reasons(manifests, rules(hourly=100, time_zone=zone)) for reason in each}) == hours + 2
    )
    assert kept(manifests, rules(daily=5, time_zone=zone), now=end) == manifests[-1:]


@pytest.fixture(scope="module")
def year() -> list[Manifest]:
    """A snapshot every half hour of 2026."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return at(start + step * timedelta(minutes=30) for step in range(2 * 24 * 365))


@slow
@pytest.mark.parametrize("zone", sampled(["Australia/Lord_Howe", "Europe/Berlin", "America/New_York"]))
def test_a_year_of_snapshots_keeps_the_last_of_every_local_day(year, zone):
    """Exactly those stay after which the local date changes."""
    dates = [manifest.id.taken_at.astimezone(ZoneInfo(zone)).date() for manifest in year]
    last = [manifest for manifest, date, after in zip(year, dates, [*dates[1:], None], strict=True) if date != after]
    assert kept(year, rules(daily=400, time_zone=zone)) == last
    assert kept(year, rules(daily=7, time_zone=zone)) == last[-7:]


_AROUND_CHANGES = [
    datetime(*at, tzinfo=UTC)
    for at in (
        (2026, 3, 28, 12),
        (2026, 10, 24, 12),
        (2026, 11, 1),
        (2026, 4, 4),
        (2011, 12, 29),
        (2026, 12, 31),
        (2026, 2, 28),
    )
]


@given(
    st.sampled_from(_ZONES),
    st.sampled_from(_AROUND_CHANGES),
    st.lists(st.integers(0, 4 * 24 * 60 - 1), min_size=1, max_size=60),
)
def test_periods_are_those_of_the_local_time_of_each_snapshot(zone, start, minutes):
    """Each period keeps its newest: at the ends of days, when clocks change, and on a day that a zone has left out."""
    manifests = at(start + timedelta(minutes=minute) for minute in sorted(minutes))
    spelled = {"hourly": "%Y-%m-%d %H%z", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "yearly": "%Y"}
    for rule, spelling in spelled.items():
        last = {f"{manifest.id.taken_at.astimezone(ZoneInfo(zone)):{spelling}}": manifest for manifest in manifests}
        expected = sorted(last.values(), key=lambda manifest: manifest.sequence)
        assert kept(manifests, rules(**{rule: 500}, time_zone=zone)) == expected, rule


# Holds


def test_a_clock_behind_any_snapshot_holds():
    """A minute is forgiven; more than that makes every age wrong."""
    manifests = at([_NOW - _DAY, _NOW + timedelta(minutes=1)])
    assert why_held(manifests, now=_NOW, accepted=None) is None
    hold = why_held(manifests, now=_NOW - timedelta(milliseconds=1), accepted=None)
    assert hold is not None
    assert f"is behind the snapshot {manifests[1].id}" in hold.message
    assert "2026-11-22T11:59:59Z" in hold.message
    assert hold.hint.startswith("set the clock right; or, if it is: ")


def test_a_clock_that_was_set_back_holds_after_its_own_snapshot_too():
    """`now` prunes right after it has taken one by the wrong clock; the one that shows it need not be the newest."""
    ahead = _NOW + 100 * _DAY
    manifests = at([_NOW - _DAY, ahead, _NOW - 2000 * _DAY])
    hold = why_held(manifests, now=_NOW - 2000 * _DAY, accepted=None)
    assert hold is not None
    assert str(manifests[1].id) in hold.message
    assert hold.hint.endswith(f": backupd forget app@{manifests[1].id}")


@pytest.mark.parametrize("kind", SnapshotKind)
def test_what_cannot_be_forgotten_yet_needs_another_snapshot_first(kind):
    """The hint for a right clock names commands that work, for the newest of any kind and the newest regular one."""
    manifests = [snapshot(_NOW + _DAY, 1), snapshot(_NOW, 2, kind=kind)]
    if kind is SnapshotKind.REGULAR:
        manifests.reverse()
        manifests = [replace(each, sequence=number) for number, each in enumerate(manifests, 1)]
    hold = why_held(manifests, now=_NOW, accepted=None)
    assert hold is not None
    late = max(manifests, key=lambda each: each.id.taken_at)
    assert hold.hint.endswith(f": backupd now app --full, then backupd forget app@{late.id}")


def written_by(*writers: tuple[str, str]) -> list[Manifest]:
    """A snapshot by each writer, of which an installation's id and a host are reported, one an hour."""
    start = _NOW - len(writers) * _HOUR
    return [
        replace(each, writer=replace(_WRITER, id=writer_id, host=host))
        for each, (writer_id, host) in zip(at(start + n * _HOUR for n in range(len(writers))), writers, strict=True)
    ]


_ONE, _OTHER = ("1", "web-1"), ("2", "web-2")


@pytest.mark.parametrize(
    "writers",
    [
        [_ONE, _OTHER] * 3,
        [_OTHER, *[_ONE, _OTHER] * 20],
        [_ONE, _ONE, _OTHER, _ONE, _OTHER, _OTHER, _ONE, _OTHER],
        [(str(number), f"web-{number % 2}") for number in range(8)],
    ],
    ids=["from the start", "for long", "not strictly", "without a lasting state directory"],
)
def test_two_writers_that_take_turns_hold(writers):
    """Two databases under one name: what one of them needs would go to make room for the other's."""
    manifests = written_by(*writers)
    hold = why_held(manifests, now=_NOW, accepted=None)
    assert hold is not None
    newest, before = (f"/data/app.db on {host}" for host in (writers[-1][1], writers[-2][1]))
    assert hold.message == f"two writers take turns: {newest} and {before}"
    assert "name or store" in hold.hint


@pytest.mark.parametrize(
    "writers",
    [
        [_ONE] * 4 + [_OTHER] * 4,
        [(str(number), f"container-{number}") for number in range(8)],
        [(str(number), "web-1") for number in range(8)],
        [("1", f"laptop-{number % 2}") for number in range(8)],
        [_ONE, _ONE, _OTHER, _ONE, _ONE, _OTHER, _ONE, _ONE],
        [_ONE, _OTHER] * 20 + [_ONE] * 5,
    ],
    ids=["taken over", "recreated", "recreated in one place", "renamed", "a few by hand", "mended since"],
)
def test_other_changes_of_the_writer_do_not_hold(writers):
    """A host that takes over, containers that come and go, and now and then a run from elsewhere are usual."""
    assert why_held(written_by(*writers), now=_NOW, accepted=None) is None


def test_writers_of_what_was_removed_count_too():
    """Removed snapshots still show that two writers take turns."""
    manifests = written_by(*[_ONE, _OTHER] * 4)
    hold = why_held(manifests[-1:], now=_NOW, accepted=None, trashed=manifests[:-1])
    assert hold is not None
    assert "take turns" in hold.message


def test_two_writers_are_reported_before_what_one_of_them_lacks():
    """The other's tables are not lost, and must not be accepted as lost."""
    manifests = written_by(*[_ONE, _OTHER] * 4)
    manifests[-1] = replace(manifests[-1], source=replace(_SOURCE, tables=("orders",)))
    assert why_shrunk(manifests, accepted=None) is not None
    hold = why_held(manifests, now=_NOW, accepted=None)
    assert hold is not None
    assert "take turns" in hold.message


def test_nothing_to_compare_holds_nothing():
    """No snapshots, or safety snapshots only, hold nothing."""
    assert why_held([], now=_NOW, accepted=None) is None
    assert why_held([snapshot(_NOW, 1, kind=SnapshotKind.BEFORE_RESTORE)], now=_NOW, accepted=None) is None
    assert newest_regular([]) is None


@pytest.mark.parametrize(("pages", "is_held"), [(50, False), (49, True), (0, True), (200, False)])
def test_a_newest_snapshot_below_half_of_the_largest_holds(pages, is_held):
    """Exactly half still passes; the message says how much there was, and is, and what to do."""
    largest = snapshot(_NOW - 2 * _DAY, 1, pages=100)
    between = snapshot(_NOW - _DAY, 2, pages=60)
    newest = snapshot(_NOW, 3, pages=pages)
    hold = why_held([largest, between, newest], now=_NOW, accepted=None)
    assert (hold is not None) == is_held
    if hold is not None:
        used = f"{pages * 4096 / 1000:,.0f} kB"
        assert hold.message == f"the newest snapshot, {newest.id}, has {used} in use, and {largest.id} had 410 kB"
        assert "backupd prune app --accept-shrink" in hold.hint
        assert hold.hint.endswith("; after its restore and a new snapshot, accept too")


def test_free_pages_do_not_count():
    """Rows that were deleted leave a file of its old size behind; one that VACUUM made small has lost nothing."""
    full, emptied = snapshot(_NOW - _DAY, 1), snapshot(_NOW, 2, free_pages=51)
    assert why_shrunk([full, emptied], accepted=None) is not None
    sparse, vacuumed = snapshot(_NOW - _DAY, 1, free_pages=80), snapshot(_NOW, 2, pages=20)
    assert why_shrunk([sparse, vacuumed], accepted=None) is None


def test_another_page_size_is_no_shrinking():
    """Bytes are compared, not pages."""
    before, after = snapshot(_NOW - _DAY, 1, pages=800, page_size=1024), snapshot(_NOW, 2, pages=200, page_size=4096)
    assert why_shrunk([before, after], accepted=None) is None


def test_sizes_are_shown_in_units_that_fit():
    """A large database in megabytes."""
    hold = why_shrunk([snapshot(_NOW - _DAY, 1, pages=300_000), snapshot(_NOW, 2, pages=4000)], accepted=None)
    assert hold is not None
    assert hold.message.endswith("has 16 MB in use, and 20261121T120000000Z-00000001 had 1,229 MB")


def test_tables_that_are_gone_hold():
    """Whichever snapshot had them; a few are named, and the one to get them back from."""
    many = tuple(f"t{number}" for number in range(9))
    manifests = [snapshot(_NOW - _DAY, 1, tables=("users", *many)), snapshot(_NOW, 2, tables=("users", "t1", "t2"))]
    hold = why_shrunk(manifests, accepted=None)
    assert hold is not None
    assert hold.message == (
        f"the newest snapshot, {manifests[1].id}, has lost tables that {manifests[0].id} had: t0, t3, t4, t5 and 3 more"
    )


@pytest.mark.parametrize(
    ("before", "after", "is_held"),
    [
        (("users",), ("users", "orders"), False),
        (("users", "sqlite_stat1", "_alembic_tmp_users"), ("users",), False),
        (("Users",), ("users",), False),
        (("users",), (), True),
        (("users",), None, True),
        (None, None, False),
        ((), None, False),
        (None, ("users",), False),
        (("sqlite_stat1",), None, False),
    ],
)
def test_lost_tables_hold_unless_sqlite_or_a_migration_made_them(before, after, is_held):
    """A lost table holds, unless SQLite or a migration made it; an unreadable schema has lost all tables."""
    manifests = [snapshot(_NOW - _DAY, 1, tables=before), snapshot(_NOW, 2, tables=after)]
    assert (why_shrunk(manifests, accepted=None) is not None) == is_held


_SIZES = st.lists(
    st.builds(
        partial(snapshot, _NOW),
        st.just(0),
        pages=st.integers(0, 20),
        page_size=st.sampled_from([512, 1024, 4096]),
        free_pages=st.integers(0, 20),
        tables=st.none() | st.lists(st.sampled_from(["a", "b", "sqlite_x"]), unique=True).map(tuple),
        kind=st.sampled_from(SnapshotKind),
    ),
    max_size=8,
).map(lambda found: [replace(each, id=SnapshotId.new(_NOW, n), sequence=n) for n, each in enumerate(found, 1)])


@given(_SIZES)
def test_accepting_the_newest_ends_every_hold_for_shrinking(manifests):
    """Accepting the newest snapshot ends a hold for any shrink, and an equal snapshot after it holds nothing."""
    newest = newest_regular(manifests)
    accepted = None if newest is None else newest.order
    if newest is not None:
        assert why_shrunk(manifests, accepted=accepted) is None
        again = replace(newest, id=SnapshotId.new(_NOW + _HOUR, 0), sequence=len(manifests) + 1)
        assert why_shrunk([*manifests, again], accepted=accepted) is None
        assert (why_shrunk([*manifests, again], accepted=None) is None) == (
            why_shrunk(manifests, accepted=None) is None
        )


@given(_SIZES)
def test_a_newest_snapshot_that_lacks_nothing_never_holds(manifests):
    """A newest snapshot that is larger than all others and has every table never holds."""
    whole = snapshot(_NOW + _HOUR, len(manifests) + 1, pages=1000, tables=("a", "b"))
    assert why_shrunk([*manifests, whole], accepted=None) is None


def test_an_accepted_shrinking_ends_the_hold_until_the_next():
    """What is older than the accepted snapshot no longer counts; what is newer does."""
    large, small = snapshot(_NOW - 3 * _DAY, 1, tables=("users", "old")), snapshot(_NOW - 2 * _DAY, 2, pages=10)
    assert why_shrunk([large, small], accepted=None) is not None
    assert why_shrunk([large, small], accepted=small.order) is None
    grown, smaller = snapshot(_NOW - _DAY, 3, pages=11), snapshot(_NOW, 4, pages=5)
    assert why_shrunk([large, small, grown], accepted=small.order) is None
    assert why_shrunk([large, small, grown, smaller], accepted=small.order) is not None
    assert why_shrunk([large, grown], accepted=small.order) is None
    assert why_shrunk([large, smaller], accepted=small.order) is None
    assert why_shrunk([large, small, snapshot(_NOW, 3, pages=4)], accepted=small.order) is not None


def test_an_acceptance_counts_by_sequence():
    """An acceptance counts by its sequence, because its id may be from a clock that was ahead."""
    large, small = snapshot(_NOW - _DAY, 7), snapshot(_NOW, 8, pages=10)
    gone = (5, SnapshotId.new(_NOW + 1000 * _DAY, 1))
    assert why_shrunk([large, small], accepted=gone) is not None


def test_a_history_that_started_again_is_compared_in_full():
    """What was accepted in the one before says nothing of this one."""
    large, small = snapshot(_NOW - _DAY, 1), snapshot(_NOW, 2, pages=10)
    assert why_shrunk([large, small], accepted=(9, small.id)) is not None


def test_a_hold_that_is_not_accepted_lasts():
    """Though the database has grown again, or the snapshot is gone: what was lost then may be lost for good."""
    large, small, grown = snapshot(_NOW - 2 * _DAY, 1), snapshot(_NOW - _DAY, 2, pages=10), snapshot(_NOW, 3)
    held = find_shrink([large, small], accepted=None)
    assert held is not None
    assert held.snapshot == small.id
    for manifests in ([large, small], [large, small, grown], [large, grown]):
        hold = why_held(manifests, now=_NOW, accepted=None, held=held)
        assert hold is not None
        assert held.reason in hold.message
        assert "--accept-shrink" in hold.hint
    assert why_held([large, grown], now=_NOW, accepted=None) is None


def test_what_was_lost_fits_into_a_record():
    """However long the names of tables are."""
    tables = ("a" * 5000, "b")
    shrink = find_shrink([snapshot(_NOW - _DAY, 1, tables=tables), snapshot(_NOW, 2, tables=())], accepted=None)
    assert shrink is not None
    assert len(shrink.reason) <= 4096


def test_a_schema_that_cannot_be_read_is_reported_as_such():
    """A schema that cannot be read is reported as such, and not as lost tables."""
    manifests = [snapshot(_NOW - _DAY, 1), snapshot(_NOW, 2, tables=None)]
    hold = why_shrunk(manifests, accepted=None)
    assert hold is not None
    assert hold.message.endswith(f"has a schema that could not be read, and {manifests[0].id} had tables")


def test_a_safety_snapshot_neither_holds_nor_is_compared():
    """A huge or an empty database that was restored over is nothing to measure by."""
    huge = snapshot(_NOW - 2 * _DAY, 1, pages=9999, kind=SnapshotKind.BEFORE_RESTORE)
    regular = snapshot(_NOW - _DAY, 2)
    empty = snapshot(_NOW, 3, pages=0, tables=(), kind=SnapshotKind.BEFORE_RESTORE)
    assert why_held([huge, regular, empty], now=_NOW, accepted=None) is None
    assert newest_regular([huge, regular, empty]) == regular
