"""The times of a schedule, at intervals or by the clock, and whether the local clock is the one that TZ names.

What happens to a time when clocks change is decided here. APScheduler's cron triggers only walk through the year as a
clock without changes shows it; each time that they find is then looked up in the time zone.
"""

from __future__ import annotations

import bisect
import functools
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import tzinfo
    from zoneinfo import ZoneInfo

    from apscheduler.triggers.base import BaseTrigger

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST_CLOCK_CHANGE = timedelta(hours=3)
_HOURS_OF_DAY = frozenset(range(24))
_LAST_DAY_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_NAME = r"(?:<[A-Za-z0-9+-]{3,}>|[A-Za-z]{3,})"
_TIME = r"[+-]?[0-9]{1,3}(?::[0-9]{2}){0,2}"
_RULE = rf"(?:M[0-9]{{1,2}}\.[1-5]\.[0-6]|J?[0-9]{{1,3}})(?:/{_TIME})?"
# The POSIX form of TZ, which is no name of a file: abbreviations, offsets, and when clocks change.
_POSIX_ZONE = rf"{_NAME}{_TIME}(?:{_NAME}(?:{_TIME})?(?:,{_RULE},{_RULE})?)?"
_WINTER_AND_SUMMER = ((1, 1), (7, 1))


class IntervalTimes(msgspec.Struct, frozen=True):
    """The multiples of `length` since 1970-01-01 00:00 UTC."""

    length: timedelta

    def next_after(self, now: datetime, _zone: tzinfo | None) -> datetime | None:
        """Return the first time after `now` (UTC); None when the calendar ends before it."""
        try:
            return _EPOCH + ((now - _EPOCH) // self.length + 1) * self.length
        except OverflowError:
            return None


class CronTimes(msgspec.Struct, frozen=True):
    """The numbers that each field of a cron expression allows, none of them empty; Sunday is weekday 0.

    A day must be one of `days` and of `weekdays`, or one of either when `is_either_day_enough`.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    is_either_day_enough: bool

    @property
    def has_day_of_month(self) -> bool:
        """Whether one of the months ever has one of the days."""
        return min(self.days) <= max(_LAST_DAY_OF_MONTH[month - 1] for month in self.months)

    def next_after(self, now: datetime, zone: tzinfo | None) -> datetime | None:
        """Return the first time after `now` (both UTC) by the clocks of `zone`; None after the end of the calendar."""
        try:
            return (
                self._next_by_elapsed_time(now, zone) if self.hours == _HOURS_OF_DAY else self._next_by_clock(now, zone)
            )
        except OverflowError:
            return None

    def _next_by_clock(self, now: datetime, zone: tzinfo | None) -> datetime | None:
        moments = (_first_moment(shown, zone) for shown in self._shown_after(_clock(now, zone)))
        return next((at for at in moments if at > now), None)

    def _next_by_elapsed_time(self, now: datetime, zone: tzinfo | None) -> datetime | None:
        shown_now = _clock(now, zone)
        # Shortly before clocks are set back, they are about to repeat times that they have already shown.
        set_back = shown_now + _LARGEST_CLOCK_CHANGE - _clock(now + _LARGEST_CLOCK_CHANGE, zone)
        found: datetime | None = None
        for shown in self._shown_after(shown_now - max(set_back, timedelta(0))):
            found = min((at for at in (found, *_moments(shown, zone)) if at and at > now), default=None)
            if found and shown > shown_now:
                return found
        return None

    def _shown_after(self, shown: datetime) -> Iterator[datetime]:
        """Yield the times (naive) after `shown` on a clock that is never changed."""
        trigger = _trigger(self)
        at = shown.replace(tzinfo=UTC)
        while at := trigger.get_next_fire_time(None, at + timedelta(microseconds=1)):
            yield at.replace(tzinfo=None)


@functools.lru_cache(maxsize=1024)
def _trigger(times: CronTimes) -> BaseTrigger:
    # Imported late: reading a configuration must not wait for it.
    from apscheduler.triggers.combining import OrTrigger  # noqa: PLC0415
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415

    fields = {
        "month": _listed(times.months),
        "hour": _listed(times.hours),
        "minute": _listed(times.minutes),
        "second": "0",
        "timezone": UTC,
    }
    days = {"day": _listed(times.days)}
    # APScheduler counts weekdays from Monday = 0.
    weekdays = {"day_of_week": _listed({(weekday - 1) % 7 for weekday in times.weekdays})}
    if not times.is_either_day_enough:
        return CronTrigger(**fields, **days, **weekdays)
    # APScheduler would search up to the year 9999 for a day that never comes.
    either = [days, weekdays] if times.has_day_of_month else [weekdays]
    return OrTrigger([CronTrigger(**fields, **day) for day in either])


def _listed(numbers: frozenset[int] | set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _clock(moment: datetime, zone: tzinfo | None) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _moments(shown: datetime, zone: tzinfo | None) -> list[datetime]:
    """Return the moments, in order, when clocks show `shown`: none, one or two (PEP 495)."""
    moments = {shown.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(at for at in moments if _clock(at, zone) == shown)


def _first_moment(shown: datetime, zone: tzinfo | None) -> datetime:
    """Return the first moment when clocks show `shown`, or the end of the gap that skips it."""
    if moments := _moments(shown, zone):
        return moments[0]
    # In a gap, the folds count from different sides of the change; the system's local time swaps them.
    before, after = sorted(shown.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    changed = after.astimezone(zone).utcoffset()
    seconds = bisect.bisect_left(
        range((after - before) // timedelta(seconds=1)),
        x=True,
        key=lambda past: (before + timedelta(seconds=past)).astimezone(zone).utcoffset() == changed,
    )
    return before + timedelta(seconds=seconds)


class TimeZoneProblem(NamedTuple):
    """A wrong value of TZ, and what to do about it."""

    message: str
    hint: str


def named_time_zone(environ: Mapping[str, str]) -> str | None:
    """Return the value of TZ, without the colon that may precede it; None when it is empty or not set."""
    return environ.get("TZ", "").removeprefix(":") or None


def time_zone_problem(environ: Mapping[str, str], now: datetime) -> TimeZoneProblem | None:
    """Return why the local time is not that of TZ; None when it is, or TZ is not set. `now` is aware.

    The C library reads names of files and the POSIX form, and silently uses UTC for everything else. The local time of
    `datetime.astimezone`, and so every schedule without a time zone of its own, depends on it. (Libraries that parse TZ
    themselves, such as tzlocal, know only the names.)
    """
    name = named_time_zone(environ)
    if name is None or re.fullmatch(_POSIX_ZONE, name):
        return None
    zone = _load_zone(name)
    if zone is None:
        bare = name.strip(" \t\r\n\"'")
        is_wrapped = bare != name and (_load_zone(bare) is not None or re.fullmatch(_POSIX_ZONE, bare))
        likely = f"write it alone, TZ={bare}: lists in Compose files and --env-file keep quotes" if is_wrapped else None
        return TimeZoneProblem(
            f"there is no time zone TZ={name}: schedules use UTC",
            likely or "write it like Europe/Berlin, or set schedule.time_zone",
        )
    if not _agrees(zone, now):
        local = now.astimezone().isoformat(sep=" ", timespec="seconds")
        return TimeZoneProblem(
            f"this system does not know TZ={name}: its local time is {local}",
            "install tzdata, or set schedule.time_zone",
        )
    return None


def _load_zone(name: str) -> ZoneInfo | None:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415  (most commands look up no zone)

    try:
        if name.startswith("/") and os.path.isfile(name):  # noqa: PTH113  (it may not be a valid path)
            with open(name, "rb") as file:  # noqa: PTH123  (as above)
                return ZoneInfo.from_file(file)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _agrees(zone: ZoneInfo, now: datetime) -> bool:
    """Whether the C library's local time is that of `zone`, in winter and in summer."""
    moments = (datetime(now.year, month, day, 12, tzinfo=UTC) for month, day in _WINTER_AND_SUMMER)
    return all(moment.astimezone().utcoffset() == moment.astimezone(zone).utcoffset() for moment in moments)
