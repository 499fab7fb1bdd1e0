"""The process that holds SQLite's lock on a database in rollback mode, while another confirms what it read without one.

It answers each line of JSON on stdin with one on stdout: `lock` takes the lock and pins the committed state; `compare`
reads that state through the backup API; `release` lets the application write; `give` leaves in the spool what the API
gave. The end of stdin ends this process at once, and with it the lock; so does a lock that is held for too long.

Only `LockHolder` starts it, as `children.command_of` says.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from backupd.capture import side_files, sink, source
from backupd.capture.facts import read_facts
from backupd.capture.files import read_header
from backupd.capture.limits import BYTES_PER_STEP, LockTimer, died, let_timers_end_this_process
from backupd.capture.source import JournalModeChangedError
from backupd.capture.table import HashTable, spool_full
from backupd.children import command_of, error_as_json, error_from_json, failure_of, start
from backupd.errors import BackupdError
from backupd.format.pack import HASH_BYTES
from backupd.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import apsw

    from backupd.capture.table import Pages

_MOST_DIFFERING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Locked:
    """One committed state that stays as long as the lock is held. `at` is of the monotonic clock."""

    at: float
    page_size: int
    page_count: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiImage:
    """What the backup API gave of the locked state: page 1, and a file of the hashes of all other pages.

    `numbers` are the pages, but for page 1, whose hash was another than in the table that they were compared with, and
    `images` is the file that holds them: both are empty where they were not wanted.
    """

    first_page: bytes
    hashes: Path
    numbers: list[int]
    images: Path


class LockHolder:
    """The other process, as a context manager: leaving it ends the process and whatever it holds."""

    def __init__(self, path: str, spool: Path, *, lock_timeout: float, max_lock: float) -> None:
        self._path = path
        self._spool = spool
        self._lock_timeout = lock_timeout
        self._max_lock = max_lock
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        """Start the process, if it does not run; it makes itself ready meanwhile."""
        if self._process is None:
            # In the group of the process that captures, so that ending the group ends this too.
            command = command_of("backupd.capture.holder")
            self._process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @contextmanager
    def locked(self) -> Iterator[Locked]:
        """Hold the lock until the block ends. Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`."""
        self.start()
        answer = self._ask(do="lock", path=self._path, lock_timeout=self._lock_timeout, max_lock=self._max_lock)
        if answer is None:
            raise JournalModeChangedError
        try:
            yield Locked(**answer)
        except BaseException:
            self._end()
            raise
        if self._process is not None:
            self._ask(do="release")

    def compare(self, table: HashTable, *, keeps_images: bool) -> None:
        """Begin to read the locked state through the backup API, and to compare it with `table`, which has a file."""
        self._send(do="compare", table=str(table.file), keeps_images=keeps_images)

    def has_compared(self, *, give_up_at: float) -> bool:
        """Whether that is done before the monotonic clock reaches `give_up_at`; if it is not, the lock is let go."""
        assert self._process is not None and self._process.stdout is not None  # noqa: PT018, S101
        remaining = max(0.0, give_up_at - time.monotonic())
        if not select.select([self._process.stdout], [], [], remaining)[0]:
            self._end()
            return False
        self._answer()
        return True

    def api_image(self) -> ApiImage:
        """What was compared, after the lock is released."""
        answer = self._ask(do="give", spool=str(self._spool)) or {}
        return ApiImage(
            base64.b64decode(answer["first_page"]), Path(answer["hashes"]), answer["numbers"], Path(answer["images"])
        )

    def _ask(self, **request: Any) -> dict[str, Any] | None:
        self._send(**request)
        return self._answer()

    def _send(self, **request: Any) -> None:
        assert self._process is not None and self._process.stdin is not None  # noqa: PT018, S101
        with suppress(BrokenPipeError):  # `_answer` reports why the process ended
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None  # noqa: PT018, S101
        line = self._process.stdout.readline()
        if not line:
            raise died(self._path, self._process.wait(), self._max_lock)
        answer: dict[str, Any] | None = json.loads(line)
        if answer is not None and "error" in answer:
            raise error_from_json(answer)
        return answer

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None  # noqa: S101
            with suppress(BrokenPipeError):
                pipe.close()


class _Holder:
    """The process itself: carries out one request after the other."""

    def __init__(self) -> None:
        self._requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._hashes: HashTable | None = None
        self._first_page = b""
        self._numbers: list[int] = []
        self._images: list[bytes] = []
        self._keeps_images = False

    def read_requests(self) -> None:
        try:
            for line in sys.stdin:
                self._requests.put(json.loads(line))
        finally:
            os._exit(1)

    def run(self) -> None:
        while True:
            request = self._requests.get()
            try:
                if request["do"] == "lock":
                    self._hold(**{name: value for name, value in request.items() if name != "do"})
                else:
                    self._give(Path(request["spool"]))
            except JournalModeChangedError:
                _answer(None)
            except BackupdError as error:
                _answer(error_as_json(error))

    def _hold(self, path: str, lock_timeout: float, max_lock: float) -> None:
        if read_header(path).is_wal:
            raise JournalModeChangedError
        timer = LockTimer(max_lock)
        with source.pinned(path, lock_timeout=lock_timeout, timer=timer) as connection:
            at = time.monotonic()
            _, facts = read_facts(connection, seconds=timer.facts_seconds)
            source.reject_journal_mode(facts, is_wal=False)
            page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
            _answer({"at": at, "page_size": page_size, "page_count": page_count, "facts": facts})
            while (request := self._requests.get())["do"] == "compare":
                self._keeps_images = request["keeps_images"]
                self._compare(connection, page_size, page_count, request["table"])
                _answer({})
        _answer({})

    def _compare(self, connection: apsw.Connection, page_size: int, page_count: int, table: str) -> None:
        self._numbers, self._images = [], []
        self._hashes = hashes = HashTable(None, page_count)
        hashes.hole_left(page_size)
        with open(table, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as expected:

            def pages_written(numbers: list[int], images: list[bytes]) -> None:
                pages = hashes.record(numbers, images)
                if self._keeps_images and not pages.are_in(expected):
                    self._keep(pages, expected)

            self._first_page = sink.stream_pages(
                connection,
                page_size=page_size,
                pages_per_step=BYTES_PER_STEP // page_size,
                pages_written=pages_written,
            )

    def _keep(self, pages: Pages, expected: mmap.mmap) -> None:
        for number, digest, image in zip(*pages, strict=True):
            is_room = len(self._images) * len(image) < _MOST_DIFFERING_BYTES
            start = (number - 1) * HASH_BYTES
            # More than that are not a few pages that changed a moment ago: they come again with the next comparison.
            if is_room and expected[start : start + HASH_BYTES] != digest:
                self._numbers.append(number)
                self._images.append(image)

    def _give(self, spool: Path) -> None:
        """Leave what the API gave in `spool`. Not before the lock is released: the disk may be slow."""
        assert self._hashes is not None  # noqa: S101
        hashes, images = spool / "api-hashes", spool / "api-images"
        try:
            hashes.write_bytes(self._hashes.run(1, self._hashes.page_count))
            images.write_bytes(b"".join(self._images))
        except OSError as error:
            raise spool_full(spool, error) from error
        first_page = base64.b64encode(self._first_page).decode("ascii")
        _answer({"first_page": first_page, "hashes": str(hashes), "numbers": self._numbers, "images": str(images)})


def _answer(values: dict[str, Any] | None) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out the requests on stdin until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; others decide
    let_timers_end_this_process()
    side_files.keep_sqlite_from_deleting()
    holder = _Holder()
    try:
        start_thread(holder.read_requests, name="requests")
        holder.run()
    except Exception as error:  # noqa: BLE001  (a bug, or the parent has gone)
        _answer(error_as_json(failure_of("the process that holds the lock", error)))


if __name__ == "__main__":
    main()
