"""Schedules and retention policies, in general or for one database or store."""

from datetime import timedelta, tzinfo
from typing import Annotated

from backupd.config.tables import Table
from backupd.config.values import (
    Count,
    Duration,
    InvalidValueError,
    TimeZone,
    at_least,
    format_duration,
    zone_from_name,
)
from backupd.schedules import InvalidScheduleError, Schedule

_SHORTEST_AGE = timedelta(hours=1)
_NEVER = "never"


def _reject_minutes_meant_as_months(age: timedelta) -> timedelta:
    if age < _SHORTEST_AGE:
        raise InvalidValueError(
            f"{format_duration(age)} is less than {format_duration(_SHORTEST_AGE)}",
            hint="m stands for minutes; write months and years in days, such as 30d or 365d",
        )
    return age


def _schedule(value: object) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        raise InvalidValueError("must be a schedule in quotes", hint='write it like "every 15m" or "30 3 * * *"')
    try:
        return Schedule.parse(value)
    except InvalidScheduleError as error:
        raise InvalidValueError(error.message, hint=error.hint) from None


def _schedule_or_never(value: object) -> Schedule | None:
    return None if value is None or value == _NEVER else _schedule(value)


Snapshots = Annotated[Count, at_least(0)]
Age = Annotated[Duration, _reject_minutes_meant_as_months]
Times = Annotated[Schedule, _schedule]
TimesOrNever = Annotated[Schedule | None, _schedule_or_never]


class RetentionSettings(Table):
    """Which snapshots of a database are kept in a store: those that any rule keeps.

    The counts are snapshots: the newest ones, and the newest of each hour, day, ISO week, month and year of `time_zone`
    that has one. `backupd.retention` applies the rules. `commits` is for how long each commit of a followed database
    is kept, and `minutes` for how long the last one of each minute is.
    """

    keep_last: Snapshots = 48
    hourly: Snapshots = 0
    daily: Snapshots = 14
    weekly: Snapshots = 8
    monthly: Snapshots = 12
    yearly: Snapshots = 0
    within: Age | None = None
    tagged: Age = timedelta(days=365)
    commits: Age = timedelta(hours=24)
    minutes: Age = timedelta(days=30)
    time_zone: TimeZone | None = None
    grace: Age = timedelta(days=3)
    after_snapshot: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether no rule keeps regular snapshots. An empty policy removes nothing."""
        counts = (self.keep_last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return not any(counts) and self.within is None

    @property
    def zone(self) -> tzinfo | None:
        """The time zone as `datetime.astimezone` takes it; None is the system's local time."""
        return zone_from_name(self.time_zone)


class ScheduleSettings(Table):
    """The schedules for snapshots, drills, and the removal of old snapshots; None is never.

    Clock times of cron expressions are those of `time_zone`. Each run starts up to `jitter` late, at random.
    """

    snapshots: Times = Schedule.parse("every 15m")
    drills: TimesOrNever = Schedule.parse("0 4 * * *")
    prunes: TimesOrNever = Schedule.parse("30 4 * * *")
    time_zone: TimeZone | None = None
    jitter: Duration | None = None

    @property
    def latest_start(self) -> timedelta:
        """The longest delay of a run after its scheduled time."""
        return self.jitter or timedelta(0)

    @property
    def zone(self) -> tzinfo | None:
        """The time zone as `datetime.astimezone` takes it; None is the system's local time."""
        return zone_from_name(self.time_zone)
