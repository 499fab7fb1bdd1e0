"""Times at intervals, and times by the clock on the wall.

What becomes of a time when clocks are changed is decided here, and not left to the cron triggers of APScheduler: those
walk through the year as an unchanged clock shows it, and each time they find is then looked up in the time zone.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

    from apscheduler.triggers.base import BaseTrigger

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST_CLOCK_CHANGE = timedelta(hours=3)
_HOURS_OF_DAY = frozenset(range(24))
_LAST_DAY_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class IntervalTimes:
    """The multiples of `length` since 1970-01-01 00:00 UTC."""

    length: timedelta

    def next_after(self, now: datetime, _zone: tzinfo | None) -> datetime | None:
        """The first time after `now` (UTC); None when the calendar ends before it."""
        try:
            return _EPOCH + ((now - _EPOCH) // self.length + 1) * self.length
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class CronTimes:
    """The numbers that each of cron's fields allows (none of them empty); weekdays from Sunday = 0.

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
        """The first time after `now` (both UTC) by the clocks of `zone`; None when the calendar ends before it."""
        try:
            return self._next_as_time_goes(now, zone) if self.hours == _HOURS_OF_DAY else self._next_by_clock(now, zone)
        except OverflowError:
            return None

    def _next_by_clock(self, now: datetime, zone: tzinfo | None) -> datetime | None:
        moments = (_first_moment(shown, zone) for shown in self._shown_after(_clock(now, zone)))
        return next((at for at in moments if at > now), None)

    def _next_as_time_goes(self, now: datetime, zone: tzinfo | None) -> datetime | None:
        shown_now = _clock(now, zone)
        # Shortly before clocks are set back, they are about to show again what they showed a while ago.
        set_back = shown_now + _LARGEST_CLOCK_CHANGE - _clock(now + _LARGEST_CLOCK_CHANGE, zone)
        found: datetime | None = None
        for shown in self._shown_after(shown_now - max(set_back, timedelta(0))):
            found = min((at for at in (found, *_moments(shown, zone)) if at and at > now), default=None)
            if found and shown > shown_now:
                return found
        return None

    def _shown_after(self, shown: datetime) -> Iterator[datetime]:
        """The times on a clock that is never changed (naive)."""
        trigger = _trigger(self)
        at = shown.replace(tzinfo=UTC)
        while at := trigger.get_next_fire_time(None, at + timedelta(microseconds=1)):
            yield at.replace(tzinfo=None)


@functools.lru_cache(maxsize=1024)
def _trigger(times: CronTimes) -> BaseTrigger:
    # Imported late: reading a configuration must not pay for it.
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
    # A day that never comes would be sought up to the year 9999, each time.
    either = [days, weekdays] if times.has_day_of_month else [weekdays]
    return OrTrigger([CronTrigger(**fields, **day) for day in either])


def _listed(numbers: frozenset[int] | set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _clock(moment: datetime, zone: tzinfo | None) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _moments(shown: datetime, zone: tzinfo | None) -> list[datetime]:
    """When clocks show that: never, once or twice, in order (PEP 495)."""
    moments = {shown.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
    return sorted(at for at in moments if _clock(at, zone) == shown)


def _first_moment(shown: datetime, zone: tzinfo | None) -> datetime:
    """When clocks show that first, or the end of the gap in which they would."""
    if moments := _moments(shown, zone):
        return moments[0]
    # In a gap, each fold counts from another side of the change; the system's local time has them the other way round.
    before, after = sorted(shown.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    changed = after.astimezone(zone).utcoffset()
    seconds = bisect.bisect_left(
        range((after - before) // timedelta(seconds=1)),
        x=True,
        key=lambda past: (before + timedelta(seconds=past)).astimezone(zone).utcoffset() == changed,
    )
    return before + timedelta(seconds=seconds)
