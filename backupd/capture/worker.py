"""The processes that capture, from the side of their parent: how one starts, and how it is kept for the next capture.

Starting Python and loading SQLite takes 0.15 s of CPU, and capturing a database of 100 kB a hundredth of that. So a
process captures one database after the other, and is kept as long as a run needs it. It is no longer used after any
capture that failed or was given up: it ends, and what it held ends with it. `child` ends by itself when a capture has
left anything behind.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Self, cast

from backupd.system.processes import end, lines_of, start_with_pipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_TICK_SECONDS = 0.1


class Worker:
    """A process that captures, with its pipes. It belongs to one capture at a time.

    Raises `LimitReachedError` and `UsageError` when it cannot be started.
    """

    def __init__(self) -> None:
        self._process = start_with_pipes("backupd.capture.child")
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        self._user = _user()
        self.was_kept = False
        """Whether it has captured before, and so may have ended while it waited."""
        self.heard_at = 0.0
        """When it last wrote something, or was last asked to capture, on the monotonic clock."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether it still runs, and as the present user of this process."""
        return self._process.poll() is None and self._user == _user()

    def send(self, line: str) -> None:
        """Write one line to it. Nothing happens when it has ended: `status` says how."""
        with suppress(BrokenPipeError, ValueError):
            os.write(self._stdin.fileno(), line.encode() + b"\n")

    def lines(self) -> Iterator[bytes | None]:
        """Yield each line that it writes until it ends, and None ten times a second while it writes nothing."""
        self._note_heard()
        yield from lines_of(self._stdout, tick_seconds=_TICK_SECONDS, on_read=self._note_heard)

    def _note_heard(self) -> None:
        self.heard_at = time.monotonic()

    def status(self) -> int:
        """Wait until it has ended, and return its exit status as `Popen.returncode` gives it."""
        return self._process.wait()

    def end(self) -> None:
        """Kill it, however far it is, with the process that may hold a lock for it. Repeatable."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        end(self._process)


class Workers:
    """Keeps workers between captures, for one run over several databases. Threads may share it.

    As a context manager, it ends them all at the end of the block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_idle()

    def take(self) -> Worker:
        """Return a worker that no other capture uses: one that was given back, or a new one. Raises as `Worker`."""
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return Worker()
            if worker.is_usable:
                return worker
            worker.end()

    def give_back(self, worker: Worker) -> None:
        """Keep a worker that waits for its next request."""
        worker.was_kept = True
        with self._lock:
            self._idle.append(worker)

    def end_idle(self) -> None:
        """End the workers that no capture uses, so that they take no memory. Captures may begin again at any time."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()


def _user() -> tuple[int, int]:
    return os.geteuid(), os.getegid()
