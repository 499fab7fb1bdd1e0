"""When what failed is tried again: after growing pauses, until the next scheduled time takes it up."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.errors import BackupdError

_LONGEST_PAUSE = timedelta(minutes=15)
# An application that starts at the same moment is about to make its first file, and looking costs nothing.
_LOOK_AGAIN_AFTER = timedelta(seconds=5)
_LOOK_AT_LEAST_EVERY = timedelta(seconds=30)


class Retries:
    """The failed databases of one entry. They are tried again together: a store that is down is asked once for all."""

    def __init__(self, first_pause: timedelta) -> None:
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._attempts = 0
        self._looks = 0
        self._is_planned = False

    def begin_anew(self) -> None:
        """A scheduled round takes all databases up: forget them, and begin with the first pause."""
        with self._lock:
            self._names.clear()
            self._attempts = self._looks = 0
            self._is_planned = False

    def want(self, name: str, *, now: datetime, next_run_at: datetime | None) -> datetime | None:
        """Note that `name` has failed. Gives when to try again, None when that is planned already or comes anyway."""
        with self._lock:
            # The exponent is bounded only to stay a number: long before that, the next scheduled run comes first.
            pause: timedelta = self._first_pause * 2 ** min(self._attempts, 20)
            at = self._planned(name, now + pause, next_run_at)
            self._attempts += at is not None
            return at

    def want_look(self, name: str, *, now: datetime, next_run_at: datetime | None) -> datetime | None:
        """Note that a file is not there. Gives when to look again: soon, however long it has been missing; or None.

        Looks are no attempts. When it is there at last, and fails, that is tried again after the first pause.
        """
        with self._lock:
            pause = min(min(self._first_pause, _LOOK_AGAIN_AFTER) * 2 ** min(self._looks, 20), _LOOK_AT_LEAST_EVERY)
            at = self._planned(name, now + pause, next_run_at)
            self._looks += at is not None
            return at

    def _planned(self, name: str, at: datetime, next_run_at: datetime | None) -> datetime | None:
        self._names.add(name)
        if self._is_planned or (next_run_at is not None and at >= next_run_at):
            return None
        self._is_planned = True
        return at

    def take(self) -> frozenset[str]:
        """What is to be tried now."""
        with self._lock:
            names = frozenset(self._names)
            self._names.clear()
            self._is_planned = False
            return names


@dataclass(frozen=True, slots=True)
class _Wait:
    """How often in a row a database ran out of time, the last time by `error`, and when it may be tried again."""

    times: int
    until: datetime
    error: BackupdError


class BackOff:
    """The databases of one entry that ran out of time. Each has pauses of its own, and rounds leave it out until then.

    A pause is twice as long as the one before, up to a quarter of an hour. Threads may use all of it.
    """

    def __init__(self, first_pause: timedelta) -> None:
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._waits: dict[str, _Wait] = {}

    def failed(self, name: str, error: BackupdError, *, now: datetime) -> datetime:
        """Note that `name` has run out of time (once more) by `error`. Gives when to try it again."""
        with self._lock:
            known = self._waits.get(name)
            times = 0 if known is None else known.times + 1
            longest = max(_LONGEST_PAUSE, self._first_pause)
            pause: timedelta = min(self._first_pause * 2 ** min(times, 20), longest)
            self._waits[name] = _Wait(times, now + pause, error)
            return now + pause

    def ended(self, name: str) -> None:
        """It has not run out of time."""
        with self._lock:
            self._waits.pop(name, None)

    def waiting(self, *, now: datetime) -> dict[str, BackupdError]:
        """The databases that it is too early to try again, and what they failed with."""
        with self._lock:
            return {name: wait.error for name, wait in self._waits.items() if now < wait.until}
