"""A schedule as everybody else sees it: a text that is read, and the next time after a moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Self

from backupd.schedules.parsing import parse_times
from backupd.schedules.times import CronTimes, IntervalTimes  # noqa: TC001  # pydantic looks the fields up

_LAST_YEAR = 9998


@dataclass(frozen=True, slots=True)
class Schedule:
    """Times without an end. Two are equal when they mean the same times, however they are written.

    Made by `parse`; `str` gives the text back.
    """

    text: str = field(compare=False)
    times: IntervalTimes | CronTimes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "every 15m" (w, d, h, m, s; from 1m to 366d), five fields of cron, or a name such as "@daily".

        An interval's times are its multiples since 1970-01-01 00:00 UTC: the same after each start. Fields of cron mean
        what crontab(5) says: lists, ranges and steps, names of months and weekdays, Sunday is 0 and 7; when both day
        fields are restricted (neither begins with "*"), a day that matches one of them is enough.

        Raises `InvalidScheduleError` for anything else, and for a day that never comes.
        """
        written = " ".join(text.split())
        return cls(text=written, times=parse_times(written))

    def __str__(self) -> str:
        return self.text

    def next_after(self, moment: datetime, zone: tzinfo | None) -> datetime:
        """The first time (UTC) strictly after `moment` (aware), by the clocks of `zone` (None: the system's).

        A time that clocks skip in spring becomes the first moment after the gap, a time that they show twice in autumn
        is the first of both. An expression for every hour of the day goes on as time does instead: nothing is made up
        for a skipped hour, and a repeated hour is like any other. Intervals know no clocks.

        Pure, but for the system's local time. Raises `OverflowError` when that is after the year 9998.
        """
        # UTC in and out: datetimes of one zone compare by their clocks, which is wrong in the hour that comes twice.
        found = self.times.next_after(moment.astimezone(UTC), zone)
        if found is None or found.year > _LAST_YEAR:
            raise OverflowError(f"{self.text!r} has no time between {moment.isoformat()} and the year {_LAST_YEAR}")
        return found

    def is_missed(self, last: datetime, now: datetime, zone: tzinfo | None) -> bool:
        """Whether a time after `last` (when it was done, or tried, the last time) has come by `now`; both aware."""
        return self.next_after(last, zone) <= now.astimezone(UTC)
