"""Runs of databases: some at the same time, never two of one, and all of them ended when the daemon stops."""

from __future__ import annotations

import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backupd.errors import BusyError, InterruptedByUserError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Runs:
    """What is being done, by the name of the database. Threads may use all of it."""

    def __init__(self, limit: int) -> None:
        self._changed = threading.Condition()
        self._limit = limit
        self._waiting: dict[str, Callable[[], None]] = {}
        self._running: set[str] = set()
        self._started = 0
        self._is_closed = False
        self._is_abandoned = False

    def set_limit(self, limit: int) -> None:
        """How many of those that were started run at the same time from now on; what has begun already goes on."""
        with self._changed:
            self._limit = limit
            self._begin_what_can()

    def start(self, name: str, call: Callable[[], None]) -> bool:
        """Do `call` for the database as soon as there is room; not if it waits or runs already, or all is to end.

        Gives whether it will be done.
        """
        with self._changed:
            if self._is_closed or name in self._waiting or name in self._running:
                return False
            self._waiting[name] = call
            self._begin_what_can()
        return True

    def _begin_what_can(self) -> None:
        """Under the lock, whenever there may be room. A database whose turn somebody else has holds no other up."""
        while self._started < self._limit:
            name = next((name for name in self._waiting if name not in self._running), None)
            if name is None:
                return
            call = self._waiting.pop(name)
            self._running.add(name)
            self._started += 1
            # A daemon thread: what does not end although it was abandoned must not keep the process from ending.
            threading.Thread(target=self._run, args=(name, call), name="run", daemon=True).start()

    def _run(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except InterruptedByUserError:
            return
        except Exception as error:  # noqa: BLE001  (nobody else would tell of it)
            log.error("this is a bug in backupd", database=name, error=repr(error), traceback=traceback.format_exc())
        finally:
            with self._changed:
                self._started -= 1
                self._end(name)

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

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until nothing waits or runs; whether that came."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout)

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
