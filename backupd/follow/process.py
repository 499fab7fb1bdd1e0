"""The following process from the side of its parent: requests to it, and what it reports."""

from __future__ import annotations

import json
import subprocess
import threading
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

from backupd.concurrency import start_thread
from backupd.errors import LimitReachedError
from backupd.follow.chain import Mark, WindowBegan, WindowEnded
from backupd.follow.spool import Cut
from backupd.format import SnapshotId
from backupd.system.processes import end, lines_of, start_with_pipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.config import Database
    from backupd.format.segment import Anchor

_TICK_SECONDS = 1.0
_ENDS_WITHIN_SECONDS = 2.0
_GONE_WITHIN_SECONDS = 1.0


class Event(NamedTuple):
    """What became of one database."""

    name: str
    what: Cut | WindowBegan | WindowEnded


class FollowerProcess:
    """The process that follows all databases. Threads may send requests, and one reads `events`.

    Raises `LimitReachedError` and `UsageError` when it cannot be started.
    """

    def __init__(self) -> None:
        self._process = start_with_pipes("backupd.follow.child")
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        # Written by a thread of its own: who sends a request may be the one that has to read what the process reports,
        # and the process reads no request while its reports are not read.
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._marks: dict[int, Future[Mark | None]] = {}
        self._last_token = 0
        self._has_ended = False
        try:
            self._writer = start_thread(self._write_requests, name="follow-requests")
        except LimitReachedError:
            end(self._process)
            raise

    def follow(self, database: Database, spool: Path, *, interval: float, most_bytes: int) -> None:
        """Follow a database from now on, or with other values."""
        self._send(
            do="follow",
            name=database.name,
            path=str(database.path),
            within=None if database.within is None else str(database.within),
            spool=str(spool),
            interval=interval,
            most_bytes=most_bytes,
        )

    def forget(self, name: str) -> None:
        """Follow a database no longer. What was read of it is put into a segment."""
        self._send(do="forget", name=name)

    def mark(self, name: str) -> Future[Mark | None]:
        """Ask how far a database has come by now; None when it is not followed, or no commit of it was seen.

        All commits up to there are in segments then, which `events` has yielded before.
        """
        future: Future[Mark | None] = Future()
        with self._lock:
            if self._has_ended:
                future.set_result(None)
                return future
            self._last_token += 1
            token = self._last_token
            self._marks[token] = future
        self._send(do="mark", name=name, token=token)
        return future

    def anchor(self, name: str, window: SnapshotId, anchor: Anchor) -> None:
        """Tell it that a snapshot was taken."""
        self._send(do="anchor", name=name, window=window, snapshot=anchor.snapshot, after=anchor.after, by=anchor.by)

    def distrust(self, name: str, window: SnapshotId) -> None:
        """Let it end a recovery window whose commits have turned out wrong."""
        self._send(do="distrust", name=name, window=window)

    def events(self) -> Iterator[Event | None]:
        """Yield what it reports until it ends, and None every second while it reports nothing."""
        try:
            for line in lines_of(self._stdout, tick_seconds=_TICK_SECONDS):
                event = None if line is None else self._event(json.loads(line))
                if event is not None or line is None:
                    yield event
        finally:
            self._answer_all()

    def stop(self) -> None:
        """Let it put what it has read into segments, and end. `events` ends after their events. Repeatable."""
        self._requests.put(None)

    def end(self) -> int:
        """Wait a moment for its end, then kill it; its exit status, as `Popen.returncode` gives it."""
        self.stop()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_WITHIN_SECONDS)
        self._process.kill()
        self._writer.join(_GONE_WITHIN_SECONDS)
        if not self._writer.is_alive():  # or closing the pipe would wait for it: a dead disk holds the process
            end(self._process)
        return self._process.returncode or 0

    def _send(self, **request: object) -> None:
        self._requests.put(json.dumps(request).encode() + b"\n")

    def _write_requests(self) -> None:
        with suppress(OSError, ValueError), self._stdin:  # it has ended: `events` ends as well
            while (line := self._requests.get()) is not None:
                self._stdin.write(line)
                self._stdin.flush()

    def _event(self, values: dict[str, Any]) -> Event | None:
        kind, name = values.pop("event"), values.pop("name")
        match kind:
            case "segment":
                return Event(name, Cut(**{**values, "window": SnapshotId(values["window"])}))
            case "began":
                return Event(name, WindowBegan(SnapshotId(values["window"])))
            case "ended":
                return Event(name, WindowEnded(**values))
            case _:
                self._answer(values)
                return None

    def _answer(self, values: dict[str, Any]) -> None:
        with self._lock:
            future = self._marks.pop(values["token"], None)
        if future is not None:
            window = values.get("window")
            future.set_result(None if window is None else Mark(SnapshotId(window), values["last"], values["at_ms"]))

    def _answer_all(self) -> None:
        """Answer the marks that it was asked for before it ended."""
        with self._lock:
            marks, self._marks, self._has_ended = self._marks, {}, True
        for future in marks.values():
            future.set_result(None)
