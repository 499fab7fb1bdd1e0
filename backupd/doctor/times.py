"""When things will happen by themselves, in which time zone, and whether anybody would be told."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from backupd.doctor.findings import Subject
from backupd.health.heartbeats import unknown_databases
from backupd.schedules import misunderstood_zone, zone_meant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from backupd.config import DatabaseSettings, ScheduleSettings, Settings
    from backupd.doctor.findings import Finding
    from backupd.schedules import Schedule

SCHEDULE = Subject("schedule")
NOTIFICATIONS = Subject("notifications")

_NAMES_SHOWN = 3


def judge_schedules(settings: Settings, entries: Mapping[str, DatabaseSettings], now: datetime) -> Iterator[Finding]:
    """The next time of each thing that `backupd run` does. `entries` are by the names of the databases."""
    put_only = [store.url for store in settings.stores_or_default if store.put_only]
    elsewhere = "every store is put_only" if len(put_only) == len(settings.stores_or_default) else None
    but = f"; not in {_some(put_only)}, which is put_only" if put_only else ""
    by_schedule: dict[ScheduleSettings, list[str]] = {}
    for name, entry in entries.items():
        by_schedule.setdefault(settings.schedule_of(entry), []).append(name)
    if not by_schedule:
        by_schedule[settings.schedule] = []
    for schedule, names in by_schedule.items():
        whose = "" if len(by_schedule) == 1 else f" ({_some(names)})"
        yield SCHEDULE.ok("snapshots", f"{_next(schedule.snapshots, schedule, now)}{whose}")
        if schedule.drills is None:
            yield SCHEDULE.warning(
                "drills",
                f"never{whose}: whether a snapshot can be restored is then found out when it is needed",
                'set schedule.drills, "0 4 * * *" say',
            )
        elif elsewhere:
            yield SCHEDULE.note(
                "drills",
                f"none from this machine{whose}: {elsewhere}",
                "test and prune the snapshots elsewhere, with keys that may: docs/s3-providers.md",
            )
        else:
            yield SCHEDULE.ok("drills", f"{_next(schedule.drills, schedule, now)}{whose}{but}")
        if schedule.prunes is None:
            yield SCHEDULE.note("prunes", f"never{whose}, besides after snapshots")
        elif elsewhere:
            yield SCHEDULE.note("prunes", f"none from this machine{whose}: {elsewhere}")
        else:
            yield SCHEDULE.ok("prunes", f"{_next(schedule.prunes, schedule, now)}{whose}{but}")


def _next(times: Schedule, schedule: ScheduleSettings, now: datetime) -> str:
    # As the clocks of the schedule show it: that is what was written.
    local = times.next_after(now, schedule.zone).astimezone(schedule.zone)
    return f"{times}, next at {local.isoformat(sep=' ', timespec='seconds')}"


def judge_time_zone(settings: Settings, environ: Mapping[str, str], now: datetime) -> Finding:
    """Whether the clocks that schedules go by are the ones that somebody meant. `now` is aware."""
    if settings.schedule.time_zone is not None:
        zone = settings.schedule.time_zone
        return SCHEDULE.ok("time zone", f"{zone} (schedule.time_zone), now {_clock(now.astimezone(ZoneInfo(zone)))}")
    if wrong := misunderstood_zone(environ, now):
        return SCHEDULE.warning("time zone", wrong.message, wrong.hint)
    local = now.astimezone()
    if (meant := zone_meant(environ)) and not meant.startswith("/"):
        return SCHEDULE.ok("time zone", f"{meant} (TZ), now {_clock(local)}")
    told = f"that of this machine, now {_clock(local)}"
    if not local.utcoffset():
        return SCHEDULE.note(
            "time zone",
            f"{told}: clock times in schedules are UTC",
            "if that is not meant, set schedule.time_zone or TZ",
        )
    return SCHEDULE.ok("time zone", told)


def _clock(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")


def judge_listeners(settings: Settings, names: Sequence[str]) -> Iterator[Finding]:
    """Whether anybody hears of a failure. `names` are those of the databases; nothing is sent."""
    targets, heartbeats = len(settings.notifications), len(settings.heartbeats)
    if not targets and not heartbeats:
        yield NOTIFICATIONS.warning(
            "targets",
            "neither [[notifications]] nor [[heartbeats]] are configured: nobody would be told that backups fail",
            "add one of them, and try it with: backupd doctor --send-test",
        )
        return
    if targets:
        yield NOTIFICATIONS.ok("targets", f"{targets} configured")
    else:
        yield NOTIFICATIONS.note("targets", "none is configured: failures are seen by the heartbeats alone")
    if heartbeats:
        yield NOTIFICATIONS.ok("heartbeats", f"{heartbeats} configured")
    else:
        yield NOTIFICATIONS.note(
            "heartbeats",
            "none is configured: that this machine is gone, nobody would be told",
            "a service like healthchecks.io notices, given a URL under [[heartbeats]]",
        )
    if unknown := unknown_databases(settings.heartbeats, names):
        yield NOTIFICATIONS.warning(
            "heartbeats",
            f"no database is called {_some(unknown)}: that heartbeat is never asked for",
            "correct `database` under [[heartbeats]]",
        )


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
