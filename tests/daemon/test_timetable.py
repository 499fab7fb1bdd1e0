import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from harness.command_line import wait_until
from hypothesis import given
from hypothesis import strategies as st

from backupd.daemon.timetable import Job, ScheduleTrigger, Timetable
from backupd.schedules import Schedule

BERLIN = ZoneInfo("Europe/Berlin")
SCHEDULES = ["every 1m", "every 15m", "every 7m", "*/15 * * * *", "0,50 * * * *", "30 2 * * *", "30 4 1,15 * 5"]
NOW = datetime(2026, 11, 22, 12, 7, tzinfo=UTC)
NEVER_SOON = Schedule.parse("every 366d")
PATIENCE_SECONDS = 30

moments = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # naive is asked for
schedules = st.sampled_from(SCHEDULES).map(Schedule.parse)
zones = st.sampled_from([UTC, BERLIN])
jitters = st.timedeltas(timedelta(0), timedelta(days=2))
draws = st.floats(0, 1, exclude_max=True)


def never_soon(call):
    """A job whose time comes after the end of any test."""
    return Job(call, NEVER_SOON, None, jitter=timedelta(0))


@pytest.fixture
def timetable():
    """A timetable at work."""
    found = Timetable()
    found.start()
    yield found
    found.stop()


@given(schedules, zones, moments, jitters, draws)
def test_jitter_is_within_its_bounds(schedule, zone, now, jitter, draw):
    """A run starts at its time or later, never later than the jitter says, and nearer to its own time than the next."""
    due = schedule.next_after(now, zone)
    following = schedule.next_after(due, zone)
    fired_at = ScheduleTrigger(schedule, zone, jitter, lambda: draw).get_next_fire_time(None, now)
    assert due <= fired_at <= due + jitter
    assert fired_at - due <= (following - due) / 2


@given(schedules, zones, moments, jitters, st.lists(draws, min_size=2, max_size=12))
def test_every_time_has_exactly_one_run(schedule, zone, start, jitter, drawn):
    """For every jitter, each time of the schedule has exactly one run."""
    numbers = iter(drawn)
    trigger = ScheduleTrigger(schedule, zone, jitter, lambda: next(numbers))
    fired_at, due = None, start
    for _ in drawn:
        fired_at = trigger.get_next_fire_time(fired_at, fired_at or start)
        due = schedule.next_after(due, zone)
        assert due <= fired_at < schedule.next_after(due, zone)


@given(schedules, zones, moments, jitters, draws, st.timedeltas(timedelta(0), timedelta(days=40)))
def test_times_that_were_missed_together_happen_once(schedule, zone, previous, jitter, draw, asleep):
    """After a sleep the next run is in the future: one run has made up for all that were missed."""
    trigger = ScheduleTrigger(schedule, zone, jitter, lambda: draw)
    fired_at = trigger.get_next_fire_time(previous, previous + asleep)
    assert schedule.next_after(previous + asleep, zone) <= fired_at


@given(schedules, zones, moments, jitters, draws, st.timedeltas(timedelta(seconds=1), timedelta(days=40)))
def test_a_clock_that_was_set_back_gives_no_second_run_of_a_time(schedule, zone, previous, jitter, draw, back):
    """A run that is dated in the future has had its time."""
    trigger = ScheduleTrigger(schedule, zone, jitter, lambda: draw)
    assert trigger.get_next_fire_time(previous, previous - back) >= schedule.next_after(previous, zone)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (datetime(2026, 3, 27, 12, tzinfo=UTC), ["02:30 +1", "03:00 +2", "02:30 +2"]),
        (datetime(2026, 10, 23, 12, tzinfo=UTC), ["02:30 +2", "02:30 +2", "02:30 +1"]),
    ],
    ids=["spring", "autumn"],
)
def test_the_trigger_goes_by_the_clock_on_the_wall(start, expected):
    """A nightly schedule has one run each night by local time, even when clocks are changed."""
    trigger, at, found = ScheduleTrigger(Schedule.parse("30 2 * * *"), BERLIN, timedelta(0)), None, []
    for _ in expected:
        at = trigger.get_next_fire_time(at, at or start)
        shown = at.astimezone(BERLIN)
        found.append(f"{shown:%H:%M} {shown.utcoffset() / timedelta(hours=1):+g}")
    assert found == expected


def test_runs_of_a_jittered_schedule_differ():
    """Runs of a jittered schedule differ, so that not every machine starts at the full hour."""
    trigger = ScheduleTrigger(Schedule.parse("every 1h"), UTC, timedelta(minutes=10))
    assert len({trigger.get_next_fire_time(None, NOW) for _ in range(20)}) > 1


def test_a_missed_job_runs_at_once(timetable):
    """A missed job runs at once, and by its schedule after that."""
    is_done = threading.Event()
    before = datetime.now(UTC)
    timetable.add("snapshots", never_soon(is_done.set), is_missed=True)
    assert is_done.wait(PATIENCE_SECONDS)
    assert timetable.next_at("snapshots") == NEVER_SOON.next_after(before, None)


def test_what_was_not_missed_waits_for_its_time(timetable):
    """A job that was not missed first runs at the next time of its schedule."""
    timetable.add("snapshots", never_soon(lambda: None))
    assert timetable.next_at("snapshots") == NEVER_SOON.next_after(datetime.now(UTC), None)


def test_a_key_is_known_until_it_is_removed(timetable):
    """An unknown or removed key has no next time; removing it again does no harm."""
    timetable.add("snapshots", never_soon(lambda: None))
    timetable.add_once("retry", lambda: None, datetime.now(UTC) + timedelta(days=1))
    timetable.remove("retry")
    timetable.remove("retry")
    assert timetable.next_at("retry") is None
    assert timetable.next_at("snapshots") is not None
    timetable.clear()
    assert timetable.next_at("snapshots") is None


def test_a_thing_done_once_is_forgotten(timetable):
    """A job that runs once leaves the timetable when it is done."""
    is_done = threading.Event()
    timetable.add_once("retry", is_done.set, datetime.now(UTC))
    assert is_done.wait(PATIENCE_SECONDS)
    assert timetable.next_at("retry") is None


def test_the_last_job_of_a_key_runs(timetable):
    """The job that had the key before does not."""
    done, is_done = [], threading.Event()
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    timetable.add_once("retry", lambda: done.append("first"), soon)
    timetable.add_once("retry", is_done.set, soon + timedelta(seconds=0.1))
    assert is_done.wait(PATIENCE_SECONDS)
    assert done == []


def test_what_goes_on_does_not_hold_up_what_takes_its_place(timetable):
    """A round that waits for a dead store must not cost a new configuration its first round."""
    has_begun, may_end, is_done = threading.Event(), threading.Event(), threading.Event()

    def waits():
        has_begun.set()
        may_end.wait(PATIENCE_SECONDS)

    timetable.add("snapshots", never_soon(waits), is_missed=True)
    assert has_begun.wait(PATIENCE_SECONDS)
    timetable.clear()
    timetable.add("snapshots", never_soon(is_done.set), is_missed=True)
    assert is_done.wait(PATIENCE_SECONDS)
    may_end.set()


def test_a_bug_in_one_job_does_not_stop_the_others(timetable, capsys):
    """A bug in one job is logged with its traceback, and the other jobs run."""
    is_done = threading.Event()
    reported = []
    timetable.add_once("broken", lambda: 1 / 0, datetime.now(UTC))
    timetable.add_once("next", is_done.set, datetime.now(UTC) + timedelta(seconds=0.05))
    assert is_done.wait(PATIENCE_SECONDS)

    def is_reported():
        reported.append(capsys.readouterr().err)
        return "division by zero" in "".join(reported)

    wait_until(is_reported)
    assert "this is a bug in backupd" in "".join(reported)


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (timedelta(0), False),
        (timedelta(seconds=59), False),
        (timedelta(seconds=61), True),
        (timedelta(hours=-1), True),
        (timedelta(days=3650), True),
    ],
    ids=str,
)
def test_a_clock_that_was_set_is_noticed_once(moved, expected):
    """A clock that moves by more than a minute, forward or back, is noticed once; small corrections are not."""
    offset = timedelta(days=20_000)
    timetable = Timetable(clock_offset=lambda: offset)
    assert not timetable.clock_has_jumped()
    offset += moved
    assert timetable.clock_has_jumped() is expected
    assert not timetable.clock_has_jumped()
