"""What following comes to, in the status: recovery windows, what waits for each store, and whether logs are read.

The status is written when a window begins or ends, and when a store lacks segments or has got them: after a second,
and less often the longer such changes continue. Segments that are stored in time change nothing in it.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from backupd.errors import BackupdError
from backupd.health.recovery import after_gap, with_following
from backupd.health.values import FollowHealth, Gap, Problem, SegmentsHealth
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from backupd.daemon.segment_uploads import Lacking, SegmentUploads
    from backupd.follow.chain import Mark, WindowEnded
    from backupd.follow.process import FollowerProcess
    from backupd.format import SnapshotId
    from backupd.health import StatusFile

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_SIGN_SECONDS = 20.0
_ON_ITS_WAY_SECONDS = 3.0
"""How long a commit may take, beyond the interval, until it counts as waiting: a pause of the reader, and an upload."""

_Lacking = dict[tuple[str, str], SegmentsHealth]


class Limits(NamedTuple):
    """How old a recovery point may be, and how often segments are cut, in seconds."""

    max_age: float
    interval: float

    @property
    def lag(self) -> float:
        """What was committed this long ago is stored, or waits."""
        return self.interval + _ON_ITS_WAY_SECONDS


class FollowReport:
    """Collects what happens, and puts it into the status. Threads may share it."""

    def __init__(self, status: StatusFile, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._status = status
        self._clock = clock
        self._lock = threading.Lock()
        self._limits = Limits(0.0, 0.0)
        self._follows: dict[str, FollowHealth] = {}
        self._lacking: _Lacking = {}
        self._lost: _Lacking = {}
        self._sign = _SignsOfLife()
        self._blind_since: datetime | None = None
        self._has_changed = True
        self._pause = _FIRST_PAUSE_SECONDS
        self._written_at = self._write_at = 0.0

    def use(self, names: Iterable[str], limits: Limits) -> None:
        """Report on these databases from now on, and on no others. What the status knows of them continues."""
        known = self._status.read().databases
        nothing_yet = FollowHealth(max_age_seconds=limits.max_age, lag_seconds=limits.lag)
        with self._lock:
            follows = {}
            for name in names:
                before = self._follows.get(name) or (known[name].follow if name in known else None) or nothing_yet
                follows[name] = replace(before, max_age_seconds=limits.max_age, lag_seconds=limits.lag)
            if (limits, follows) != (self._limits, self._follows):
                self._limits, self._follows, self._has_changed = limits, follows, True
                self._write_at = max(self._write_at, self._clock() + _FIRST_PAUSE_SECONDS)

    def marked(self, name: str, mark: Future[Mark | None]) -> None:
        """Note which window is open, from the answer of a process that has just begun to follow a database."""
        found = mark.result()
        self._change(name, lambda follow: _in_window(follow, None if found is None else found.window))

    def window_began(self, name: str, window: SnapshotId) -> None:
        """Note that a window has begun. One that was open has ended: the process that knew it did not continue it."""

        def begin(follow: FollowHealth) -> FollowHealth:
            if follow.window is not None and follow.window != window:
                follow = after_gap(follow, Gap(at=datetime.now(UTC), reason="it was not followed for a while"))
            return _in_window(follow, window)

        self._change(name, begin)

    def window_ended(self, name: str, end: WindowEnded) -> None:
        """Note that a window has ended."""
        gap = Gap(at=datetime.now(UTC), reason=end.reason, is_blind=end.is_blind)
        self._change(name, lambda follow: after_gap(follow, gap))

    def broken_windows(self) -> list[tuple[str, str]]:
        """Return which open windows are known to be broken, by name; also those that another process has checked."""
        known = self._status.read().databases
        with self._lock:
            open_windows = {name: follow.window for name, follow in self._follows.items() if follow.window is not None}
        return [
            (name, window)
            for name, window in open_windows.items()
            if name in known
            and any(each.is_window_broken and each.continuity_window == window for each in known[name].stores.values())
        ]

    def process_ended(self, uploads: SegmentUploads) -> None:
        """Note that no log is read any more, until another process answers."""
        with self._lock:
            self._blind_since = self._blind_since or self._sign.last_at or datetime.now(UTC)
            self._sign = _SignsOfLife()
            self._has_changed = True
        self.write(uploads)

    def tick(self, process: FollowerProcess, uploads: SegmentUploads) -> None:
        """Call this about once a second: it writes the status when there is something new and it is time to."""
        now = self._clock()
        with self._lock:
            blind_since = self._sign.missing_since(process, self._blind_since, now)
            self._has_changed |= blind_since != self._blind_since
            self._blind_since = blind_since
            if now < self._write_at:
                return
        self.write(uploads)

    def write(self, uploads: SegmentUploads) -> None:
        """Write the status now, if there is anything new."""
        with self._lock:
            if self._collect(uploads):
                self._set_pause()
                self._write()

    def _change(self, name: str, change: Callable[[FollowHealth], FollowHealth]) -> None:
        with self._lock:
            before = self._follows.get(name)
            if before is not None and (after := change(before)) != before:
                self._follows[name] = after
                self._has_changed = True

    def _collect(self, uploads: SegmentUploads) -> bool:
        """Find out what the stores lack; return whether the status is to be written."""
        now = datetime.now(UTC)
        lacking: _Lacking = {}
        for key, found in uploads.lacking().items():
            health = self._health_of(found, now)
            if health.waiting_since is not None:
                lacking[key] = health
        for key, lost in uploads.take_lost().items():
            earlier = self._lost.get(key)
            since = earlier.lost_since if earlier else lost.since
            self._lost[key] = SegmentsHealth(lost_since=since, lost_until=lost.until)
        self._has_changed |= bool(self._lost) or lacking != self._lacking
        self._lacking = lacking
        return self._has_changed

    def _health_of(self, found: Lacking, now: datetime) -> SegmentsHealth:
        if found.failure is None and (now - found.since).total_seconds() <= self._limits.lag:
            return SegmentsHealth()
        problem = None
        if found.failure is not None:
            failing_since, error = found.failure
            problem = Problem(since=failing_since, message=error.message, hint=error.hint)
        return SegmentsHealth(waiting_since=found.since, waiting_bytes=found.size_bytes, problem=problem)

    def _write(self) -> None:
        lacking = dict(self._lacking)
        for key, lost in self._lost.items():
            lacking[key] = replace(lacking.get(key, lost), lost_since=lost.lost_since, lost_until=lost.lost_until)
        try:
            status = self._status.update(
                lambda status: with_following(status, self._follows, lacking, blind_since=self._blind_since)
            )
        except BackupdError as error:
            log.error("the status cannot be written", error=error.values())
        else:
            # A database that was just found may not be in the status yet.
            self._has_changed = not self._follows.keys() <= status.databases.keys()
            self._lost.clear()

    def _set_pause(self) -> None:
        now = self._clock()
        is_quiet = now - self._written_at > 2 * _LONGEST_PAUSE_SECONDS
        self._pause = _FIRST_PAUSE_SECONDS if is_quiet else min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        self._written_at, self._write_at = now, now + self._pause


class _SignsOfLife:
    """Questions to the process that follows: a disk that hangs keeps it from answering, and from reading any log."""

    def __init__(self) -> None:
        self.last_at: datetime | None = None
        """When the last question was asked that was answered."""
        self._asked_at: datetime | None = None
        self._ask_at = 0.0
        self._answer: Future[Mark | None] | None = None

    def missing_since(self, process: FollowerProcess, before: datetime | None, now: float) -> datetime | None:
        """Ask again when it is time to; return since when there is no answer. `before` holds until there is one."""
        if self._answer is not None and self._answer.done():
            self.last_at, before = self._asked_at, None
        elif self._answer is not None:
            return before if now < self._ask_at else before or self.last_at or self._asked_at
        if now >= self._ask_at:
            # No database has this name: the answer says only that the process comes around.
            self._asked_at, self._answer, self._ask_at = datetime.now(UTC), process.mark(""), now + _SIGN_SECONDS
        return before


def _in_window(follow: FollowHealth, window: SnapshotId | None) -> FollowHealth:
    return replace(follow, window=window and str(window), window_since=window and window.taken_at)
