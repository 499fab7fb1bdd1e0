"""How long snapshots are kept: the policy, for everything or for one database or store."""

from datetime import timedelta, tzinfo
from typing import Annotated

from pydantic import AfterValidator, Field

from backupd.config.values import (
    Count,
    Duration,
    InvalidValueError,
    Table,
    TimeZone,
    format_duration,
    zone_called,
)

_SHORTEST_AGE = timedelta(hours=1)


def _refuse_minutes_meant_as_months(age: timedelta) -> timedelta:
    if age < _SHORTEST_AGE:
        raise InvalidValueError(
            f"{format_duration(age)} is less than {format_duration(_SHORTEST_AGE)}",
            hint="m stands for minutes; write months and years in days, such as 30d or 365d",
        )
    return age


Snapshots = Annotated[Count, Field(ge=0)]
Age = Annotated[Duration, AfterValidator(_refuse_minutes_meant_as_months)]


class RetentionSettings(Table):
    """Which snapshots of a database are kept in a store: those that any rule keeps.

    The counts are snapshots: the newest ones, and the newest of each hour, day, ISO week, month and year of
    `time_zone` (None: the system's local time) that has one. `backupd.retention` decides by it.
    """

    keep_last: Snapshots = 48
    hourly: Snapshots = 0
    daily: Snapshots = 14
    weekly: Snapshots = 8
    monthly: Snapshots = 12
    yearly: Snapshots = 0
    within: Age | None = None
    tagged: Age = timedelta(days=365)
    time_zone: TimeZone | None = None
    grace: Age = timedelta(days=3)
    after_snapshot: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing here says which regular snapshots to keep. An empty policy removes nothing."""
        counts = (self.keep_last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return not any(counts) and self.within is None

    @property
    def zone(self) -> tzinfo | None:
        """What `datetime.astimezone` takes for `time_zone`."""
        return zone_called(self.time_zone)
