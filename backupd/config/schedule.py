"""When things are done: for everything, or for one database."""

from datetime import timedelta, tzinfo
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from backupd.config.values import Duration, InvalidValueError, Table, TimeZone, zone_called
from backupd.schedules import InvalidScheduleError, Schedule

_NEVER = "never"


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


def _written(schedule: Any) -> str:
    return _NEVER if schedule is None else str(schedule)


Times = Annotated[Schedule, BeforeValidator(_schedule), PlainSerializer(_written, when_used="json")]
TimesIfAny = Annotated[
    Schedule | None, BeforeValidator(_schedule_or_never), PlainSerializer(_written, when_used="json")
]


class ScheduleSettings(Table):
    """When snapshots are taken, test restores are made, and old snapshots are looked for; None is never.

    `zone` is where the clock times of cron expressions hold. Each run starts up to `jitter` late, at random.
    """

    snapshots: Times = Schedule.parse("every 15m")
    drills: TimesIfAny = Schedule.parse("0 4 * * *")
    prunes: TimesIfAny = Schedule.parse("30 4 * * *")
    time_zone: TimeZone | None = None
    jitter: Duration | None = None

    @property
    def zone(self) -> tzinfo | None:
        """What `Schedule.next_after` takes for `time_zone`."""
        return zone_called(self.time_zone)

    @property
    def latest_start(self) -> timedelta:
        """How much later than the schedule says a run may start."""
        return self.jitter or timedelta(0)
