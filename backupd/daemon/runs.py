"""Runs of databases: some at the same time, never two of one, and all of them ended when the daemon stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.errors import AnotherRunError, BackupdError, BusyError, InterruptedByUserError, LimitReachedError
from backupd.logs import log
from backupd.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


Call = Callable[[], BackupdError | None]
OnEnd = Callable[[BackupdError | None], None]


@dataclass(slots=True)
class Run:
    """What is to be done for a database, and who is told how it ended."""

    call: Call
    plan: object
    on_end: list[OnEnd] = field(default_factory=list)


def ran_out_of_time(error: BackupdError) -> bool:
    """Whether a run was given up because its database took too long: locked, hanging, or too slow for what it allows.

    The next run may take as long again, and is not to keep others from their turn.
    """
    return isinstance(error, BusyError) and not isinstance(error, AnotherRunError)


class Runs:
    """What is being done, by the name of the database. Threads may use all of it."""

    def __init__(self, limit: int) -> None:
        self._changed = threading.Condition()
        self._limit = limit
        self._waiting: dict[str, Run] = {}
        self._running: set[str] = set()
        self._started: dict[str, Run] = {}
        self._late: set[str] = set()
        """Those whose last run ran out of time. They wait for all others, and share one slot."""
        self._is_closed = False
        self._is_abandoned = False

    def set_limit(self, limit: int) -> None:
        """How many of those that were started run at the same time from now on; what has begun already goes on."""
        with self._changed:
            self._limit = limit
            self._begin_what_can()

    def start(self, name: str, call: Call, on_end: OnEnd, *, plan: object = None) -> None:
        """Do `call` for the database when there is room and it is nobody else's turn, then `on_end` with its error.

        If something that was started for it by the same `plan` waits or runs already, that counts for both: by another
        one, it may be for other stores. Nothing when all is to end.
        """
        with self._changed:
            if self._is_closed:
                return
            waiting, started = self._waiting.get(name), self._started.get(name)
            if waiting is not None and waiting.plan is not plan:
                waiting.call, waiting.plan = call, plan
            run = waiting or (started if started is not None and started.plan is plan else None)
            if run is None:
                run = self._waiting[name] = Run(call, plan)
            run.on_end.append(on_end)
            self._begin_what_can()

    def begin_what_waits(self) -> None:
        """Try again what could not begin when no thread could be started."""
        with self._changed:
            self._begin_what_can()

    def _begin_what_can(self) -> None:
        """Under the lock, whenever there may be room. A database whose turn somebody else has holds no other up."""
        while len(self._started) < self._limit:
            name = self._next()
            if name is None:
                return
            run = self._waiting[name]
            # A daemon thread: what does not end although it was abandoned must not keep the process from ending.
            try:
                start_thread(self._run, name, run, name="run")
            except LimitReachedError as error:
                log.error("the run waits", database=name, error=error.values())
                return
            self._running.add(name)
            self._started[name] = self._waiting.pop(name)

    def _next(self) -> str | None:
        """Whose run can begin: in the order in which they came, but for those that would take long to fail again."""
        ready = (name for name in self._waiting if name not in self._running)
        late = None
        for name in ready:
            if name not in self._late:
                return name
            late = late or name
        return None if self._late & self._started.keys() else late

    def _run(self, name: str, run: Run) -> None:
        error: BackupdError | None
        try:
            error = run.call()
        except BackupdError as expected:
            error = expected
        except Exception as bug:  # noqa: BLE001  (nobody else would tell of it)
            error = log.unexpected(bug, database=name)
        with self._changed:  # which whoever started it holds until it is noted as begun
            del self._started[name]
            if error is None:
                self._late.discard(name)
            elif ran_out_of_time(error):
                self._late.add(name)
            self._end(name)
        if not isinstance(error, InterruptedByUserError):
            for on_end in run.on_end:
                on_end(error)

    @contextmanager
    def turn(self, name: str, *, timeout: float | None) -> Iterator[None]:
        """Have the database to oneself within the block, however many others run.

        Waits at most `timeout` seconds for a run that is going on. Raises `BusyError`, and `InterruptedByUserError`
        when the daemon stops.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_closed or name not in self._running, timeout):
                raise BusyError(
                    f"a run of {name} is going on, and has not ended in {timeout:.0f} s",
                    hint="its outcome will be in the log, and in: backupd status",
                )
            if self._is_closed:
                raise _stopping()
            self._running.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._end(name)

    def _end(self, name: str) -> None:
        self._running.discard(name)
        self._begin_what_can()
        self._changed.notify_all()

    def go_on(self, *_: object) -> None:
        """Called often by what runs, with whatever progress it has. Raises `InterruptedByUserError` to abandon it."""
        if self._is_abandoned:
            raise _stopping()

    def go_on_unless_stopping(self) -> None:
        """The same for what is not worth a wait: raises `InterruptedByUserError` as soon as the daemon is to stop."""
        if self._is_closed:
            raise _stopping()

    def stop(self, *, finish_seconds: float, abandon_seconds: float) -> list[str]:
        """Begin nothing more, let what runs finish, then abandon it. Gives the names of those that were abandoned."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running, finish_seconds)
            abandoned = sorted(self._running)
            self._is_abandoned = True
            self._changed.wait_for(lambda: not self._running, abandon_seconds)
        return abandoned


def _stopping() -> InterruptedByUserError:
    return InterruptedByUserError("backupd is stopping", hint="the next start makes up for it")
