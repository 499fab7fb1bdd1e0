from datetime import UTC, datetime, timedelta

import pytest
from harness.context import PlacedContext
from harness.place import create_database
from harness.statuses import BUCKET, DISK, DOWN, HOUR, MINUTE, NOON, drilled, healthy, with_health

from backupd.config import DatabaseSettings, ScheduleSettings
from backupd.daemon.service import plan_all
from backupd.daemon.timetable import Timetable, is_drill_missed, is_round_missed
from backupd.errors import StoreUnavailableError
from backupd.health import DatabaseHealth, Status
from backupd.health.recording import with_down, with_drill

DAY = timedelta(days=1)
EVERY_QUARTER = ScheduleSettings(snapshots="every 15m")
NIGHTLY = ScheduleSettings(snapshots="0 3 * * *", drills="0 4 * * *", time_zone="Europe/Berlin")
URLS = [DISK, BUCKET]


def round_is_missed(status, now, schedule=EVERY_QUARTER, urls=URLS):
    """Whether any of the databases in a status was missed."""
    return is_round_missed([*status.databases.values()], urls, schedule, now)


def drill_is_missed(status, now, schedule=NIGHTLY):
    """Whether any of the databases in a status missed its drill."""
    return is_drill_missed([*status.databases.values()], schedule, now)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (timedelta(0), False),
        (14 * MINUTE, False),
        (15 * MINUTE, True),
        (16 * MINUTE, True),
        (30 * DAY, True),
    ],
    ids=str,
)
def test_a_round_whose_time_has_come_meanwhile_was_missed(after, expected):
    """The database was current at noon; the next time was a quarter past, whatever was off between."""
    assert round_is_missed(healthy(), NOON + after) is expected


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [
        ("2026-03-28T02:00", "2026-03-29T00:59", False),
        ("2026-03-28T02:00", "2026-03-29T01:00", True),  # three in the morning is an hour earlier in UTC from this day
        ("2026-10-24T01:00", "2026-10-25T01:59", False),  # and an hour later from this one
        ("2026-10-24T01:00", "2026-10-25T02:00", True),
    ],
    ids=["spring before", "spring at", "autumn before", "autumn at"],
)
def test_a_missed_round_is_found_by_local_time(last, now, expected):
    """A missed round is found by local time, even over the nights in which clocks change."""
    last, now = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (last, now))
    status = with_health(healthy(stores=(DISK,)), current_at=last)
    assert round_is_missed(status, now, NIGHTLY, [DISK]) is expected


def test_a_database_that_was_current_in_the_future_was_missed():
    """The clock was wrong then, or is now: the time of the last run is unknown."""
    assert round_is_missed(healthy(), NOON - MINUTE)


def test_a_database_that_failed_was_missed():
    """A recent failure counts too: a restart may follow its repair."""
    status = with_down(healthy(), {"app": [(BUCKET, DOWN)]}, at=NOON)
    assert round_is_missed(status, NOON + MINUTE)


@pytest.mark.parametrize(
    "status",
    [
        Status(),
        Status(databases={"app": DatabaseHealth(path="/app/app.db")}),
        healthy(stores=(DISK,)),
        with_health(healthy(), store=BUCKET, current_at=None),
    ],
    ids=["no database", "no store", "one store", "never current"],
)
def test_what_is_not_known_yet_was_missed(status):
    """A new installation, a new database and a new store begin with a snapshot at once."""
    assert round_is_missed(status, NOON + MINUTE)


def test_a_new_database_makes_the_round_missed():
    """A new database beside a current one makes the round a missed one."""
    known = [healthy().databases["app"], None]
    assert is_round_missed(known, URLS, EVERY_QUARTER, NOON + MINUTE)


def test_one_database_that_was_missed_is_enough():
    """A round asks for all of an entry, and finds the others unchanged."""
    status = healthy("app", "shop", "blog")
    assert not round_is_missed(status, NOON + MINUTE)
    assert round_is_missed(with_health(status, "shop", BUCKET, current_at=NOON - HOUR), NOON + MINUTE)


def test_a_store_that_is_configured_no_more_does_not_matter_when_it_is_current():
    """A store that is no longer configured does not make a round a missed one."""
    assert not round_is_missed(healthy(), NOON + MINUTE, urls=[DISK])


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (NOON + MINUTE, False),
        (datetime(2026, 11, 23, 2, 59, tzinfo=UTC), False),
        (datetime(2026, 11, 23, 3, 0, tzinfo=UTC), True),
        (NOON + 30 * DAY, True),
    ],
    ids=str,
)
def test_a_first_drill_is_missed_after_its_first_time(now, expected):
    """The first snapshot was taken at noon; the first drill was due at four in the morning in Berlin."""
    assert drill_is_missed(healthy(), now) is expected


def test_a_drill_is_missed_after_the_time_that_follows_the_last_one():
    """A drill is missed once the time after the last one has passed, in whichever store that was."""
    drilled_at = datetime(2026, 11, 23, 3, 1, tzinfo=UTC)
    status = with_drill(healthy(), drilled("proven", store=BUCKET), at=drilled_at)
    assert not drill_is_missed(status, drilled_at + 12 * HOUR)
    assert drill_is_missed(status, drilled_at + DAY)


def test_a_drill_that_failed_is_not_tried_again_at_each_start():
    """A drill that failed is not repeated at each start, but waits for its next scheduled time."""
    drilled_at = datetime(2026, 11, 23, 3, 1, tzinfo=UTC)
    found = drilled("failed", error=StoreUnavailableError("it was down"))
    assert not drill_is_missed(with_drill(healthy(), found, at=drilled_at), drilled_at + 12 * HOUR)


def test_a_drill_dated_in_the_future_is_not_waited_for():
    """A drill that is dated in the future is not missed: the schedule counts from now on."""
    status = with_drill(healthy(), drilled("proven"), at=NOON + 400 * DAY)
    assert not drill_is_missed(status, NOON)


def test_without_a_snapshot_there_is_nothing_to_drill():
    """A database that is not known yet, and a configuration without drills, miss none either."""
    status = with_health(with_health(healthy(), store=DISK, snapshot_at=None), store=BUCKET, snapshot_at=None)
    assert not drill_is_missed(status, NOON + 30 * DAY)
    assert not is_drill_missed([None], NIGHTLY, NOON)
    assert not drill_is_missed(healthy(), NOON + 30 * DAY, ScheduleSettings(drills="never"))


@pytest.fixture
def placed(tmp_path):
    """A database that is not known yet."""
    create_database(tmp_path / "app.db", rows=1)
    found = PlacedContext(tmp_path, schedule={"snapshots": "@yearly", "drills": "@monthly", "prunes": "never"})
    yield found
    found.close()


def test_everything_configured_is_planned(placed):
    """A missed round runs now, the rest at its time; what is never done is not in the timetable."""
    timetable, before = Timetable(), datetime.now(UTC)
    plan_all(placed.context, timetable, Status())
    path = placed.entry.path
    assert before <= timetable.next_at(f"snapshots {path}") <= datetime.now(UTC)
    schedule = placed.context.settings.schedule
    assert timetable.next_at(f"drills {path}") == schedule.drills.next_after(before, schedule.zone)
    assert timetable.next_at(f"prunes {path}") is None


def test_what_was_planned_before_is_planned_no_more(placed, tmp_path):
    """An entry that was taken out of the configuration has no rounds."""
    timetable = Timetable()
    plan_all(placed.context, timetable, Status())
    other = PlacedContext(tmp_path, pattern="other-*.db")
    plan_all(other.context, timetable, Status())
    assert timetable.next_at(f"snapshots {placed.entry.path}") is None
    assert timetable.next_at(f"snapshots {other.entry.path}") is not None


def test_each_entry_has_its_own_schedule(placed):
    """The schedule of an entry takes precedence over the one for all."""
    create_database(placed.home / "shop.db", rows=2)
    own = DatabaseSettings(path=str(placed.home / "shop.db"), schedule={"snapshots": "every 1h", "prunes": "@daily"})
    status = healthy("shop", stores=(placed.disk, placed.bucket))
    for url in (placed.disk, placed.bucket):
        status = with_health(status, "shop", url, current_at=datetime.now(UTC))
    timetable = Timetable()
    plan_all(placed.with_settings(databases=(placed.entry, own)), timetable, status)
    next_run_at = timetable.next_at(f"snapshots {own.path}")
    assert next_run_at.minute == next_run_at.second == 0
    assert next_run_at - datetime.now(UTC) <= HOUR
    assert timetable.next_at(f"prunes {own.path}") is not None
