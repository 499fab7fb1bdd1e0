"""Segments on their way from the spool into the stores, in their order; out of the spool when all stores have them.

A store that takes none is tried again and again. When more than half of what a database may have in the spool waits for
it, these segments are given up, in that store alone: the snapshots after them can be restored, and moments between not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from backupd.concurrency import start_thread
from backupd.errors import BackupdError, UnreadableObjectError, as_backupd_error
from backupd.follow.spool import BLOCK_BYTES, oldest_at
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from backupd.repository import Repository

_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0


class _Waiting(NamedTuple):
    database: str
    file: Path
    size_bytes: int


class Lacking(NamedTuple):
    """The segments of one database that wait for one store."""

    since: datetime
    """When the oldest commit in them was seen."""
    size_bytes: int
    failure: tuple[datetime, BackupdError] | None
    """Since when and why the store takes none; None as long as it does."""


class Lost(NamedTuple):
    """Segments that one store will not get: when their oldest commit was seen, and when they were given up."""

    since: datetime
    until: datetime


class SegmentUploads:
    """The segments that wait for stores. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._lacking: dict[Path, set[str]] = {}
        """By file, the stores that do not have it yet."""
        self._stored: set[Path] = set()
        """Those of these files that a store has, or that it was given up for."""

    def use(self, repositories: Iterable[Repository]) -> None:
        """Put segments through `repositories` from now on, and no others: their credentials may be new."""
        with self._lock:
            used = {repository.url: repository for repository in repositories}
            left_out = [self._queues.pop(url) for url in self._queues.keys() - used.keys()]
            for repository in used.values():
                queue = self._queues.get(repository.url)
                if queue is None:
                    self._queues[repository.url] = _Queue(repository, self._done, self._left_out)
                else:
                    queue.repository = repository
        for queue in left_out:
            queue.give_up()

    def add(self, database: str, file: Path, stores: Iterable[str], *, most_bytes: int) -> None:
        """Put the segment in `file` into each of `stores` (URLs), and then remove it. Nothing is added twice.

        At most about `most_bytes` of one database wait for a store.
        """
        with self._lock:
            if file in self._lacking:
                return
            queues = [queue for url in stores if (queue := self._queues.get(url)) is not None]
            if not queues:  # other stores are configured just now: it is added again, with them
                return
            self._lacking[file] = {queue.repository.url for queue in queues}
        try:
            waiting = _Waiting(database, file, max(file.stat().st_size, BLOCK_BYTES))
        except FileNotFoundError:  # every store has it
            with self._lock:
                del self._lacking[file]
            return
        for queue in queues:
            queue.add(waiting, most_bytes=most_bytes)

    def lacking(self) -> dict[tuple[str, str], Lacking]:
        """Return what waits now, by database and store (URL)."""
        with self._lock:
            queues = [*self._queues.values()]
        return {(name, queue.repository.url): found for queue in queues for name, found in queue.lacking().items()}

    def take_lost(self) -> dict[tuple[str, str], Lost]:
        """Return what was lost since the last call, by database and store (URL)."""
        with self._lock:
            queues = [*self._queues.values()]
        return {(name, queue.repository.url): lost for queue in queues for name, lost in queue.take_lost().items()}

    def stop(self, *, within_seconds: float) -> None:
        """Put what can be put in this time. The rest stays in the spool, for the next start."""
        ends_at = time.monotonic() + within_seconds
        with self._lock:
            queues = [*self._queues.values()]
        for queue in queues:
            queue.stop()
        for queue in queues:
            queue.join(max(0.0, ends_at - time.monotonic()))

    def _left_out(self, url: str, file: Path) -> None:
        """Wait no longer for a store that is not configured any more."""
        self._done(url, file, is_stored=False)

    def _done(self, url: str, file: Path, *, is_stored: bool = True) -> None:
        """Wait no longer for a store. A file that no store has stays, for those that are configured now."""
        with self._lock:
            if is_stored:
                self._stored.add(file)
            lacking = self._lacking.get(file, set())
            lacking.discard(url)
            if lacking:
                return
            self._lacking.pop(file, None)
            is_kept = file not in self._stored
            self._stored.discard(file)
        if not is_kept:
            with log.catch():
                file.unlink(missing_ok=True)


class _Queue:
    """The segments that wait for one store, and the thread that puts them."""

    def __init__(
        self, repository: Repository, done: Callable[[str, Path], None], left_out: Callable[[str, Path], None]
    ) -> None:
        self.repository = repository
        self._done = done
        self._left_out = left_out
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._failures: dict[str, tuple[datetime, BackupdError]] = {}
        """By database, since when and why the store takes none of its segments."""
        self._lost: dict[str, Lost] = {}
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def add(self, waiting: _Waiting, *, most_bytes: int) -> None:
        """Put one more segment, after those that wait."""
        with self._changed:
            if self._is_stopping:
                self._left_out(self.repository.url, waiting.file)
                return
            self._waiting.append(waiting)
            of_database = [each for each in self._waiting if each.database == waiting.database]
            is_too_much = len(of_database) > 1 and sum(each.size_bytes for each in of_database) > most_bytes
            if is_too_much:
                self._waiting = deque(each for each in self._waiting if each.database != waiting.database)
            if self._thread is None:
                self._thread = start_thread(self._run, name="segments")
            self._changed.notify_all()
        if is_too_much:
            log.error(
                "segments were given up: the store has taken none for too long",
                database=waiting.database,
                store=self.repository.url,
                segments=len(of_database),
                hint="moments in them cannot be restored from this store; the next snapshot closes the gap",
            )
            self._lose(of_database)
            for each in of_database:
                self._done(self.repository.url, each.file)

    def lacking(self) -> dict[str, Lacking]:
        """Return what waits now, by database."""
        with self._changed:
            failures = dict(self._failures)
            sizes: dict[str, int] = {}
            oldest: dict[str, Path] = {}
            for database, file, size_bytes in self._waiting:
                sizes[database] = sizes.get(database, 0) + size_bytes
                oldest.setdefault(database, file)
        return {name: Lacking(oldest_at(oldest[name]), sizes[name], failures.get(name)) for name in sizes}

    def take_lost(self) -> dict[str, Lost]:
        """Return what was lost since the last call, by database."""
        with self._changed:
            lost, self._lost = self._lost, {}
        return lost

    def _lose(self, segments: Sequence[_Waiting]) -> None:
        """Note that the store will not get these segments of one database."""
        oldest = segments[0]
        with self._changed:
            earlier = self._lost.get(oldest.database)
            since = earlier.since if earlier else oldest_at(oldest.file)
            self._lost[oldest.database] = Lost(since, datetime.now(UTC))

    def give_up(self) -> None:
        """End, and put nothing more: the store is not configured any more."""
        with self._changed:
            given_up, self._waiting = self._waiting, deque()
            self._is_stopping = True
            self._changed.notify_all()
        for each in given_up:
            self._left_out(self.repository.url, each.file)

    def stop(self) -> None:
        """End after what waits, or at the first failure."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        pause = 0.0
        failing: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                if not self._waiting or (self._is_stopping and pause):
                    return
                waiting = self._waiting[0]
            error = self._put(waiting)
            if error is None:
                with self._changed:
                    self._failures.pop(waiting.database, None)
                    if self._waiting and self._waiting[0] is waiting:
                        self._waiting.popleft()
                self._done(self.repository.url, waiting.file)
                if waiting.database in failing:
                    failing.remove(waiting.database)
                    log.info("the store takes segments again", database=waiting.database, store=self.repository.url)
                pause = 0.0
                continue
            if waiting.database not in failing:
                failing.add(waiting.database)
                log.error(
                    "segments wait in the spool",
                    database=waiting.database,
                    store=self.repository.url,
                    error=error.values(),
                )
            with self._changed:
                failing_since, _ = self._failures.get(waiting.database, (datetime.now(UTC), error))
                self._failures[waiting.database] = failing_since, error
            pause = min(max(pause * 2, _FIRST_RETRY_SECONDS), _LAST_RETRY_SECONDS)
            with self._changed:
                self._let_others_go_first(waiting.database)
                self._changed.wait_for(lambda: self._is_stopping, pause)

    def _let_others_go_first(self, database: str) -> None:
        """Put the segments of a database behind those of all others, which may fare better: keep their order."""
        others = [each for each in self._waiting if each.database != database]
        self._waiting = deque([*others, *(each for each in self._waiting if each.database == database)])

    def _put(self, waiting: _Waiting) -> BackupdError | None:
        """Put one segment. What can never be put counts as done, and is reported."""
        try:
            content = waiting.file.read_bytes()
            self.repository.archive(waiting.database).put_segment(content)
        except FileNotFoundError:
            self._lose([waiting])
            return None
        except UnreadableObjectError as error:
            log.error("a segment was left out", database=waiting.database, file=str(waiting.file), error=error.values())
            self._lose([waiting])
            return None
        except Exception as error:  # noqa: BLE001  (no caller waits for it; it is tried again)
            return as_backupd_error(error)
        return None
