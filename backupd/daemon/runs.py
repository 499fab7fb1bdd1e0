"""Runs of databases: a few at the same time, never two of one database, and all ended when the daemon stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from backupd.concurrency import Cancellation, start_thread
from backupd.errors import AnotherRunError, BackupdError, BusyError, InterruptedByUserError, LimitReachedError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator


Call = Callable[[], BackupdError | None]
OnEnd = Callable[[BackupdError | None], None]


@dataclass(frozen=True, slots=True)
class Run:
    """A run: what has to be done for a database, and what is called at its end with its error."""

    call: Call
    plan: object
    on_end: list[OnEnd] = field(default_factory=list)


def ran_out_of_time(error: BackupdError) -> bool:
    """Whether a run was given up because its database took too long: locked, hanging, or too slow for what it allows.

    The next run may take as long again, and must not keep others from their turn.
    """
    return isinstance(error, BusyError) and not isinstance(error, AnotherRunError)


class Runs:
    """The work in progress, by the name of the database. Threads may share it."""

    def __init__(self, limit: int, *, on_rest: Callable[[], None] = lambda: None) -> None:
        """Allow `limit` started runs at the same time; `on_rest` is called when nothing is in progress any more."""
        self._on_rest = on_rest
        self._changed = threading.Condition()
        self._limit = limit
        self._waiting: dict[str, Run] = {}
        self._running: set[str] = set()
        self._started: dict[str, Run] = {}
        self._late: set[str] = set()
        """Databases whose last run ran out of time. They wait for all others, and share one slot."""
        self.stopping = Cancellation()
        """Requested as soon as the daemon stops: for work that is not worth a wait."""
        self.abandoned = Cancellation()
        """Requested when the daemon waits no longer. Runs check it often, with their progress."""

    def set_limit(self, limit: int) -> None:
        """Allow `limit` started runs at the same time from now on; runs that have begun continue."""
        with self._changed:
            self._limit = limit
            self._begin_what_can()

    def start(self, name: str, call: Call, on_end: OnEnd, *, plan: object = None) -> None:
        """Do `call` for the database when there is room and nothing else has its turn, then `on_end` with its error.

        A run of the same database by the same `plan` that waits or runs already counts for both; one by another plan
        may be for other stores. Nothing is started once `stop` was called.
        """
        with self._changed:
            if self.stopping.is_requested:
                return
            waiting, started = self._waiting.get(name), self._started.get(name)
            if waiting is not None and waiting.plan is not plan:
                waiting = self._waiting[name] = replace(waiting, call=call, plan=plan)
            run = waiting or (started if started is not None and started.plan is plan else None)
            if run is None:
                run = self._waiting[name] = Run(call, plan)
            run.on_end.append(on_end)
            self._begin_what_can()

    def begin_what_waits(self) -> None:
        """Try again to begin the waiting runs: at the last attempt, no thread could be started."""
        with self._changed:
            self._begin_what_can()

    def _begin_what_can(self) -> None:
        """Begin runs while there is room. Call it under the lock. A database that is in use delays no other."""
        while len(self._started) < self._limit:
            name = self._next()
            if name is None:
                return
            run = self._waiting[name]
            try:
                start_thread(self._run, name, run, name="run")
            except LimitReachedError as error:
                log.error("the run waits", database=name, error=error.values())
                return
            self._running.add(name)
            self._started[name] = self._waiting.pop(name)

    def _next(self) -> str | None:
        """Choose the run that can begin: the first that came, but last those that would take long to fail again."""
        ready = (name for name in self._waiting if name not in self._running)
        late = None
        for name in ready:
            if name not in self._late:
                return name
            late = late or name
        return None if self._late & self._started.keys() else late

    def _run(self, name: str, run: Run) -> None:
        try:
            error = run.call()
        except Exception as failed:  # noqa: BLE001  (no caller waits for it)
            error = log.failure(failed, database=name)
        with self._changed:  # held by `_begin_what_can` until the run is noted as begun
            del self._started[name]
            if error is None:
                self._late.discard(name)
            elif ran_out_of_time(error):
                self._late.add(name)
        try:
            if not isinstance(error, InterruptedByUserError):
                for on_end in run.on_end:
                    on_end(error)
        finally:  # only now: the next run of the database may be over in no time, and its end must be the last heard of
            with self._changed:
                self._end(name)
            self._rest()

    @contextmanager
    def turn(self, name: str, *, timeout: float | None) -> Iterator[None]:
        """Keep all other runs of the database out during the block, however many databases are in progress.

        Waits at most `timeout` seconds for a run that has begun. Raises `BusyError`, and `InterruptedByUserError` when
        the daemon stops.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.stopping.is_requested or name not in self._running, timeout):
                raise BusyError(
                    f"a run of {name} is in progress, and has not ended in {timeout:.0f} s",
                    hint="its outcome will be in the log, and in: backupd status",
                )
            self.stopping.check()
            self._running.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._end(name)
            self._rest()

    def _rest(self) -> None:
        """Call `on_rest` when nothing is in progress."""
        with self._changed:
            is_at_rest = not self._running
        if is_at_rest:
            self._on_rest()

    def _end(self, name: str) -> None:
        self._running.discard(name)
        self._begin_what_can()
        self._changed.notify_all()

    def stop(self, *, finish_seconds: float, abandon_seconds: float) -> list[str]:
        """Begin nothing more, let runs finish, then abandon them. Return the names of those that were abandoned."""
        reason = InterruptedByUserError("backupd is stopping", hint="the next start makes up for it")
        with self._changed:
            self.stopping.request(reason)
            self._waiting.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running, finish_seconds)
            abandoned = sorted(self._running)
            self.abandoned.request(reason)
            self._changed.wait_for(lambda: not self._running, abandon_seconds)
        return abandoned
