"""The commits of one followed database, numbered from the beginning of a window, and cut into segments in its spool.

Beside the segments, the place is noted from which the next process continues when it can prove that nothing was missed.
"""

from __future__ import annotations

import os
import secrets
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from backupd.errors import BackupdError, SourceUnusableError
from backupd.follow.log import REMOVED, REPLACED, Gap, LogFollower
from backupd.follow.spool import Cut, Place, Spool
from backupd.format import FormatError, SnapshotId
from backupd.format.segment import SEGMENT_LEVEL, Anchor, Commit, SegmentHead, encode_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from backupd.config import Database
    from backupd.follow.log import LogCommit, Position

    Writing: TypeAlias = Callable[[Callable[[], "Written"], int], Future["Written"]]
    """Makes a call, now or in a thread; those of one chain in their order."""

_CUT_BYTES = 16 << 20
_MOST_WAITING_BYTES = 48 << 20
"""What was read while other segments are being written: with more of it, the log is not read until they are there. It
is what 2,000 commits a second write in two seconds."""
_QUICK_LEVEL = 1
_QUICK_BYTES_PER_SECOND = 512 << 10
"""From so many bytes of images on, segments are compressed at `_QUICK_LEVEL`, until they are merged, which compresses
them again. Measured on 12.3 MB of the sample database: level 1 stores 2.57 MB in 27 ms of processor time, level 2 2.60
MB in 35 ms, level 3 2.50 MB in 51 ms, level 6 2.33 MB in 180 ms, and level -1 2.82 MB in 23 ms."""
_LONGEST_PAUSE_SECONDS = 1.0
_SHORTEST_PAUSE_SECONDS = 0.004
_WRITING_PAUSE_SECONDS = 0.05
"""When it is time to cut while the segments before are still being written."""
_MOST_PAGES_PER_POLL = 300
_FEWEST_PAGES_PER_POLL = 150
_MANY_OPEN_FRAMES = 4096
_IDLE_PART = 10
"""A poll that has read a long open transaction is followed by a pause of so many times its duration: so is the next."""
_LOOK_UP_SECONDS = 30.0
"""How often the path of a database is followed to its file: that costs more than all else about an idle one."""
_MARK_SECONDS = 3.0
_MOST_CLOCK_LAG_MS = 60_000
_REST_SECONDS = 10.0
"""What could not be stored is a gap, and the next window needs another snapshot: it must not begin at once."""


class WindowBegan(NamedTuple):
    """A window without a snapshot began, or is continued. Nothing in it can be restored before there is one."""

    window: SnapshotId


class WindowEnded(NamedTuple):
    """Commits may be missing here, and why."""

    reason: str
    is_blind: bool = False
    """Whether those that follow are not seen either, for now."""


Happening = Cut | WindowBegan | WindowEnded


class Written(NamedTuple):
    """The segments that were put into the spool, and why the commits behind them were not, if so."""

    cuts: list[Cut]
    failure: str | None = None
    lacks_room: bool = False


class Mark(NamedTuple):
    """The last commit of the window that was seen by now. A reader that begins now has seen all commits before it."""

    window: SnapshotId
    last: int
    at_ms: int
    """When that was so, in milliseconds since 1970: no later commit counts as seen before."""


@dataclass(slots=True)
class _Window:
    id: SnapshotId
    last: int = 0
    anchors: list[Anchor] = field(default_factory=list)
    gap: str | None = None
    pending: list[Commit] = field(default_factory=list)
    page_size: int = 0
    is_anchored: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    """Commits on their way into the spool, which follow each other, and what to note when they are there."""

    window: _Window
    first: int
    commits: list[Commit]
    anchors: tuple[Anchor, ...]
    """Those that its segments name."""
    seen_at_ms: int
    position: Position | None
    """Behind its last commit; None when the window ends with it."""

    @property
    def last(self) -> int:
        """The number of its last commit."""
        return self.first + len(self.commits) - 1


def write_at_once(call: Callable[[], Written], size_bytes: int) -> Future[Written]:  # noqa: ARG001  (as `Writing`)
    """Make the call now: the log is not read meanwhile."""
    future: Future[Written] = Future()
    future.set_result(call())
    return future


class Chain:
    """Follows one database into segments in its spool. `poll`, `cut` and `mark` return or yield what happened."""

    def __init__(
        self,
        database: Database,
        spool: Path,
        *,
        interval: float,
        most_bytes: int,
        rest: float = _REST_SECONDS,
        write: Writing = write_at_once,
        is_crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        """Cut a segment every `interval` seconds when something was committed; keep `most_bytes` in the spool.

        After a commit that could not be stored, nothing is followed for `rest` seconds. Segments are made and written
        by `write`, which gets the size of their images, too; with one that uses a thread, `collect` has to be called
        when it is done. While so much waits for it that it `is_crowded`, the log is not read before this is written.
        """
        self.pause = _SHORTEST_PAUSE_SECONDS
        """How many seconds to wait before the next poll."""
        self._database = database
        self._spool = Spool(spool)
        self._interval = interval
        self._most_bytes = most_bytes
        self._rest = rest
        self._write = write
        self._is_crowded = is_crowded
        self._batch: _Batch | None = None
        """What is being written. What is read meanwhile waits for the next batch."""
        self._written: Future[Written] | None = None
        self._log: LogFollower | None = None
        self._checked_file: tuple[int, int] | None = None
        self._look_up_at = 0.0
        self._window: _Window | None = None
        self._gap: str | None = None
        self._seen_at_ms = 0
        self._cut_at = time.monotonic()
        self._rests_until = 0.0
        self._waits_for_room = False
        self._place = self._spool.place()

    def found(self) -> list[Cut]:
        """Return the segments that are in the spool: with them, nothing is missing up to where this one continues."""
        return self._spool.segments()

    def poll(self) -> Iterator[Happening]:
        """Read what was committed since the last poll, and cut a segment when it is time to."""
        began = time.monotonic()
        if self._is_at_rest(began):
            return
        yield from self.collect()
        if self._must_wait(began):
            self.pause = _LONGEST_PAUSE_SECONDS
            return
        pages = 0
        try:
            log = self._follower()
            found = log.poll()
            replaced = self._why_replaced(log)
        except (OSError, BackupdError) as error:
            yield from self._lose(f"the log cannot be read: {_reason(error)}")
            return
        if replaced is not None:  # which database `found` is of is not known
            self._give_up_log()
            yield from self._end_window(replaced)
            return
        for each in found:
            if isinstance(each, Gap):
                yield from self._end_window(each.reason)
            else:
                pages += len(each.pages)
                yield from self._take(each)
            if self._log is not log:  # it was given up: what follows has no place in a window
                return
        if not found:
            yield from self._resume()
        now = time.monotonic()
        yield from self._cut_in_time(now)
        self._set_pause(pages, now - began)

    def collect(self) -> Iterator[Cut | WindowEnded]:
        """Tell what was put into the spool, if that is done, and note the place behind it."""
        if self._written is not None and self._written.done():
            yield from self._wait()

    def cut(self) -> Iterator[Cut | WindowEnded]:
        """Put all that was read into segments, wait for them, and note the place."""
        yield from self._wait()
        self._begin_batch()
        yield from self._wait()

    def mark(self) -> Iterator[Happening | Mark]:
        """Poll, and tell how far the window has come, if there is one and a commit was seen in it."""
        self._look_up_at = 0.0
        if self._log is not None:
            self._log.look_closely()
        # The second look tells what the first one cannot: whether a header that was not valid was just being written.
        yield from self.poll()
        yield from self.poll()
        give_up_at = time.monotonic() + _MARK_SECONDS
        while self._is_behind and time.monotonic() < give_up_at:
            yield from self.poll()
        if self._window is not None and self._window.last and not self._is_behind:
            self._seen_at_ms = max(self._seen_at_ms, time.time_ns() // 1_000_000)
            yield Mark(self._window.id, self._window.last, self._seen_at_ms)

    def is_cut(self, mark: Mark) -> bool | None:
        """Whether all commits up to `mark` are in segments; None when its window is over.

        Otherwise they are being written, which `collect` ends, or wait for what is.
        """
        window = self._window
        if window is None or window.id != mark.window:
            return None
        if self._batch is None and mark.last > window.last - len(window.pending):
            self._begin_batch()
        if self._batch is not None:
            return mark.last < self._batch.first
        return mark.last <= window.last - len(window.pending)

    def anchor(self, window: SnapshotId, anchor: Anchor) -> None:
        """Let the next segment say where a snapshot is, unless its window is over."""
        if self._window is not None and self._window.id == window:
            # The same snapshot may be the present state again: its first place is the base of earlier commits.
            same = [each for each in self._window.anchors if each.snapshot == anchor.snapshot]
            others = [each for each in self._window.anchors if each.snapshot != anchor.snapshot]
            self._window.anchors = [*others, *same[:1], anchor]
            self._window.is_anchored = True
            if not self._window.pending and self._batch is None:
                position = None if self._log is None else self._log.position
                self._note_place(self._window.last, self._seen_at_ms, position)

    def distrust(self, window: SnapshotId) -> Iterator[Cut | WindowEnded]:
        """End the window, if it is still open, because its commits have turned out wrong."""
        if self._window is not None and self._window.id == window:
            yield from self._end_window("a check found that its commits are not what was committed")

    def close(self) -> None:
        """Close the log, when what is being written is there. Repeatable."""
        if self._written is not None:
            self._written.result()
        if self._log is not None:
            self._log.close()

    def _is_at_rest(self, now: float) -> bool:
        """Whether there is nothing to read and nothing to write; this is all that most polls of most databases do."""
        if self._log is None or self._batch is not None or self._place is not None or now >= self._look_up_at:
            return False
        if (self._window is not None and self._window.pending) or self._waits_for_room or not self._log.is_at_rest():
            return False
        self.pause = max(min(self.pause * 1.5, self._interval, _LONGEST_PAUSE_SECONDS), _SHORTEST_PAUSE_SECONDS)
        if now - self._cut_at >= self._interval:
            self._cut_at = now  # what is committed next waits for others, as ever
        return True

    def _cut_in_time(self, now: float) -> Iterator[Cut | WindowEnded]:
        """Begin to write what was read, if it is time to and what was written before is there."""
        waiting_bytes, is_crowded = self._pending_bytes(), self._is_crowded()
        if waiting_bytes >= (_CUT_BYTES if is_crowded else _MOST_WAITING_BYTES):
            yield from self._wait()
        is_time = waiting_bytes >= _CUT_BYTES or now - self._cut_at >= self._interval
        if not is_time or self._batch is not None:
            return
        self._begin_batch()
        if is_crowded:
            yield from self._wait()
        yield from self.collect()

    def _must_wait(self, now: float) -> bool:
        """Whether nothing is followed at present, because what was read could not be stored."""
        if now < self._rests_until:
            return True
        if self._waits_for_room:
            with suppress(OSError):  # what cannot be read cannot be written either, and says so
                self._waits_for_room = self._spool.size_bytes() > self._most_bytes // 2
        return self._waits_for_room

    def _follower(self) -> LogFollower:
        """Return the reader of the log. Now and then, it is looked up where the path of the database leads."""
        now = time.monotonic()
        if self._log is not None and now < self._look_up_at:
            return self._log
        path = f"{self._database.file()}-wal"
        self._look_up_at = now + _LOOK_UP_SECONDS
        if self._log is None or self._log.path != path:
            position = self._log.position if self._log else self._place.position if self._place else None
            if self._log is not None:
                self._log.close()
            self._log = LogFollower(path, position)
        return self._log

    def _why_replaced(self, log: LogFollower) -> str | None:
        """Look up once more where the path leads after a log was opened: another user may have changed that meanwhile.

        Return why what was opened is not there any more, as after the last connection was closed; None when it is.
        Raises `SourceUnusableError` when the path leads elsewhere; OSError.
        """
        if not log.is_open:
            self._checked_file = None
        if log.position is None or not log.is_open:
            return None
        file = (log.position.device, log.position.inode)
        if file == self._checked_file:
            return None
        path = f"{self._database.file()}-wal"
        if path != log.path:
            raise SourceUnusableError(f"{self._database.path} led elsewhere while its log was opened")
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return REMOVED
        if (status.st_dev, status.st_ino) != file:
            return REPLACED
        self._checked_file = file
        return None

    def _take(self, commit: LogCommit) -> Iterator[Happening]:
        yield from self._resume()
        now_ms = time.time_ns() // 1_000_000
        if self._seen_at_ms - now_ms > _MOST_CLOCK_LAG_MS:
            yield from self._end_window("the clock was set back")
            self._seen_at_ms = now_ms
            if self._log is None:
                return
        # A clock that was set back a little must not put a commit before another one.
        self._seen_at_ms = max(self._seen_at_ms, now_ms)
        if self._window is None:
            began_at = datetime.fromtimestamp(self._seen_at_ms / 1000, UTC)
            self._window = _Window(SnapshotId.new(began_at, secrets.randbits(32)), gap=self._gap)
            yield WindowBegan(self._window.id)
        window = self._window
        window.page_size = commit.page_size
        window.last += 1
        window.pending.append(Commit(self._seen_at_ms, commit.page_count, commit.pages, commit.images))

    def _resume(self) -> Iterator[WindowBegan]:
        """Continue the window of the process before, if there is one and its position was found in the log."""
        place, self._place = self._place, None
        if place is not None and self._log is not None and self._log.position is not None:
            self._seen_at_ms = max(self._seen_at_ms, place.seen_at_ms)
            self._window = _Window(place.window, place.last, [*place.anchors], is_anchored=place.is_anchored)
            if not place.is_anchored:
                yield WindowBegan(place.window)

    def _end_window(self, reason: str, *, is_blind: bool = False) -> Iterator[Cut | WindowEnded]:
        """Store what was proven before the gap. What comes after it is another window."""
        window, was_known = self._window, self._place is not None
        yield from self._wait()
        if window is self._window and window and (window.is_anchored or len(window.pending) < window.last):
            self._begin_batch(is_last=True)  # otherwise nothing of it is stored, and no snapshot lies in it
            yield from self._wait()
        if self._window is not window:
            return
        is_news = window is not None or was_known or (is_blind and reason != self._gap)
        self._window, self._place, self._gap = None, None, reason
        with suppress(OSError):
            self._spool.forget_place()
        if is_news:
            yield WindowEnded(reason, is_blind)

    def _lose(self, reason: str) -> Iterator[Cut | WindowEnded]:
        """Give up what was read and not stored, and the position in the log."""
        yield from self._wait()
        self.pause = _LONGEST_PAUSE_SECONDS
        self._give_up_log()
        if self._window is not None:
            self._window.last -= len(self._window.pending)
            self._window.pending = []
        yield from self._end_window(reason, is_blind=True)

    def _give_up_log(self) -> None:
        if self._log is not None:
            self._log.close()
        self._log = None

    def _begin_batch(self, *, is_last: bool = False) -> None:
        """Have the pending commits written, if there are some. With `is_last`, the window ends behind them."""
        self._cut_at = time.monotonic()
        window = self._window
        if window is None or not window.pending:
            return
        position = None if is_last or self._log is None else self._log.position
        anchors = tuple(each for each in window.anchors if each.by <= window.last)
        first = window.last - len(window.pending) + 1
        batch = _Batch(window, first, window.pending, anchors, self._seen_at_ms, position)
        size_bytes = self._pending_bytes()
        window.pending = []
        self._batch, self._written = batch, self._write(lambda: self._put(batch), size_bytes)

    def _put(self, batch: _Batch) -> Written:
        """Write the commits of a batch. This may be in another thread: nothing of the chain changes here."""
        cuts: list[Cut] = []
        first = batch.first
        try:
            for part in _parts(batch.commits):
                last, since_ms = first + len(part) - 1, part[0].seen_at_ms
                content = self._encoded(batch, first, last, part)
                if self._spool.size_bytes() + len(content) > self._most_bytes:
                    reason = f"more than {self._most_bytes >> 20} MiB of commits would wait for the stores"
                    return Written(cuts, reason, lacks_room=True)
                cuts.append(self._spool.put(content, window=batch.window.id, first=first, last=last, since_ms=since_ms))
                first = last + 1
        except OSError as error:
            return Written(cuts, f"the spool cannot be written: {_reason(error)}")
        except FormatError as error:  # SQLite has not written this log
            return Written(cuts, f"a commit cannot be stored: {error}")
        return Written(cuts)

    def _wait(self) -> Iterator[Cut | WindowEnded]:
        """Wait for what is being written, if anything is; when some of it could not be, the window is over."""
        batch, written = self._batch, self._written
        if batch is None or written is None:
            return
        cuts, failure, lacks_room = written.result()
        self._batch = self._written = None
        window, last = batch.window, cuts[-1].last if cuts else batch.first - 1
        window.anchors = [each for each in window.anchors if each not in batch.anchors or each.by > last]
        if failure is None and batch.position is not None:
            self._note_place(batch.last, batch.seen_at_ms, batch.position)
        yield from cuts
        if failure is not None:
            window.last -= batch.last - last
            self._waits_for_room = self._waits_for_room or lacks_room
            self._rests_until = time.monotonic() + self._rest
            yield from self._lose(failure)

    def _encoded(self, batch: _Batch, first: int, last: int, commits: Sequence[Commit]) -> bytes:
        named_before = first - 1 if first > batch.first else -1
        head = SegmentHead(
            database=self._database.name,
            window=batch.window.id,
            first=first,
            page_size=batch.window.page_size,
            anchors=tuple(each for each in batch.anchors if named_before < each.by <= last),
            gap=batch.window.gap if first == 1 else None,
        )
        is_much = sum(len(commit.images) for commit in commits) > self._interval * _QUICK_BYTES_PER_SECOND
        return encode_segment(head, commits, level=_QUICK_LEVEL if is_much else SEGMENT_LEVEL)

    def _note_place(self, last: int, seen_at_ms: int, position: Position | None) -> None:
        """Note how far the segments go. What cannot be noted costs a gap, when this process ends."""
        if self._window is None or position is None:
            return
        place = Place(
            window=self._window.id,
            last=last,
            seen_at_ms=seen_at_ms,
            position=position,
            anchors=tuple(self._window.anchors),
            is_anchored=self._window.is_anchored,
        )
        with suppress(OSError):
            self._spool.note(place)

    def _pending_bytes(self) -> int:
        return 0 if self._window is None else sum(len(commit.images) for commit in self._window.pending)

    @property
    def _is_behind(self) -> bool:
        """Whether the log has more that can be read at once."""
        return self._log is not None and self._log.is_open and self._log.is_behind

    def _set_pause(self, pages: int, took_seconds: float) -> None:
        if pages > _MOST_PAGES_PER_POLL or self._is_behind:
            self.pause /= 2
        elif pages < _FEWEST_PAGES_PER_POLL:
            self.pause *= 1.5
        longest = min(self._interval, _LONGEST_PAUSE_SECONDS)
        if self._window is not None and self._window.pending:  # which is to be cut in time
            soonest = 0.0 if self._batch is None else _WRITING_PAUSE_SECONDS
            longest = min(longest, max(self._cut_at + self._interval - time.monotonic(), soonest))
        self.pause = max(min(self.pause, longest), _SHORTEST_PAUSE_SECONDS)
        if not pages and self._log is not None and self._log.open_frames > _MANY_OPEN_FRAMES:
            self.pause = max(self.pause, _IDLE_PART * took_seconds)


def _parts(commits: Sequence[Commit]) -> Iterator[list[Commit]]:
    """Divide commits into as few segments as their size allows."""
    part: list[Commit] = []
    size = 0
    for commit in commits:
        if part and size + len(commit.images) > _CUT_BYTES:
            yield part
            part, size = [], 0
        part.append(commit)
        size += len(commit.images)
    if part:
        yield part


def _reason(error: OSError | BackupdError) -> Any:
    return error.message if isinstance(error, BackupdError) else error.strerror or error
