"""When things are done next: schedules on top of APScheduler, which nothing else in the daemon knows."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import BasePoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger

from backupd.logs import log
from backupd.threads import WorkerThreads

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from backupd.schedules import Schedule

# Rounds wait for stores: threads are cheap, and a round that finds none is late.
_THREADS = 32
ONE_BY_ONE = ("drills", "prunes")
"""Queues of what takes long and is in no hurry: one at a time in each, and never in the way of anything else."""
_JUMP = timedelta(minutes=1)


class ScheduleTrigger(BaseTrigger):  # type: ignore[misc]  # it has no types
    """A `Schedule` as APScheduler asks for it, each time up to `jitter` later, but never into the time after it."""

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
        """The next time after `now`, and after the previous one: times that were missed together happen once."""
        due = self._schedule.next_after(max(previous_fire_time or now, now), self._zone)
        if not self._jitter:
            return due
        gap = self._schedule.next_after(due, self._zone) - due
        return due + self._draw() * min(self._jitter, gap / 2)


def _clock_offset() -> timedelta:
    return timedelta(seconds=time.time() - time.monotonic())


class _Threads(BasePoolExecutor):  # type: ignore[misc]  # it has no types
    """Up to `most` threads. APScheduler drops what it could start no thread for: hence one from the beginning."""

    def __init__(self, most: int) -> None:
        self._workers = WorkerThreads(most, thread_name_prefix="timetable")
        super().__init__(self._workers)

    def start(self, scheduler: BackgroundScheduler, alias: str) -> None:
        """Raises `LimitReachedError`."""
        self._workers.submit(int).result()
        super().start(scheduler, alias)


class _Scheduler(BackgroundScheduler):  # type: ignore[misc]  # it has no types
    """Ends in peace: once it is to stop, APScheduler does not find what it has just done, and wants to remove that."""

    def remove_job(self, job_id: str, jobstore: str | None = None) -> None:
        with suppress(JobLookupError):
            super().remove_job(job_id, jobstore)


class Timetable:
    """What is done when, by key. Each is done in a thread, never twice at once; a time that was missed happens late.

    What is going on under a key when something else is put there goes on, and holds up nothing.
    """

    def __init__(self, *, clock_offset: Callable[[], timedelta] = _clock_offset) -> None:
        """`clock_offset` is how far the clock is from one that nobody can set."""
        self._scheduler = _Scheduler(
            executors={
                "default": _Threads(_THREADS),
                **{queue: _Threads(1) for queue in ONE_BY_ONE},
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone=UTC,
        )
        self._scheduler.add_listener(_tell_of_bug, EVENT_JOB_ERROR)
        # APScheduler's own names for what is done: by one name, it would not begin the new while the old goes on.
        self._ids: dict[str, str] = {}
        self._lock = threading.RLock()
        self._measured_offset = clock_offset
        self._clock_offset = clock_offset()

    def start(self) -> None:
        """Begin to do what is due. Threads start here, and none before. Raises `LimitReachedError`."""
        self._scheduler.start()

    def stop(self) -> None:
        """Begin nothing more; what has begun is not waited for."""
        self._scheduler.shutdown(wait=False)

    def add(
        self,
        key: str,
        call: Callable[[], None],
        schedule: Schedule,
        zone: tzinfo | None,
        *,
        jitter: timedelta,
        is_missed: bool = False,
        queue: str = "default",
    ) -> None:
        """Do `call` by `schedule` from now on, and at once when `is_missed`. Replaces what had the key.

        `queue` is one of `ONE_BY_ONE`, or else it begins when it is time.
        """
        now = datetime.now(UTC)
        trigger = ScheduleTrigger(schedule, zone, jitter)
        first = now if is_missed else trigger.get_next_fire_time(None, now)
        with self._lock:
            self.remove(key)
            self._ids[key] = self._scheduler.add_job(call, trigger, next_run_time=first, executor=queue).id

    def add_once(self, key: str, call: Callable[[], None], at: datetime, *, queue: str = "default") -> None:
        """Do `call` once, at `at`, in a queue as for `add`. Replaces what had the key."""
        # Without a zone it would ask for the local one, and fail where TZ is none that tzlocal knows.
        trigger = DateTrigger(at, timezone=UTC)
        with self._lock:
            self.remove(key)
            self._ids[key] = self._scheduler.add_job(call, trigger, next_run_time=at, executor=queue).id

    def remove(self, key: str) -> None:
        """Nothing is done under this key any more; it need not be there."""
        with self._lock, suppress(KeyError):
            self._scheduler.remove_job(self._ids.pop(key))

    def clear(self) -> None:
        """Nothing is to be done any more, until it is added."""
        with self._lock:
            self._ids.clear()
            self._scheduler.remove_all_jobs()

    def next_at(self, key: str) -> datetime | None:
        """When this is done next; None when it is not here."""
        with self._lock:
            job = self._scheduler.get_job(self._ids[key]) if key in self._ids else None
            return None if job is None else job.next_run_time

    def clock_has_jumped(self) -> bool:
        """Whether the clock was set since this was asked last: what was planned by the old one must be planned anew.

        A machine that was asleep looks the same, and planning anew does no harm.
        """
        before, self._clock_offset = self._clock_offset, self._measured_offset()
        return abs(self._clock_offset - before) > _JUMP


def _tell_of_bug(event: JobExecutionEvent) -> None:
    log.unexpected(event.exception)
