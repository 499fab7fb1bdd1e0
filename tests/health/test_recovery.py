"""Recovery points move with the time, and stop where a store lacks a commit, or where commits are not seen."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    MINUTE,
    NOON,
    alarms_of,
    created,
    healthy,
    recorded,
    snapshot_id,
    with_health,
)
from msgspec.structs import replace

from backupd.errors import DamagedSegmentError, DamageError
from backupd.format.records import Continuity, ContinuityOutcome
from backupd.health import Status
from backupd.health.recording import with_continuity, without_windows
from backupd.health.recovery import (
    after_gap,
    gaps_since,
    has_all_gaps,
    is_followable,
    recovery_point,
    recovery_stop,
    with_following,
)
from backupd.health.values import FollowHealth, Gap, Problem, SegmentsHealth
from backupd.verify import ContinuityResult

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.errors import BackupdError
    from backupd.health.alarms import Alarm

_SECOND = timedelta(seconds=1)
_EVENING = NOON + 6 * HOUR
_FOLLOW = FollowHealth(
    max_age_seconds=300, lag_seconds=4, window="20261122T115900000Z-7f3a91c2", window_since=NOON - MINUTE
)
_REMOVED = Gap(at=NOON, reason="the log was removed")


def followed(
    follow: FollowHealth = _FOLLOW, lacking: SegmentsHealth | None = None, *, blind_since: datetime | None = None
) -> Status:
    """The database `app` is followed, and was captured at noon. The bucket lacks something."""
    health = {} if lacking is None else {("app", BUCKET): lacking}
    return with_following(in_mode("wal"), {"app": follow}, health, blind_since=blind_since)


def in_mode(journal_mode: str) -> Status:
    """A status after snapshots at noon, of a database in this journal mode."""
    return recorded(healthy(), *(replace(created(store=store), journal_mode=journal_mode) for store in (DISK, BUCKET)))


def point(status: Status, url: str = BUCKET, at: datetime = _EVENING) -> datetime | None:
    """The recovery point of `app` in one store."""
    database = status.databases["app"]
    return recovery_point(database, database.stores[url], status.daemon, alive_at=at)


def late(status: Status, now: datetime = _EVENING) -> list[Alarm]:
    """The alarms of recovery points."""
    found = [alarm for alarm in alarms_of(status, now) if alarm.kind == "recovery-late"]
    for alarm in found:
        assert (alarm.database, alarm.is_red) == ("app", True)
        assert alarm.hint
        assert not alarm.message.endswith(".")
    return found


def test_a_recovery_point_moves_while_the_store_lacks_nothing() -> None:
    """What was committed in the last seconds may be on its way, so that the point is behind by those."""
    assert point(followed()) == _EVENING - 4 * _SECOND
    assert late(followed()) == []


def test_a_recovery_point_stops_at_the_oldest_commit_that_the_store_lacks() -> None:
    """The store that is down has an alarm after max_age, and the other one has none."""
    problem = Problem(since=NOON, message="the bucket does not answer", hint="check the network")
    status = followed(lacking=SegmentsHealth(waiting_since=NOON + MINUTE, waiting_bytes=100, problem=problem))
    assert point(status) == NOON + MINUTE
    assert point(status, DISK) == _EVENING - 4 * _SECOND
    assert late(status, NOON + 6 * MINUTE) == []
    (alarm,) = late(status, NOON + 6 * MINUTE + _SECOND)
    assert (alarm.store, alarm.since, alarm.hint) == (BUCKET, NOON + MINUTE, "check the network")
    assert alarm.message == (
        f"app can be restored from {BUCKET} up to 2026-11-22 12:01:00Z only: the bucket does not answer"
    )


def test_what_was_given_up_is_lost_until_a_snapshot_is_taken_after_it() -> None:
    """Segments that the store never gets keep the recovery point where they begin, also when others are stored."""
    lost = SegmentsHealth(lost_since=NOON + MINUTE, lost_until=NOON + 2 * MINUTE)
    status = followed(lacking=lost)
    assert point(status) == NOON + MINUTE
    status = with_following(status, {"app": _FOLLOW}, {}, blind_since=None)
    assert point(status) == NOON + MINUTE
    assert "given up" in late(status)[0].message
    again = SegmentsHealth(lost_since=NOON + HOUR, lost_until=NOON + 2 * HOUR)
    both = with_following(status, {"app": _FOLLOW}, {("app", BUCKET): again}, blind_since=None)
    assert both.databases["app"].stores[BUCKET].segments == replace(again, lost_since=NOON + MINUTE)
    status = recorded(status, created(store=BUCKET, at=NOON + HOUR), at=NOON + HOUR)
    assert point(status) == _EVENING - 4 * _SECOND
    status = with_following(status, {"app": _FOLLOW}, {}, blind_since=None)
    assert status.databases["app"].stores[BUCKET].segments is None


def test_a_window_without_a_snapshot_is_of_no_use() -> None:
    """Until a snapshot lies in the window, the recovery point stays at the gap, or at the snapshot before."""
    began = NOON + 2 * MINUTE
    new = replace(_FOLLOW, window_since=began)
    assert point(followed(new)) == NOON
    ended = Gap(at=NOON + MINUTE, reason="the machine was restarted")
    assert point(followed(replace(new, last_gap=ended))) == NOON + MINUTE
    assert "no snapshot has been taken in its recovery window" in late(followed(new))[0].message
    status = with_health(followed(new), store=BUCKET, current_at=began)
    assert point(status) == _EVENING - 4 * _SECOND


def test_without_a_window_nothing_is_committed_or_nothing_is_seen() -> None:
    """After a snapshot, a database without a log has nothing new; one whose log cannot be read may have."""
    closed = replace(_FOLLOW, window=None, window_since=None, last_gap=_REMOVED)
    assert point(followed(closed)) == _EVENING - 4 * _SECOND
    before = replace(closed, last_gap=replace(_REMOVED, at=NOON + MINUTE))
    assert point(followed(before)) == NOON + MINUTE
    blind = replace(closed, last_gap=Gap(at=NOON, reason="the log cannot be read: Permission denied", is_blind=True))
    assert point(followed(blind)) == NOON
    alarms = late(followed(blind))
    assert [alarm.store for alarm in alarms] == [DISK, BUCKET]
    assert "Permission denied" in alarms[0].message


def test_a_follower_that_does_not_answer_stops_every_recovery_point() -> None:
    """Nothing is seen, whatever the stores have."""
    status = followed(blind_since=NOON + MINUTE)
    assert point(status) == NOON + MINUTE
    assert len(late(status)) == 2
    assert point(followed()) != NOON + MINUTE


@pytest.mark.parametrize("journal_mode", ["delete", "truncate"])
def test_a_database_without_a_log_has_no_recovery_point_and_no_alarm(journal_mode: str) -> None:
    """A database in rollback-journal mode is reported by status, and is no alarm for ever."""
    nothing_yet = FollowHealth(max_age_seconds=300, lag_seconds=4)
    status = with_following(in_mode(journal_mode), {"app": nothing_yet}, {}, blind_since=NOON)
    database = status.databases["app"]
    assert not is_followable(database)
    assert point(status) is None
    assert recovery_stop(database, database.stores[DISK], status.daemon) is None
    assert late(status) == []


def test_a_store_without_a_snapshot_has_no_recovery_point() -> None:
    """There is nothing to restore, which other alarms report."""
    status = with_health(followed(), store=BUCKET, current_at=None)
    assert point(status) is None
    assert late(status) == []


def test_a_database_that_is_not_followed_any_more_is_forgotten() -> None:
    """Snapshots of it are health of their own."""
    status = followed(lacking=SegmentsHealth(waiting_since=NOON))
    after = with_following(status, {}, {}, blind_since=None)
    assert after.databases["app"].follow is None
    assert after.databases["app"].stores[BUCKET].segments is None
    assert point(after) is None
    assert after == in_mode("wal")


def test_a_status_without_news_stays_the_same_object() -> None:
    """A status without news is not written."""
    status = followed(lacking=SegmentsHealth(waiting_since=NOON))
    lacking = {("app", BUCKET): SegmentsHealth(waiting_since=NOON)}
    assert with_following(status, {"app": _FOLLOW}, lacking, blind_since=None) is status
    assert with_following(Status(), {"app": _FOLLOW}, lacking, blind_since=NOON) == Status()


def _gaps(count: int, **changes: Any) -> FollowHealth:
    follow = _FOLLOW
    for number in range(count):
        follow = after_gap(follow, replace(_REMOVED, at=NOON + number * MINUTE, **changes))
    return follow


def test_gaps_are_counted_for_a_day() -> None:
    """Only the last fifty are known one by one; the total has all."""
    follow = _gaps(3)
    assert (follow.window, follow.gaps_total, len(follow.gaps)) == (None, 3, 3)
    assert gaps_since(follow, NOON + MINUTE) == 2
    assert has_all_gaps(follow)
    next_day = after_gap(follow, replace(_REMOVED, at=NOON + 24 * HOUR + MINUTE))
    assert next_day.gaps == (NOON + 2 * MINUTE, NOON + 24 * HOUR + MINUTE)
    many = _gaps(60)
    assert (len(many.gaps), many.gaps_total, has_all_gaps(many)) == (50, 60, False)


def test_windows_that_end_again_and_again_are_an_alarm_for_an_hour() -> None:
    """Six gaps within an hour are none; seven are one, with the last reason. It is not red."""
    now = NOON + 30 * MINUTE
    assert [alarm for alarm in alarms_of(followed(_gaps(6)), now) if alarm.kind == "gaps"] == []
    (alarm,) = [alarm for alarm in alarms_of(followed(_gaps(7)), now) if alarm.kind == "gaps"]
    assert (alarm.database, alarm.store, alarm.is_red, alarm.since) == ("app", None, False, NOON)
    assert alarm.message.startswith("7 recovery windows of app have ended within an hour: ")
    assert alarm.message.endswith("because of this: the log was removed")
    assert "keep one open" in alarm.hint
    assert [each for each in alarms_of(followed(_gaps(7)), NOON + 61 * MINUTE) if each.kind == "gaps"] == []


def checked(
    outcome: str | None, *, window_at: datetime = NOON, error: BackupdError | None = None, store: str = BUCKET
) -> ContinuityResult:
    """A check of the window that began then, with a snapshot of an hour later; without an outcome, it failed."""
    window, later = snapshot_id(window_at), snapshot_id(window_at + HOUR)
    span: dict[str, Any] = {"base": window, "after": 1, "snapshot": later, "by": 9}
    found = outcome and Continuity(database="app", window=window, outcome=ContinuityOutcome(outcome), at=NOON, **span)
    if outcome == "broken":
        error = DamageError("commits 2 to 9 do not give the snapshot", hint="restore from snapshots")
    return ContinuityResult(
        database="app", store=store, window=window, started_at=NOON + HOUR, found=found or None, error=error
    )


def continuity_alarms(status: Status) -> list[Alarm]:
    """The alarms of recovery windows."""
    return [alarm for alarm in alarms_of(status, _EVENING) if alarm.kind == "continuity"]


def test_a_broken_window_is_an_alarm_until_a_later_one_is_proven() -> None:
    """Neither a check that failed nor a proof of an older window ends it; the same window stays broken."""
    status = with_continuity(followed(), checked("proven", window_at=NOON - HOUR))
    assert continuity_alarms(status) == []
    assert status.databases["app"].stores[BUCKET].continuity_at == NOON
    status = with_continuity(status, checked("broken"))
    (alarm,) = continuity_alarms(status)
    assert (alarm.is_red, alarm.store, alarm.hint) == (True, BUCKET, "restore from snapshots")
    assert alarm.message == "commits 2 to 9 do not give the snapshot; last proven up to 2026-11-22 12:00:00Z"
    for result in (checked(None, error=DOWN), checked("proven", window_at=NOON - HOUR), checked("broken")):
        status = with_continuity(status, result)
        assert [each.since for each in continuity_alarms(status)] == [alarm.since]
    assert continuity_alarms(with_continuity(status, checked("proven", window_at=NOON + MINUTE))) == []
    assert continuity_alarms(with_following(status, {}, {}, blind_since=None)) == []  # it is followed no longer


def test_a_window_that_is_gone_is_no_alarm() -> None:
    """When the store has no segments any more, nothing is left that could be wrong."""
    status = with_continuity(followed(), checked("broken"))
    assert continuity_alarms(without_windows(status, "app", DISK)) != []
    assert continuity_alarms(without_windows(status, "app", BUCKET)) == []


def test_damage_elsewhere_is_no_alarm_of_a_window() -> None:
    """A damaged segment is; a damaged pack that a check came across is what drills report."""
    damaged = DamagedSegmentError("segment x does not have the SHA-256 that names it")
    (alarm,) = continuity_alarms(with_continuity(followed(), checked(None, error=damaged)))
    assert "backupd list app" in alarm.hint
    assert "never proven" in alarm.message
    assert continuity_alarms(with_continuity(followed(), checked(None, error=DamageError("pack y")))) == []
    proven = with_continuity(with_continuity(followed(), checked(None, error=damaged)), checked("proven"))
    assert continuity_alarms(proven) == []
