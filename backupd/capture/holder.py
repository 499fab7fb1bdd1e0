"""The lock holder: a process that holds SQLite's lock on a database in rollback mode, while another reads the file.

It answers each line of JSON on stdin with one on stdout: `lock` takes the lock and pins the committed state; `compare`
reads that state through the backup API; `release` lets the application write; `give` leaves in the spool what the API
gave. The end of stdin ends the process at once, and with it the lock; so does a lock that is held for too long.

`LockHolder` is the side of the capturing process, and the only one to start it.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, Self, cast

from backupd.capture import source
from backupd.capture.database_files import read_header
from backupd.capture.facts import read_facts
from backupd.capture.limits import BYTES_PER_STEP, LockTimer, died
from backupd.capture.sink import stream_pages
from backupd.capture.source import JournalModeChangedError
from backupd.capture.table import HashTable, spool_full
from backupd.concurrency import start_thread
from backupd.errors import BackupdError
from backupd.format.pack import HASH_BYTES
from backupd.system.processes import command_of, error_as_json, error_from_json, failure_of, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import apsw

    from backupd.capture.limits import CaptureRequest
    from backupd.capture.table import Pages

_MOST_DIFFERING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Locked:
    """One committed state, which stays as long as the lock is held since `at` on the monotonic clock."""

    at: float
    page_size: int
    page_count: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiImage:
    """The locked state as the backup API gave it: page 1, and a file of the hashes of all other pages.

    `numbers` are the pages, except page 1, whose hash differs from that in the compared table, and `images` is the file
    that holds them: both are empty where they were not requested.
    """

    first_page: bytes
    hashes: Path
    numbers: list[int]
    images: Path


class _HolderProcess:
    """The running process with its pipes; one request at a time."""

    def __init__(self, path: str, max_lock: float) -> None:
        # In the group of the capturing process, so that ending the group ends this too.
        command = command_of("backupd.capture.holder")
        self._process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._stdin = cast("IO[bytes]", self._process.stdin)
        self._stdout = cast("IO[bytes]", self._process.stdout)
        self._path = path
        self._max_lock = max_lock

    def ask(self, **request: Any) -> dict[str, Any] | None:
        """Send a request and wait for its answer, as `answer` gives it."""
        self.send(**request)
        return self.answer()

    def send(self, **request: Any) -> None:
        """Send a request; when the process has ended, `answer` says why."""
        with suppress(BrokenPipeError):
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Wait for an answer; None when the journal mode has changed. Raises the error that it reports, or `died`."""
        line = self._stdout.readline()
        if not line:
            raise died(self._path, self._process.wait(), self._max_lock)
        answer: dict[str, Any] | None = json.loads(line)
        if answer is not None and "error" in answer:
            raise error_from_json(answer)
        return answer

    def has_answered(self, *, within_seconds: float) -> bool:
        """Wait until an answer can be read; False when none comes in time."""
        return bool(select.select([self._stdout], [], [], within_seconds)[0])

    def end(self) -> None:
        """Kill the process, which releases its lock."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with suppress(BrokenPipeError):
                pipe.close()


class LockHolder:
    """The lock holder as the capturing process uses it: a context manager, at whose end it holds nothing."""

    def __init__(self, request: CaptureRequest) -> None:
        self._request = request
        self._running: _HolderProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        """Start the process if it does not run, so that it is ready when the lock is needed."""
        self._started()

    def _started(self) -> _HolderProcess:
        if self._running is None:
            self._running = _HolderProcess(self._request.path, self._request.max_lock)
        return self._running

    @contextmanager
    def locked(self) -> Iterator[Locked]:
        """Hold the lock until the block ends. Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`."""
        request = self._request
        answer = self._started().ask(
            do="lock", path=request.path, lock_timeout=request.lock_timeout, max_lock=request.max_lock
        )
        if answer is None:
            raise JournalModeChangedError
        try:
            yield Locked(**answer)
        except BaseException:
            self._end()
            raise
        if self._running is not None:
            self._running.ask(do="release")

    def compare(self, table: HashTable, *, keeps_images: bool) -> None:
        """Begin to read the locked state through the backup API, and to compare it with `table`, which has a file."""
        self._started().send(do="compare", table=str(table.file), keeps_images=keeps_images)

    def has_compared(self, *, give_up_at: float) -> bool:
        """Wait for the comparison until the monotonic clock reaches `give_up_at`; if it is late, release the lock."""
        if not self._started().has_answered(within_seconds=max(0.0, give_up_at - time.monotonic())):
            self._end()
            return False
        self._started().answer()
        return True

    def api_image(self) -> ApiImage:
        """Return what was compared. Only after the lock is released, because it is written to disk."""
        answer = self._started().ask(do="give", spool=self._request.spool) or {}
        return ApiImage(
            base64.b64decode(answer["first_page"]), Path(answer["hashes"]), answer["numbers"], Path(answer["images"])
        )

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None


class _ApiReading:
    """The locked state as the backup API gives it: hashes of all pages, and the pages that differ from a table."""

    def __init__(self, connection: apsw.Connection, expected: mmap.mmap, *, keeps_images: bool) -> None:
        page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
        self._hashes = HashTable(None, page_count)
        self._hashes.put_lock_page(page_size)
        self._expected = expected
        self._keeps_images = keeps_images
        self._numbers: list[int] = []
        self._images: list[bytes] = []
        self._first_page = stream_pages(
            connection,
            page_size=page_size,
            pages_per_step=BYTES_PER_STEP // page_size,
            pages_written=self._pages_written,
        )

    def _pages_written(self, numbers: list[int], images: list[bytes]) -> None:
        pages = self._hashes.record(numbers, images)
        if self._keeps_images and not pages.are_in(self._expected):
            self._keep(pages)

    def _keep(self, pages: Pages) -> None:
        for number, digest, image in zip(*pages, strict=True):
            is_room = len(self._images) * len(image) < _MOST_DIFFERING_BYTES
            start = (number - 1) * HASH_BYTES
            # More than that are not a few pages that changed a moment ago: they come again with the next comparison.
            if is_room and self._expected[start : start + HASH_BYTES] != digest:
                self._numbers.append(number)
                self._images.append(image)

    def leave_in(self, spool: Path) -> dict[str, Any]:
        """Write hashes and pages into `spool`, and return the values of an `ApiImage`."""
        hashes, images = spool / "api-hashes", spool / "api-images"
        try:
            hashes.write_bytes(self._hashes.run(1, self._hashes.page_count))
            images.write_bytes(b"".join(self._images))
        except OSError as error:
            raise spool_full(spool, error) from error
        first_page = base64.b64encode(self._first_page).decode("ascii")
        return {"first_page": first_page, "hashes": str(hashes), "numbers": self._numbers, "images": str(images)}


class _Requests:
    """The requests on stdin, whose end ends this process."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read(self) -> None:
        try:
            for line in sys.stdin:
                self._queue.put(json.loads(line))
        finally:
            os._exit(1)

    def next(self) -> dict[str, Any]:
        return self._queue.get()


def _serve(requests: _Requests) -> None:
    """Carry out one request after the other."""
    reading: _ApiReading | None = None
    while True:
        request = requests.next()
        try:
            if request.pop("do") == "lock":
                reading = _hold(requests, **request)
            else:
                _give(reading, Path(request["spool"]))
        except JournalModeChangedError:
            _answer(None)
        except BackupdError as error:
            _answer(error_as_json(error))


def _hold(requests: _Requests, path: str, lock_timeout: float, max_lock: float) -> _ApiReading | None:
    """Hold the lock until a request other than `compare` comes; return the last comparison."""
    if read_header(path).is_wal:
        raise JournalModeChangedError
    timer = LockTimer(max_lock)
    reading = None
    with source.pinned(path, lock_timeout=lock_timeout, timer=timer) as connection:
        at = time.monotonic()
        _, facts = read_facts(connection, seconds=timer.facts_seconds)
        source.reject_journal_mode(facts, is_wal=False)
        page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
        _answer({"at": at, "page_size": page_size, "page_count": page_count, "facts": facts})
        while (request := requests.next())["do"] == "compare":
            with (
                open(request["table"], "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as expected,
            ):
                reading = _ApiReading(connection, expected, keeps_images=request["keeps_images"])
            _answer({})
    _answer({})
    return reading


def _give(reading: _ApiReading | None, spool: Path) -> None:
    """Answer with the last comparison. Only after the lock is released: the disk may be slow."""
    if reading is None:
        raise BackupdError("the lock holder was asked for a comparison that it has not made")
    _answer(reading.leave_in(spool))


def _answer(values: dict[str, Any] | None) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out the requests on stdin until it ends."""
    source.prepare_process()
    requests = _Requests()
    try:
        start_thread(requests.read, name="requests")
        _serve(requests)
    except Exception as error:  # noqa: BLE001  (a bug, or the parent has gone)
        _answer(error_as_json(failure_of("the process that holds the lock", error)))


if __name__ == "__main__":
    main()
