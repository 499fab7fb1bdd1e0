"""Whether backupd works unattended: its schedules, the time zone, and whether failures are reported to a person."""

from __future__ import annotations

import platform
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from backupd.concurrency import start_call
from backupd.doctor.findings import Subject, listed
from backupd.errors import ExitCode
from backupd.health.heartbeats import host_of, send_once, unknown_databases
from backupd.health.notifications import AppriseTarget
from backupd.schedules import named_time_zone, time_zone_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import datetime

    from backupd.config import DatabaseSettings, NotificationSettings, ScheduleSettings, Settings
    from backupd.doctor.findings import Finding
    from backupd.schedules import Schedule

SCHEDULE = Subject("schedule")
NOTIFICATIONS = Subject("notifications")

_TEST_SECONDS = 30.0
_TEST_TEXT = "This is a test by `backupd doctor --send-test`. Nothing is wrong, and nothing needs to be done."
_ASK_APPRISE = "check the URL, its credentials and the network; apprise says more with: apprise -vv -b test URL"
_ASK_THE_URL = "check the URL and the network; more is said by: curl -v URL"


def check_schedules(settings: Settings, entries: Mapping[str, DatabaseSettings], now: datetime) -> Iterator[Finding]:
    """Report when `backupd run` takes, tests and prunes snapshots next. `entries` are by the names of the databases."""
    put_only = [store.url for store in settings.stores_or_default if store.put_only]
    elsewhere = "every store is put_only" if len(put_only) == len(settings.stores_or_default) else None
    but = f"; not in {listed(put_only)}, which is put_only" if put_only else ""
    by_schedule: dict[ScheduleSettings, list[str]] = {}
    for name, entry in entries.items():
        by_schedule.setdefault(settings.schedule_of(entry), []).append(name)
    if not by_schedule:
        by_schedule[settings.schedule] = []
    for schedule, names in by_schedule.items():
        whose = "" if len(by_schedule) == 1 else f" ({listed(names)})"
        yield SCHEDULE.ok("snapshots", f"{_next(schedule.snapshots, schedule, now)}{whose}")
        if schedule.drills is None:
            yield SCHEDULE.warning(
                "drills",
                f"never{whose}: whether a snapshot can be restored is then found out when it is needed",
                'set schedule.drills, for example to "0 4 * * *"',
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
            yield SCHEDULE.note("prunes", f"never{whose}, except after snapshots")
        elif elsewhere:
            yield SCHEDULE.note("prunes", f"none from this machine{whose}: {elsewhere}")
        else:
            yield SCHEDULE.ok("prunes", f"{_next(schedule.prunes, schedule, now)}{whose}{but}")


def _next(times: Schedule, schedule: ScheduleSettings, now: datetime) -> str:
    # In the time zone of the schedule, like the clock times that are configured.
    local = times.next_after(now, schedule.zone).astimezone(schedule.zone)
    return f"{times}, next at {local.isoformat(sep=' ', timespec='seconds')}"


def check_time_zone(settings: Settings, environ: Mapping[str, str], now: datetime) -> Finding:
    """Check whether schedules use the time zone that the user meant. `now` is aware."""
    if settings.schedule.time_zone is not None:
        zone = settings.schedule.time_zone
        return SCHEDULE.ok("time zone", f"{zone} (schedule.time_zone), now {_clock(now.astimezone(ZoneInfo(zone)))}")
    if wrong := time_zone_problem(environ, now):
        return SCHEDULE.warning("time zone", wrong.message, wrong.hint)
    local = now.astimezone()
    if (meant := named_time_zone(environ)) and not meant.startswith("/"):
        return SCHEDULE.ok("time zone", f"{meant} (TZ), now {_clock(local)}")
    message = f"that of this machine, now {_clock(local)}"
    if not local.utcoffset():
        return SCHEDULE.note(
            "time zone",
            f"{message}: clock times in schedules are UTC",
            "if that is not meant, set schedule.time_zone or TZ",
        )
    return SCHEDULE.ok("time zone", message)


def _clock(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")


def check_notifications(settings: Settings, names: Sequence[str]) -> Iterator[Finding]:
    """Check whether failures are reported to a person. `names` are those of the databases; nothing is sent."""
    targets, heartbeats = len(settings.notifications), len(settings.heartbeats)
    if not targets and not heartbeats:
        yield NOTIFICATIONS.warning(
            "targets",
            "neither [[notifications]] nor [[heartbeats]] are configured: failing backups would not be reported",
            "add one of them, and try it with: backupd doctor --send-test",
        )
        return
    if targets:
        yield NOTIFICATIONS.ok("targets", f"{targets} configured")
    else:
        yield NOTIFICATIONS.note("targets", "none is configured: only the heartbeats report failures")
    if heartbeats:
        yield NOTIFICATIONS.ok("heartbeats", f"{heartbeats} configured")
    else:
        yield NOTIFICATIONS.note(
            "heartbeats",
            "none is configured: the loss of this machine would not be reported",
            "a service like healthchecks.io notices, given a URL under [[heartbeats]]",
        )
    if unknown := unknown_databases(settings.heartbeats, names):
        yield NOTIFICATIONS.warning(
            "heartbeats",
            f"no database is called {listed(unknown)}: that heartbeat is never sent",
            "correct `database` under [[heartbeats]]",
        )


class _Test(NamedTuple):
    name: str
    """Its place in the configuration, because two may be on one host, and the part of its URL that is not secret."""
    remedy: str
    outcome: Future[str | None]


def send_tests(settings: Settings, *, seconds: float = _TEST_SECONDS) -> list[Finding]:
    """Send a test to each notification target and heartbeat, all at once; a finding for each, without secrets.

    The test of a heartbeat is the ping of a successful run, because not every service has another kind. Waits for
    `seconds` at most.
    """
    tests = [
        *(
            _started(f"notifications[{position}] ({AppriseTarget(each).name})", _ASK_APPRISE, partial(_notify, each))
            for position, each in enumerate(settings.notifications)
        ),
        *(
            _started(f"heartbeats[{position}] ({host_of(each)})", _ASK_THE_URL, partial(send_once, each, _TEST_TEXT))
            for position, each in enumerate(settings.heartbeats)
        ),
    ]
    wait([test.outcome for test in tests], timeout=seconds)
    if not tests:
        return [
            NOTIFICATIONS.warning(
                "test",
                "there is no target to send a test to",
                "configure [[notifications]] or [[heartbeats]] first",
            )
        ]
    return [_test_finding(test, seconds) for test in tests]


def _started(name: str, remedy: str, send: Callable[[], str | None]) -> _Test:
    return _Test(name, remedy, start_call(send, name="doctor-test"))


def _notify(settings: NotificationSettings) -> str | None:
    title = f"backupd on {platform.node()}: a test"
    return None if AppriseTarget(settings).send(title, _TEST_TEXT, is_good=True) else "it could not be sent"


def _test_finding(test: _Test, seconds: float) -> Finding:
    problem = test.outcome.result() if test.outcome.done() else f"it was not sent within {seconds:g} s"
    if problem is None:
        return NOTIFICATIONS.ok("test", f"sent to {test.name}: check that it arrived")
    return NOTIFICATIONS.error("test", f"the test to {test.name} failed: {problem}", test.remedy, ExitCode.USAGE)
