"""When failed snapshots are tried again: after growing pauses, until the next scheduled round includes them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from backupd.daemon.runs import ran_out_of_time
from backupd.errors import MissingDatabaseError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from backupd.daemon.timetable import Timetable
    from backupd.errors import BackupdError

_LONGEST_PAUSE = timedelta(minutes=15)
# An application that starts at the same moment is about to create its first file, and looking costs nothing.
_LOOK_AGAIN_AFTER = timedelta(seconds=5)
_LOOK_AT_LEAST_EVERY = timedelta(seconds=30)


class EntryRetries:
    """The retries of one [[databases]] entry: which databases failed, and when the timetable tries them again."""

    def __init__(
        self,
        path: str,
        timetable: Timetable,
        first_pause: timedelta,
        *,
        retry: Callable[[Collection[str] | None], None],
        is_over: Callable[[], bool],
    ) -> None:
        """`retry` starts a round over these databases, or over all (None). Once `is_over`, nothing more is planned."""
        self._path = path
        self._timetable = timetable
        self._retry = retry
        self._is_over = is_over
        self._retries = Retries(first_pause)
        self._back_off = BackOff(first_pause)

    @property
    def _key(self) -> str:
        return f"retry {self._path}"

    def reset(self) -> None:
        """Forget what failed: a scheduled round takes it up."""
        self._timetable.remove(self._key)
        self._retries.reset()

    def run(self) -> None:
        """Try again now what failed."""
        names = self._retries.take()
        if names:  # a scheduled round may have taken them up at the same moment
            self._retry(None if None in names else [name for name in names if name is not None])

    def waiting(self, *, now: datetime) -> Mapping[str, BackupdError]:
        """Return the databases that it is too early to try again, and what they failed with."""
        return self._back_off.waiting(now=now)

    def ended(self, name: str, error: BackupdError | None) -> None:
        """Note how the attempt at a database ended, and plan another one if it failed."""
        if error is not None and ran_out_of_time(error):
            self._want_late(name, error)
            return
        self._back_off.ended(name)
        if isinstance(error, MissingDatabaseError):
            self.want_look()
        elif error is not None:
            self._want(name, self._retries.want)

    def want_look(self) -> None:
        """Plan a round over the whole entry soon: a file is missing, or is no database yet."""
        self._want(None, self._retries.want_look)

    def watch(self, vanished: Sequence[Path]) -> None:
        """Try the whole entry again soon after one of these files exists again. Until then, each look is a `stat`."""

        def look() -> None:
            if any(os.path.exists(path) for path in vanished):  # noqa: PTH110  (Path.exists raises where it may not look)
                self._retry(None)
            elif not self._is_over():
                self._look_later(look)

        if vanished:
            self._look_later(look)

    def _look_later(self, look: Callable[[], None]) -> None:
        self._timetable.add_once(f"look {self._path}", look, datetime.now(UTC) + _LOOK_AT_LEAST_EVERY)

    def _want(self, name: str | None, want: Callable[..., datetime | None]) -> None:
        at = want(name, now=datetime.now(UTC), next_run_at=self._timetable.next_at(f"snapshots {self._path}"))
        # A run that began under an earlier configuration must not continue under it.
        if at is not None and not self._is_over():
            self._timetable.add_once(self._key, self.run, at)

    def _want_late(self, name: str, error: BackupdError) -> None:
        """Plan another attempt at a database that ran out of time, for it alone: the others have shorter pauses."""
        at = self._back_off.failed(name, error, now=datetime.now(UTC))
        if not self._is_over():
            log.warning(
                "a database ran out of time and waits before the next attempt",
                database=name,
                next_try_at=at.isoformat(),
            )
            self._timetable.add_once(f"{self._key} {name}", partial(self._retry, [name]), at)


class Retries:
    """The failed databases of one entry. They are tried again together: a store that is down is asked once for all.

    None in place of a name stands for the entry as a whole, whose file was not found.
    """

    def __init__(self, first_pause: timedelta) -> None:
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._names: set[str | None] = set()
        self._attempts = 0
        self._looks = 0
        self._is_planned = False

    def reset(self) -> None:
        """Forget all names, and begin with the first pause: a scheduled round takes all databases up."""
        with self._lock:
            self._names.clear()
            self._attempts = self._looks = 0
            self._is_planned = False

    def want(self, name: str | None, *, now: datetime, next_run_at: datetime | None) -> datetime | None:
        """Note that `name` failed, and return when to try again; None when that is planned already or comes anyway."""
        with self._lock:
            at = self._planned(name, now + _doubled(self._first_pause, self._attempts), next_run_at)
            self._attempts += at is not None
            return at

    def want_look(self, name: str | None, *, now: datetime, next_run_at: datetime | None) -> datetime | None:
        """Note that a file is not there, and return when to look again: soon, however long it has been missing.

        Looks are not attempts: when the file exists at last, and fails, it is tried again after the first pause.
        """
        with self._lock:
            pause = min(_doubled(min(self._first_pause, _LOOK_AGAIN_AFTER), self._looks), _LOOK_AT_LEAST_EVERY)
            at = self._planned(name, now + pause, next_run_at)
            self._looks += at is not None
            return at

    def _planned(self, name: str | None, at: datetime, next_run_at: datetime | None) -> datetime | None:
        self._names.add(name)
        if self._is_planned or (next_run_at is not None and at >= next_run_at):
            return None
        self._is_planned = True
        return at

    def take(self) -> frozenset[str | None]:
        """Return what has to be tried now, and forget it."""
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
    """The databases of one entry that ran out of time. Each has its own pauses, and rounds leave it out until then.

    A pause is twice as long as the one before, up to a quarter of an hour. Threads may share it.
    """

    def __init__(self, first_pause: timedelta) -> None:
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._waits: dict[str, _Wait] = {}

    def failed(self, name: str, error: BackupdError, *, now: datetime) -> datetime:
        """Note that `name` ran out of time by `error`, and return when to try it again."""
        with self._lock:
            known = self._waits.get(name)
            times = 0 if known is None else known.times + 1
            until = now + min(_doubled(self._first_pause, times), max(_LONGEST_PAUSE, self._first_pause))
            self._waits[name] = _Wait(times, until, error)
            return until

    def ended(self, name: str) -> None:
        """Forget `name`, which has not run out of time."""
        with self._lock:
            self._waits.pop(name, None)

    def waiting(self, *, now: datetime) -> dict[str, BackupdError]:
        """Return the databases that it is too early to try again, and what they failed with."""
        with self._lock:
            return {name: wait.error for name, wait in self._waits.items() if now < wait.until}


def _doubled(pause: timedelta, times: int) -> timedelta:
    # The exponent is bounded only to stay a number: long before that, the next scheduled run comes first.
    longer: timedelta = pause * 2 ** min(times, 20)
    return longer
