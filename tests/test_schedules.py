import os
import subprocess
import sys
import time
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from harness.extent import sampled
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import UsageError
from backupd.schedules import InvalidScheduleError, Schedule

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
CASABLANCA = ZoneInfo("Africa/Casablanca")
ZONES = [
    BERLIN,
    NEW_YORK,
    LORD_HOWE,
    CASABLANCA,
    ZoneInfo("Asia/Beirut"),  # changes at midnight
    ZoneInfo("America/Havana"),
    ZoneInfo("Asia/Kathmandu"),  # five hours and three quarters
    UTC,
    timezone(timedelta(hours=-9, minutes=-30)),
]
EXPRESSIONS = [
    "every 15m",
    "every 7m",
    "every 1d",
    "*/15 * * * *",
    "0,45 * * * *",
    "30 2 * * *",
    "15 2 * * *",
    "45 1 * * *",
    "0 0 * * *",
    "*/20 1-3 * * *",
    "0 */2 * * *",
    "30 4 1,15 * 5",
    "0 3 * * mon-fri",
    "0 0 29 2 *",
    "@monthly",
]
MOMENTS = st.datetimes(datetime(1995, 1, 1), datetime(2045, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # naive is asked for


def times(text, zone, start, end):
    """Every time in (start, end], as clocks in `zone` show it, with its offset."""
    schedule, found = Schedule.parse(text), []
    at = schedule.next_after(start, zone)
    while at <= end:
        found.append(at)
        at = schedule.next_after(at, zone)
    return [at.astimezone(zone) for at in found]


def shown(text, zone, day, days=1):
    """The times of `days` days in `zone` from `day` on, as HH:MM and the hours of the offset from UTC."""
    start = datetime.combine(day, datetime.min.time(), zone) - timedelta(microseconds=1)
    last = datetime.combine(day + timedelta(days=days), datetime.min.time(), zone) - timedelta(microseconds=1)
    return [f"{at:%H:%M} {at.utcoffset() / timedelta(hours=1):+g}" for at in times(text, zone, start, last)]


def utc(text):
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("every 15m", "2026-05-01 10:07:03", "2026-05-01 10:15"),
        ("every 15m", "2026-05-01 10:15:00", "2026-05-01 10:30"),
        ("every 1h30m", "1970-01-01 00:00:00", "1970-01-01 01:30"),
        ("every 90s", "1970-01-01 00:00:00", "1970-01-01 00:01:30"),
        ("every 1d", "2026-05-01 10:07:03", "2026-05-02 00:00"),
        ("Every  2H", "2026-05-01 10:07:03", "2026-05-01 12:00"),
        ("*/15 * * * *", "2026-05-01 10:15:00", "2026-05-01 10:30"),
        ("*/15 * * * *", "2026-05-01 10:14:59.999999", "2026-05-01 10:15"),
        ("5/20 * * * *", "2026-05-01 10:26:00", "2026-05-01 10:45"),
        ("10-20/5,40 * * * *", "2026-05-01 10:20:00", "2026-05-01 10:40"),
        ("30 3 * * *", "2026-05-01 10:00:00", "2026-05-02 03:30"),
        ("0 0 * * 0", "2026-05-01 10:00:00", "2026-05-03 00:00"),
        ("0 0 * * 7", "2026-05-01 10:00:00", "2026-05-03 00:00"),
        ("0 0 * * SUN", "2026-05-01 10:00:00", "2026-05-03 00:00"),
        ("0 0 * * 1", "2026-05-01 10:00:00", "2026-05-04 00:00"),
        ("0 0 * * fri-sun", "2026-05-02 10:00:00", "2026-05-03 00:00"),
        ("0 0 * * 5-7", "2026-05-02 10:00:00", "2026-05-03 00:00"),
        ("0 0 * feb-mar *", "2026-05-02 10:00:00", "2027-02-01 00:00"),
        ("0 0 13 * 5", "2026-05-02 10:00:00", "2026-05-08 00:00"),
        ("0 0 13 * 5", "2026-05-08 00:00:00", "2026-05-13 00:00"),
        ("0 0 */2 * 1", "2026-05-02 10:00:00", "2026-05-11 00:00"),
        ("0 0 30 2 1", "2026-05-02 10:00:00", "2027-02-01 00:00"),
        ("0 0 31 * *", "2026-05-31 00:00:00", "2026-07-31 00:00"),
        ("0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29 00:00"),
        ("@hourly", "2026-05-01 10:00:00", "2026-05-01 11:00"),
        ("@daily", "2026-05-01 10:00:00", "2026-05-02 00:00"),
        ("@weekly", "2026-05-01 10:00:00", "2026-05-03 00:00"),
        ("@monthly", "2026-05-01 10:00:00", "2026-06-01 00:00"),
        ("@yearly", "2026-05-01 10:00:00", "2027-01-01 00:00"),
    ],
)
def test_next_time_is_strictly_later(text, after, expected):
    """The next time is strictly later, and fields of cron mean what crontab(5) says."""
    assert Schedule.parse(text).next_after(utc(after), UTC) == utc(expected)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "'' is not a schedule", 'like "every 15m", or as five fields'),
        ("every 15", "'15' is not a duration", 'did you mean "every 15m"?'),
        ("every 0m", "shorter than a minute", '"every 1m"'),
        ("every 59s", "shorter than a minute", '"every 1m"'),
        ("every 367d", "longer than a year", '"every 366d"'),
        ("every 999999w", "longer than a year", '"every 366d"'),
        ("every -5m", "'-5m' is not a duration", '"every 15m"'),
        ("every 1.5h", "'1.5h' is not a duration", '"every 1h30m"'),
        ("every \uff19m", "'\uff19m' is not a duration", '"every 15m"'),
        ("every hour", "'hour' is not a duration", 'did you mean "every 1h"?'),
        ("every 15 minutes", "'15 minutes' is not a duration", 'did you mean "every 15m"?'),
        ("every monday", "'monday' is not a duration", 'did you mean "0 0 * * mon"?'),
        ("15m", "'15m' is not a schedule", 'did you mean "every 15m"?'),
        ("hourly", "'hourly' is not a schedule", 'did you mean "@hourly"?'),
        ("@reboot", "'@reboot' is not a schedule", "known names: @hourly, @daily"),
        ("04:00", "'04:00' is not a schedule", 'did you mean "0 4 * * *"?'),
        ("24:00", "'24:00' is not a schedule", 'did you mean "0 0 * * *"?'),
        ("every day at 4:30", "is not a schedule", 'did you mean "30 4 * * *"?'),
        ("at night", "'at night' is not a schedule", "five fields of cron"),
        ("0 4 * *", "is not a schedule", "cron has five fields, not 4: minute, hour"),
        ("0 */5 * * * *", "is not a schedule", 'did you mean "*/5 * * * *"?'),
        ("0 4 * * * root", "is not a schedule", "cron has five fields, not 6"),
        ("*/5 4 * * * /bin/backup", "is not a schedule", 'did you mean "*/5 4 * * *"?'),
        ("0 24 * * *", "'24' is not a valid hour", 'midnight is "0 0 * * *"; the hour is 0 to 23'),
        ("60 * * * *", "'60' is not a valid minute", "the minute is 0 to 59"),
        ("0 0 0 * *", "'0' is not a valid day of the month", "is 1 to 31"),
        ("0 0 * 13 *", "'13' is not a valid month", "is 1 to 12, or jan to dec"),
        ("0 0 * * 8", "'8' is not a valid day of the week", "is 0 to 7, or sun to sat"),
        ("0 0 * * monday", "'monday' is not a valid day of the week", "sun to sat"),
        ("0 0 L * *", "'l' is not a valid day of the month", "lists, ranges and steps"),
        ("1,,2 * * * *", "'' is not a valid minute", "lists, ranges and steps"),
        ("٣ * * * *", "'٣' is not a valid minute", "is 0 to 59"),
        ("*/0 * * * *", "'*/0' is not a valid minute", "cannot step by 0"),
        ("*/90 * * * *", "'*/90' is not a valid minute", 'write "every 90m"'),
        ("0 22-2 * * *", "'22-2' runs backwards", '"22-23,0-2"'),
        ("0 0 * * fri-mon", "'fri-mon' runs backwards", '"5-6,0-1"'),
        ("0 0 30 2 *", "that day never comes", "no such month has such a day"),
        ("0 0 31 2,4,6 *", "that day never comes", "no such month has such a day"),
    ],
)
def test_text_that_is_no_schedule_is_refused_with_a_suggestion(text, message, hint):
    """What is no schedule is refused with what was likely meant."""
    with pytest.raises(InvalidScheduleError) as caught:
        Schedule.parse(text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert isinstance(caught.value, UsageError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("text", ["every 15m", "30 3 * * mon-fri", "@daily"])
def test_schedule_prints_as_it_was_written(text):
    """A schedule prints as it was written, and what it prints means the same."""
    schedule = Schedule.parse(f"  {text} ")
    assert str(schedule) == text
    assert Schedule.parse(str(schedule)) == schedule


def test_equality_is_of_meaning():
    """Two texts for the same times are one schedule, so that a reload sees no change where there is none."""
    assert {Schedule.parse("every 60m"), Schedule.parse("every 1h")} == {Schedule.parse("every 3600s")}
    assert Schedule.parse("0 0 * * 7") == Schedule.parse("@weekly")
    assert Schedule.parse("every 1h") != Schedule.parse("@hourly")
    assert Schedule.parse("0 0 1 * 1") != Schedule.parse("0 0 1 * */7")


@pytest.mark.parametrize(
    ("text", "zone", "day", "expected"),
    [
        ("30 2 * * *", BERLIN, date(2026, 3, 29), ["03:00 +2"]),
        ("30 2 * * *", BERLIN, date(2026, 10, 25), ["02:30 +2"]),
        ("0,30 2,3 * * *", BERLIN, date(2026, 3, 29), ["03:00 +2", "03:30 +2"]),
        ("0 0-4/2 * * *", BERLIN, date(2026, 3, 29), ["00:00 +1", "03:00 +2", "04:00 +2"]),
        ("30 2 * * *", NEW_YORK, date(2026, 3, 8), ["03:00 -4"]),
        ("30 1 * * *", NEW_YORK, date(2026, 11, 1), ["01:30 -4"]),
        ("15 2 * * *", LORD_HOWE, date(2026, 10, 4), ["02:30 +11"]),
        ("45 1 * * *", LORD_HOWE, date(2026, 4, 5), ["01:45 +11"]),
        ("30 2 * * *", CASABLANCA, date(2026, 2, 15), ["02:30 +1"]),
        ("30 2 * * *", CASABLANCA, date(2026, 3, 22), ["03:00 +1"]),
        ("30 0 * * *", ZoneInfo("Asia/Beirut"), date(2026, 3, 29), ["01:00 +3"]),
        ("30 0 * * *", ZoneInfo("America/Havana"), date(2026, 11, 1), ["00:30 -4"]),
    ],
)
def test_clock_times_on_the_days_of_change(text, zone, day, expected):
    """A time that clocks skip runs once when they have changed, and one that they show twice runs the first time."""
    assert shown(text, zone, day) == expected


def test_times_go_on_through_changes():
    """What runs in every hour runs as time goes: neither made up for a skipped hour, nor left out in a repeated one."""
    spring = shown("*/30 * * * *", BERLIN, date(2026, 3, 29))
    assert spring[2:6] == ["01:00 +1", "01:30 +1", "03:00 +2", "03:30 +2"]
    autumn = shown("*/30 * * * *", BERLIN, date(2026, 10, 25))
    assert autumn[3:9] == ["01:30 +2", "02:00 +2", "02:30 +2", "02:00 +1", "02:30 +1", "03:00 +1"]
    half_hour = shown("0,45 * * * *", LORD_HOWE, date(2026, 4, 5))
    assert half_hour[2:6] == ["01:00 +11", "01:45 +11", "01:45 +10.5", "02:00 +10.5"]


@pytest.mark.parametrize("zone", sampled(ZONES, fast=2), ids=str)
@pytest.mark.parametrize("text", ["0 0 * * *", "30 0 * * *", "30 1 * * *", "15 2 * * *", "30 2 * * *", "59 23 * * *"])
def test_time_of_day_occurs_once_on_each_calendar_day(zone, text):
    """A time of day comes once on each day of the calendar, in years with changes of clocks too."""
    start, end = (
        datetime(2025, 1, 1, tzinfo=zone) - timedelta(seconds=1),
        datetime(2026, 12, 31, 23, 59, 59, tzinfo=zone),
    )
    days = [at.date() for at in times(text, zone, start, end)]
    assert days == [date(2025, 1, 1) + timedelta(days=past) for past in range(730)]


@pytest.mark.parametrize("zone", sampled(ZONES, fast=2), ids=str)
@pytest.mark.parametrize(("first", "days"), [("2026-02-10", 55), ("2026-09-30", 40)])
def test_hourly_schedule_runs_through_clock_changes(zone, first, days):
    """An expression for each hour runs whenever the clock shows that minute, in the seasons of changes too."""
    start = utc(first)
    found = times("30 * * * *", zone, start, start + timedelta(days=days))
    minutes = (start + timedelta(minutes=past) for past in range(1, days * 24 * 60 + 1))
    assert found == [at.astimezone(zone) for at in minutes if at.astimezone(zone).minute == 30]


def test_hours_on_days_of_clock_changes():
    """A day has 23 hourly runs when clocks are set forward, 25 when they are set back, else 24."""
    counts = {
        day: len(shown("@hourly", BERLIN, day)) for day in (date(2026, 3, 29), date(2026, 10, 25), date(2026, 5, 1))
    }
    assert list(counts.values()) == [23, 25, 24]


def test_intervals_never_drift():
    """Multiples of an interval are the same distance apart for a whole year, whatever clocks do."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    found = [at.astimezone(UTC) for at in times("every 15m", BERLIN, start, start + timedelta(days=365))]
    assert {later - earlier for earlier, later in pairwise(found)} == {timedelta(minutes=15)}
    assert len(found) == 365 * 24 * 4


@given(text=st.sampled_from(EXPRESSIONS), zone=st.sampled_from(ZONES), moment=MOMENTS)
def test_next_is_the_first(text, zone, moment):
    """The next time is strictly later, a whole minute, and still the next one from any moment before it."""
    schedule = Schedule.parse(text)
    following = schedule.next_after(moment, zone)
    assert following > moment
    assert following.tzinfo is UTC
    assert (following.second, following.microsecond) == (0, 0)
    assert schedule.next_after(moment + (following - moment) / 2, zone) == following
    assert schedule.next_after(following - timedelta(microseconds=1), zone) == following


def listed(numbers):
    """A field of cron; no numbers are no restriction."""
    return ",".join(map(str, sorted(numbers))) or "*"


@given(
    days=st.sets(st.integers(1, 31), max_size=4),
    months=st.sets(st.integers(1, 12), max_size=3),
    weekdays=st.sets(st.integers(0, 7), max_size=3),
)
def test_either_of_two_restricted_day_fields_is_enough(days, months, weekdays):
    """A day must match one of two restricted day fields, or the only restricted one."""
    text = f"0 0 {listed(days)} {listed(months)} {listed(weekdays)}"
    first, count = date(2027, 1, 1), 2 * 365
    longest = max(monthrange(2028, month)[1] for month in months or range(1, 13))
    if days and not weekdays and min(days) > longest:
        with pytest.raises(InvalidScheduleError, match="never comes"):
            Schedule.parse(text)
        return
    schedule = Schedule.parse(text)
    expected = []
    for day in (first + timedelta(days=past) for past in range(count)):
        fits = [day.day in days] * bool(days) + [day.isoweekday() % 7 in {each % 7 for each in weekdays}] * bool(
            weekdays
        )
        if day.month in (months or range(1, 13)) and (any(fits) or not fits):
            expected.append(day)
    at, found = utc("2026-12-31"), []
    while (at := schedule.next_after(at, UTC)).date() < first + timedelta(days=count):
        found.append(at.date())
    assert found == expected


@given(
    text=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from(ZONES),
    moment=MOMENTS,
    later=st.timedeltas(timedelta(0), timedelta(days=2)),
)
def test_later_moment_never_gives_an_earlier_time(text, zone, moment, later):
    """A later moment never gives an earlier time."""
    schedule = Schedule.parse(text)
    assert schedule.next_after(moment, zone) <= schedule.next_after(moment + later, zone)


@given(
    zone=st.sampled_from(ZONES),
    change=st.sampled_from(["2026-03-29", "2026-10-25", "2026-04-05", "2026-10-04", "2026-11-01", "2026-02-15"]),
    minutes=st.integers(-24 * 60, 48 * 60),
    text=st.sampled_from(EXPRESSIONS),
)
def test_no_time_is_skipped_around_clock_changes(zone, change, minutes, text):
    """Around changes of clocks too, no time lies between a moment and the next time that was returned."""
    schedule = Schedule.parse(text)
    moment = utc(change) + timedelta(minutes=minutes)
    following = schedule.next_after(moment, zone)
    for past in range(min(120, (following - moment) // timedelta(minutes=1))):
        assert schedule.next_after(moment + timedelta(minutes=past), zone) == following


@pytest.mark.parametrize("fold", [0, 1])
def test_moments_in_the_repeated_hour(fold):
    """A moment in the hour that comes twice is understood, and what comes back compares as time does."""
    moment = datetime(2026, 10, 25, 2, 40, tzinfo=BERLIN, fold=fold)
    following = Schedule.parse("0,30 * * * *").next_after(moment, BERLIN)
    assert following == moment.astimezone(UTC) + timedelta(minutes=20)


def test_run_is_missed_when_its_time_lies_between_last_and_now():
    """A run is missed when a time lies after the last one and not after now."""
    daily = Schedule.parse("0 4 * * *")
    last = datetime(2026, 5, 1, 4, 0, 7, tzinfo=BERLIN)
    assert not daily.is_missed(last, datetime(2026, 5, 2, 3, 59, 59, tzinfo=BERLIN), BERLIN)
    assert daily.is_missed(last, datetime(2026, 5, 2, 4, 0, tzinfo=BERLIN), BERLIN)
    assert daily.is_missed(last, datetime(2027, 1, 1, tzinfo=BERLIN), BERLIN)
    assert not daily.is_missed(last, last - timedelta(days=3), BERLIN)


@pytest.fixture
def local_zone(monkeypatch):
    """Sets the system's local time to a zone."""

    def set_zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", ["Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"])
def test_schedule_without_a_zone_uses_the_local_time(local_zone, name):
    """A schedule without a zone uses the system's local time, given by a name or by rules."""
    local_zone(name)
    for text in EXPRESSIONS:
        schedule = Schedule.parse(text)
        for start in (utc("2026-03-28 20:00"), utc("2026-10-24 20:00")):
            for past in range(0, 12 * 60, 10):
                moment = start + timedelta(minutes=past)
                assert schedule.next_after(moment, None) == schedule.next_after(moment, BERLIN)


@pytest.mark.parametrize("text", ["every 1d", "0 0 * * *", "*/5 * * * *", "0 0 29 2 *"])
def test_end_of_the_calendar_is_an_error(text):
    """A schedule that has no time before the end of the calendar raises an error that says so."""
    for moment in (datetime(9999, 12, 31, 12, tzinfo=UTC), datetime(9998, 12, 31, 23, 59, tzinfo=UTC)):
        with pytest.raises(OverflowError, match="has no time between"):
            Schedule.parse(text).next_after(moment, UTC)


def test_parsing_imports_no_scheduler():
    """Reading schedules, as every start of the program does, does not pay for APScheduler."""
    code = (
        "import sys; from backupd.schedules import Schedule; Schedule.parse('every 15m'); Schedule.parse('0 4 * * *');"
        "print([name for name in sys.modules if name.startswith(('apscheduler', 'tzlocal'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"
