"""Schedules: an interval ("every 15m") or a cron expression, and the next time after a moment.

Parsing is strict, and suggests what was most likely meant.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self

import msgspec

from backupd.errors import UsageError
from backupd.schedules.times import CronTimes, IntervalTimes, TimeZoneProblem, named_time_zone, time_zone_problem

__all__ = ["InvalidScheduleError", "Schedule", "TimeZoneProblem", "named_time_zone", "time_zone_problem"]

_LAST_YEAR = 9998
_SHORTEST = timedelta(minutes=1)
_LONGEST = timedelta(days=366)
_DAYS_IN_WEEK = 7
_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FORMS = 'write it like "every 15m", or as five fields of cron like "30 3 * * *" (03:30 each day)'
_INTERVAL = re.compile(r"(?:([0-9]{1,6})w)?(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?")
_PART = re.compile(r"(?:(\*)|([0-9]{1,4}|[a-z]{3})(?:-([0-9]{1,4}|[a-z]{3}))?)(?:/([0-9]{1,4}))?")
# Frequent mistakes: "every 15", "15 minutes", "hour"; "04:00", "daily at 4:30".
_LOOSE_INTERVAL = re.compile(
    r"(?:every)? ?([0-9]{1,6})? ?(weeks?|days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|[wdhms])?"
)
_CLOCK_TIME = re.compile(r"(?:(?:daily|every ?day)(?: at)? |at )?([0-9]{1,2})[:.]([0-5][0-9])(?:[:.][0-9]{2})?")


class Schedule(msgspec.Struct, frozen=True, eq=False):
    """An endless series of times. Two schedules are equal when they have the same times, however they are written.

    `parse` makes one; `str` returns its text.
    """

    text: str
    times: IntervalTimes | CronTimes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "every 15m" (w, d, h, m, s; from 1m to 366d), five fields of cron, or a name such as "@daily".

        The times of an interval are its multiples since 1970-01-01 00:00 UTC, whenever the process was started. Cron
        fields mean what crontab(5) says: lists, ranges and steps, names of months and weekdays, Sunday is 0 and 7; when
        both day fields are restricted (neither begins with "*"), a day that matches one of them is enough.

        Raises `InvalidScheduleError` for anything else, and for a day that never comes.
        """
        written = " ".join(text.split())
        return cls(text=written, times=_parse_times(written))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and other.times == self.times

    def __hash__(self) -> int:
        return hash(self.times)

    def __str__(self) -> str:
        return self.text

    def next_after(self, moment: datetime, zone: tzinfo | None) -> datetime:
        """Return the first time (UTC) strictly after `moment` (aware), by the clocks of `zone` (None: the system's).

        A time that clocks skip in spring becomes the first moment after the gap; a time that they show twice in autumn
        is the first of both. An expression for every hour of the day follows elapsed time instead: a skipped hour is
        not made up for, and a repeated hour is an hour like any other. Intervals do not depend on clocks.

        Pure, except for the system's local time. Raises `OverflowError` when the time is after the year 9998.
        """
        # UTC in and out: datetimes of one zone compare by their clocks, which is wrong in the repeated hour.
        found = self.times.next_after(moment.astimezone(UTC), zone)
        if found is None or found.year > _LAST_YEAR:
            raise OverflowError(f"{self.text!r} has no time between {moment.isoformat()} and the year {_LAST_YEAR}")
        return found

    def is_missed(self, last: datetime, now: datetime, zone: tzinfo | None) -> bool:
        """Whether a time after `last` (the previous run or attempt) has come by `now`; both are aware."""
        return self.next_after(last, zone) <= now.astimezone(UTC)


class InvalidScheduleError(UsageError, ValueError):
    """A text is not a schedule."""


class _Field(msgspec.Struct, frozen=True):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The allowed values of the field, as a hint."""
        names = f", or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"the {self.name} is {self.low} to {self.high}{names}"


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    _Field("day of the week", 0, _DAYS_IN_WEEK, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_WEEKDAY = _FIELDS[-1]


def _parse_times(written: str) -> IntervalTimes | CronTimes:
    """Read a schedule (words separated by single spaces). Raises `InvalidScheduleError` for anything else."""
    words = written.lower()
    try:
        if words.startswith("every ") and not _CLOCK_TIME.fullmatch(words):
            return _interval(words)
        return _cron(_NAMED.get(words, words))
    except _NotAScheduleError as error:
        reason = f": {error.reason}" if error.reason else ""
        raise InvalidScheduleError(f"{written!r} is not a schedule{reason}", hint=error.hint) from None


class _NotAScheduleError(Exception):
    def __init__(self, reason: str | None, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def _interval(words: str) -> IntervalTimes:
    amount = words.removeprefix("every ")
    match = _INTERVAL.fullmatch(amount)
    if match is None:
        raise _NotAScheduleError(f"{amount!r} is not a duration", _likely_meant(words))
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    length = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    if length < _SHORTEST:
        raise _NotAScheduleError("shorter than a minute", 'the shortest is "every 1m"')
    if length > _LONGEST:
        raise _NotAScheduleError("longer than a year", f'the longest is "every {_LONGEST.days}d"')
    return IntervalTimes(length)


def _cron(words: str) -> CronTimes:
    texts = words.split()
    if len(texts) != len(_FIELDS):
        raise _NotAScheduleError(None, _likely_meant(words))
    minutes, hours, days, months, weekdays = (
        frozenset(number for part in text.split(",") for number in _range(field, part))
        for field, text in zip(_FIELDS, texts, strict=True)
    )
    # crontab(5): a field that begins with a star, even "*/2", does not count as restricted.
    is_either_day_enough = not any(text.startswith("*") for text in (texts[2], texts[4]))
    weekdays = frozenset(weekday % _DAYS_IN_WEEK for weekday in weekdays)
    times = CronTimes(minutes, hours, days, months, weekdays, is_either_day_enough=is_either_day_enough)
    if not is_either_day_enough and not times.has_day_of_month:
        raise _NotAScheduleError("that day never comes", "no such month has such a day")
    return times


def _range(field: _Field, part: str) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise _NotAScheduleError(
            f"{part!r} is not a valid {field.name}", f"{field.allowed}; lists, ranges and steps: 1,5,10-20/2"
        )
    star, first, last, step = match.groups()
    low = field.low if star else _number(field, first)
    high = _number(field, last) if last else field.high if star or step else low
    if field is _WEEKDAY and last and high == 0 < low:
        high = _DAYS_IN_WEEK
    if high < low:
        top = _DAYS_IN_WEEK - 1 if field is _WEEKDAY else field.high
        raise _NotAScheduleError(f"{part!r} runs backwards", f'write two ranges: "{low}-{top},{field.low}-{high}"')
    if step and not 1 <= int(step) <= field.high:
        hint = f'the {field.name} cannot step by {int(step)}; longer steps are intervals: write "every 90m"'
        raise _NotAScheduleError(f"{part!r} is not a valid {field.name}", hint)
    return range(low, high + 1, int(step or 1))


def _number(field: _Field, text: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.low
    if not text.isdecimal() or not field.low <= int(text) <= field.high:
        midnight = 'midnight is "0 0 * * *"; ' if (field.name, text) == ("hour", "24") else ""
        raise _NotAScheduleError(f"{text!r} is not a valid {field.name}", midnight + field.allowed)
    return int(text)


def _likely_meant(words: str) -> str:
    if meant := _meant(words):
        return f'did you mean "{meant}"?'
    if words.startswith("@"):
        return f"known names: {', '.join(_NAMED)}"
    if words.startswith("every "):
        return 'write it like "every 15m", "every 1h30m" or "every 1d"'
    if re.fullmatch(r"[-0-9*,/?]+( [-0-9a-z*,/?#]+)+", words):
        names = ", ".join(field.name for field in _FIELDS)
        return f"cron has five fields, not {len(words.split())}: {names}"
    return _FORMS


def _meant(words: str) -> str | None:
    """Return a valid schedule that is close to words that are none."""
    fields = words.split()
    last = fields[-1] if fields else ""
    if match := _CLOCK_TIME.fullmatch(words):
        return f"{int(match[2])} {int(match[1]) % 24} * * *"
    if (match := _LOOSE_INTERVAL.fullmatch(words)) and any(match.groups()):
        return f"every {int(match[1] or 1)}{(match[2] or 'm')[0]}"
    if f"@{words}" in _NAMED:
        return f"@{words}"
    if words.startswith("every ") and last[:3] in _WEEKDAY.names:
        return f"0 0 * * {last[:3]}"
    # Six or seven fields: with seconds before the others, or the rest of a line of crontab behind them.
    shorter = " ".join(fields[1:6] if len(fields) > len(_FIELDS) and fields[0].isdecimal() else fields[:5])
    return shorter if shorter != words and _is_cron(shorter) else None


def _is_cron(words: str) -> bool:
    try:
        _cron(words)
    except _NotAScheduleError:
        return False
    return True
