"""The timetable: when each job runs next, by schedules. Only this module and `schedules` use APScheduler."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import BasePoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger

from backupd.concurrency import WorkerThreads
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import tzinfo

    from backupd.config import ScheduleSettings
    from backupd.health import DatabaseHealth
    from backupd.schedules import Schedule

# Rounds wait for stores. Threads are cheap, and a round that finds none free is late.
_THREADS = 32
ONE_BY_ONE = ("drills", "prunes")
"""Queues of long work that is in no hurry: one at a time in each, and never in the way of anything else."""
_JUMP = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Job:
    """A job that runs by a schedule, in the time zone of the schedule's clock times.

    `jitter` is how much later each may begin. `queue` is one of `ONE_BY_ONE`, or "default" to begin when it is time.
    """

    call: Callable[[], None]
    schedule: Schedule
    zone: tzinfo | None
    jitter: timedelta
    queue: str = "default"


class ScheduleTrigger(BaseTrigger):  # type: ignore[misc]  # it has no types
    """Gives APScheduler the times of a `Schedule`, each up to `jitter` later, but at most half way to the next one."""

    def __init__(
        self,
        schedule: Schedule,
        zone: tzinfo | None,
        jitter: timedelta,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives numbers from 0 to 1."""
        self._schedule = schedule
        self._zone = zone
        self._jitter = jitter
        self._draw = draw

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return the next time after `now` and after the previous one: several missed times count as one."""
        due = self._schedule.next_after(max(previous_fire_time or now, now), self._zone)
        if not self._jitter:
            return due
        gap = self._schedule.next_after(due, self._zone) - due
        return due + self._draw() * min(self._jitter, gap / 2)


def _clock_offset() -> timedelta:
    return timedelta(seconds=time.time() - time.monotonic())


class _Threads(BasePoolExecutor):  # type: ignore[misc]  # it has no types
    """Up to `most` threads. APScheduler drops work that it can start no thread for: so one is started at once."""

    def __init__(self, most: int) -> None:
        self._workers = WorkerThreads(most, thread_name_prefix="timetable")
        super().__init__(self._workers)

    def start(self, scheduler: BackgroundScheduler, alias: str) -> None:
        """Start one thread. Raises `LimitReachedError`."""
        self._workers.submit(int).result()
        super().start(scheduler, alias)


class _Scheduler(BackgroundScheduler):  # type: ignore[misc]  # it has no types
    """A scheduler that stops without errors: while it stops, APScheduler removes jobs that are gone already."""

    def remove_job(self, job_id: str, jobstore: str | None = None) -> None:
        with suppress(JobLookupError):
            super().remove_job(job_id, jobstore)


class Timetable:
    """Jobs by key. Each runs in a thread, never twice at once; one whose time was missed runs late.

    A job that runs while another takes its key continues, and delays nothing.
    """

    def __init__(self, *, clock_offset: Callable[[], timedelta] = _clock_offset) -> None:
        """`clock_offset` measures how far the clock is from one that cannot be set."""
        self._scheduler = _Scheduler(
            executors={
                "default": _Threads(_THREADS),
                **{queue: _Threads(1) for queue in ONE_BY_ONE},
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )
        self._scheduler.add_listener(_log_bug, EVENT_JOB_ERROR)
        # APScheduler's own names of jobs: under one name, it would not begin the new job while the old one runs.
        self._ids: dict[str, str] = {}
        self._lock = threading.RLock()
        self._measured_offset = clock_offset
        self._clock_offset = clock_offset()

    def start(self) -> None:
        """Begin to run what is due. Threads start here, and none before. Raises `LimitReachedError`."""
        self._scheduler.start()

    def stop(self) -> None:
        """Begin nothing more, and do not wait for what has begun."""
        self._scheduler.shutdown(wait=False)

    def add(self, key: str, job: Job, *, is_missed: bool = False) -> None:
        """Run `job` by its schedule from now on, and at once when `is_missed`. Replaces what had the key."""
        now = datetime.now(UTC)
        trigger = ScheduleTrigger(job.schedule, job.zone, job.jitter)
        self._put(key, job.call, trigger, now if is_missed else trigger.get_next_fire_time(None, now), job.queue)

    def add_once(self, key: str, call: Callable[[], None], at: datetime, *, queue: str = "default") -> None:
        """Run `call` once, at `at`, in a queue as in `Job`. Replaces what had the key."""
        # Without a zone it would ask for the local one, and fail where TZ is none that tzlocal knows.
        self._put(key, call, DateTrigger(at, timezone=UTC), at, queue)

    def _put(self, key: str, call: Callable[[], None], trigger: BaseTrigger, first: datetime, queue: str) -> None:
        with self._lock:
            self.remove(key)
            self._ids[key] = self._scheduler.add_job(call, trigger, next_run_time=first, executor=queue).id

    def remove(self, key: str) -> None:
        """Remove a key, if it is there."""
        with self._lock, suppress(KeyError):
            self._scheduler.remove_job(self._ids.pop(key))

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._ids.clear()
            self._scheduler.remove_all_jobs()

    def next_at(self, key: str) -> datetime | None:
        """Return when the job runs next; None when there is none of this key."""
        with self._lock:
            job = self._scheduler.get_job(self._ids[key]) if key in self._ids else None
            return None if job is None else job.next_run_time

    def clock_has_jumped(self) -> bool:
        """Whether the clock was set since the last call: jobs that were planned by the old time must be planned again.

        A machine that was asleep looks the same, and planning again does no harm.
        """
        before, self._clock_offset = self._clock_offset, self._measured_offset()
        return abs(self._clock_offset - before) > _JUMP


def _log_bug(event: JobExecutionEvent) -> None:
    log.unexpected(event.exception)


def is_round_missed(
    known: Sequence[DatabaseHealth | None], urls: Collection[str], schedule: ScheduleSettings, now: datetime
) -> bool:
    """Whether a database of an entry should have had its round by `now` (aware) and had none, or failed in it.

    `urls` are the stores. A database or store that is not known yet counts as missed, and so does an entry without
    databases, because that has to be reported.
    """
    if not known:
        return True
    for database in known:
        if database is None or not database.stores.keys() >= set(urls):
            return True
        for health in database.stores.values():
            if health.failure is not None or health.current_at is None or health.current_at > now:
                return True
            if schedule.snapshots.is_missed(health.current_at, now, schedule.zone):
                return True
    return False


def is_drill_missed(known: Sequence[DatabaseHealth | None], schedule: ScheduleSettings, now: datetime) -> bool:
    """Whether a database with a snapshot should have had a drill by `now` (aware) since its last one, or its first."""
    if schedule.drills is None:
        return False
    for database in known:
        stores = [health for health in database.stores.values() if not health.is_put_only] if database else []
        drilled_at = max((at for health in stores if (at := health.last_drill_at) is not None), default=None)
        first_at = min((health.snapshot_at for health in stores if health.snapshot_at is not None), default=None)
        since = drilled_at or first_at
        if since is not None and schedule.drills.is_missed(min(since, now), now, schedule.zone):
            return True
    return False
