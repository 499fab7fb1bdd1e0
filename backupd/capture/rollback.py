"""The capture of a database in rollback-journal mode, whose writers wait for it for moments only.

In this mode a reader's SHARED lock keeps writers from the file, so nothing slow may be done under it. What makes short
locks possible: while SQLite has given us a SHARED lock, the main file itself is the committed state. SQLite writes into
it under an EXCLUSIVE lock only, and gives a SHARED lock only after it has looked for a hot journal. A hot journal would
have to be rolled back, which a read-only connection may not do, so the capture fails then. This holds for every kind of
journal (DELETE, PERSIST, TRUNCATE, MEMORY, OFF, with a super-journal or not), because SQLite itself decides which
journal is hot.
Source: https://www.sqlite.org/lockingv3.html, https://www.sqlite.org/atomiccommit.html

1. `StepwiseCapture`: SQLite's backup API copies the file in steps, and the lock is released between them. After a
   commit the copied pages are of a state that has passed, and the copy begins again.
2. `ConfirmedCapture`, after two such interruptions: the file is read and compressed without a lock. What was read may
   be torn, or may never have been committed, and none of it counts before it is confirmed. For that, another process
   takes the lock (see `unlocked`), and either nothing has touched the file since it was read (`unchanged.Stillness`,
   and the same header in page 1), or the file is hashed again and the steps that differ are copied. Either way every
   byte of the image is then known to be that of the locked file. A file that was replaced has another inode.

The backup API remains the reference: from time to time it reads the locked file too, and must come to the same digest.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from backupd.capture import sink, source
from backupd.capture.limits import BYTES_PER_STEP, never_at_rest
from backupd.capture.unchanged import Stillness
from backupd.capture.unlocked import UnlockedFile
from backupd.format import lock_page
from backupd.format.pack import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

    from backupd.capture.child import Output
    from backupd.capture.holder import Locked, LockHolder
    from backupd.capture.unlocked import Run

_TRIES_IN_STEPS = 2
_MOST_PASSES = 12
_MOST_SECONDS_OF_PASSES = 600
_TRIES_UNDER_LOCK = 3
_MOST_CHANGED_BYTES = 32 << 20
"""The lock is not taken after a pass that found more than this: as much again may have changed since."""

_MOST_COPIED_BYTES = 64 << 20
_API_TIMES = 4
"""How many times as long as hashing the file the backup API takes: 0.6 s and 0.15 s for 1 GB on two cores."""

_MARGIN = 1.3
_BLANK = {"schema_version": 0, "writer_version": 0, "counter": 0}


class _InterruptedError(Exception):
    """The application has committed, or something has touched the file: the copy begins again."""


class StepwiseCapture:
    """The backup API in steps that release the lock in between; a small database is one step."""

    def __init__(self, path: str, output: Output, *, lock_timeout: float, whole_bytes: int) -> None:
        """Up to `whole_bytes` are copied in one step."""
        self._path = path
        self._output = output
        self._lock_timeout = lock_timeout
        self._whole_bytes = whole_bytes

    def run(self) -> bool:
        """Capture; False when the application commits too often for that.

        Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`.
        """
        for _ in range(_TRIES_IN_STEPS):
            header, before = source.read_header(self._path), os.stat(self._path)
            if header.page_size and before.st_size >= header.page_size:
                # Before the lock, because it may have to wait for the disk of the spool.
                self._output.begin(header.page_size, before.st_size // header.page_size)
            if before.st_size <= self._whole_bytes:
                source.warm_file_cache(self._path)
            try:
                with source.opened(self._path, lock_timeout=self._lock_timeout) as connection:
                    steps = _Steps(connection, self._path, self._output)
                    facts, first_page = steps.copied(header, whole_bytes=self._whole_bytes)
            except _InterruptedError:
                continue
            finally:
                self._output.released()
            # If the version before differs from the one after, either may have written the captured state.
            is_known = source.read_header(self._path).writer_version == header.writer_version
            if is_known and _identity(os.stat(self._path)) == _identity(before):
                self._output.pinned(facts)
                self._output.finish(facts, first_page, header)
                return True
        return False


class _Steps:
    """One try: every step meets the state that the first one met, or ends it with `_InterruptedError`."""

    def __init__(self, connection: apsw.Connection, path: str, output: Output) -> None:
        self._connection = connection
        self._path = path
        self._output = output
        self._page_count = 0

    def copied(self, header: source.Header, *, whole_bytes: int) -> tuple[dict[str, Any], bytes]:
        """Facts and page 1 of the state whose other pages the output has got."""
        connection = self._connection
        self._lock()
        self._evidence = _evidence(os.stat(self._path))
        source.read_damaged_schema(connection)
        facts = source.read_facts(connection, header)
        source.reject_journal_mode(facts, is_wal=False)
        self._version = connection.data_version("main")
        page_size, self._page_count = connection.pragma("page_size"), connection.pragma("page_count")
        self._output.begin(page_size, self._page_count)
        if self._page_count == 0:
            return facts, b""
        is_small = page_size * self._page_count <= whole_bytes
        first_page = sink.stream_pages(
            connection,
            page_size=page_size,
            pages_per_step=self._page_count if is_small else BYTES_PER_STEP // page_size,
            pages_written=self._output.pages_written,
            stepped=self._stepped,
            held=self._held,
        )
        return facts, first_page

    def _lock(self) -> None:
        source.pin(self._connection)
        self._output.locked(time.monotonic())

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._connection.in_transaction:
            self._lock()
        # SQLite itself begins again when this has changed: the counter in page 1 is another.
        if self._connection.data_version("main") != self._version:
            raise _InterruptedError
        yield
        self._connection.execute("COMMIT")
        self._output.released()

    def _stepped(self, remaining: int) -> None:
        self._output.progress(self._page_count - remaining)
        # A crash without a journal, or another program, changes the file and leaves the counter as it is.
        if remaining and _evidence(os.stat(self._path)) != self._evidence:
            raise _InterruptedError


@dataclass(frozen=True, slots=True)
class _Pass:
    """One reading of the whole file: how long it took, how much had changed, and what can tell that nothing did since.

    `header` is that of page 1 before the pass.
    """

    seconds: float
    changed_bytes: int
    header: bytes
    stillness: Stillness

    def still_holds(self, file: UnlockedFile) -> bool:
        """Whether nothing has touched the file since."""
        return self.stillness.still_holds() and file.read(source.HEADER_BYTES, 0) == self.header


class ConfirmedCapture:
    """The file read without a lock, and confirmed under one."""

    def __init__(
        self, path: str, output: Output, holder: LockHolder, *, max_lock: float, compare_seconds: float, trusts: bool
    ) -> None:
        """Compares with the backup API where that should keep the lock for no more than `compare_seconds`.

        The image is confirmed by reading the file again if that `trusts` what the system gives for it, else by the API.
        """
        self._path = path
        self._output = output
        self._holder = holder
        self._max_lock = max_lock
        self._compare_seconds = compare_seconds
        self._trusts = trusts

    def run(self) -> bool:
        """Capture; False when the file became another one, so that everything has to begin again.

        Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`.
        """
        self._holder.start()
        expected_seconds, tries = 0.0, 0
        give_up_at = time.monotonic() + _MOST_SECONDS_OF_PASSES
        try:
            with UnlockedFile(self._path) as file:
                for number in range(_MOST_PASSES):
                    last = self._read(file)
                    expected_seconds = last.seconds * _MARGIN * (1 if self._trusts else _API_TIMES)
                    is_short = last.changed_bytes <= _MOST_CHANGED_BYTES and expected_seconds <= self._max_lock
                    # Else another pass: it finds less to do, or that nothing has touched the file meanwhile.
                    if is_short or (self._trusts and last.still_holds(file)):
                        if self._is_confirmed(last, file):
                            return True
                        tries += 1
                    if tries == _TRIES_UNDER_LOCK or (number and time.monotonic() > give_up_at):
                        break
        except _InterruptedError:
            return False
        raise never_at_rest(self._path, expected_seconds, self._max_lock)

    def _read(self, file: UnlockedFile) -> _Pass:
        """Read the whole file without a lock, and hand on what has changed; then wait until it is compressed."""
        stillness, header = Stillness(self._path), file.read(source.HEADER_BYTES, 0)
        page_size = source.page_size_of(header)
        if page_size is None or (page_count := file.status().st_size // page_size) == 0:
            raise _InterruptedError
        self._output.begin(page_size, page_count)
        started, changed_bytes = time.monotonic(), 0
        for run in file.changed_runs(page_size * page_count):
            self._take(run)
            changed_bytes += len(run.content)
            self._output.progress((run.offset + len(run.content)) // page_size)
        seconds = time.monotonic() - started
        self._output.wait_for_packs()
        return _Pass(seconds, changed_bytes, header, stillness)

    def _is_confirmed(self, last: _Pass, file: UnlockedFile) -> bool:
        """Whether the image was finished. If it was not, the next pass finds what has changed meanwhile."""
        compares = not self._trusts or last.seconds * _API_TIMES <= self._compare_seconds
        runs: list[Run] = []
        try:
            with self._holder.locked() as locked:
                self._output.locked(locked.at)
                give_up_at = locked.at + self._max_lock
                if compares:
                    self._holder.compare(self._output.packer.table)
                evidence, first_page = _evidence(file.status()), file.read(locked.page_size, 0)
                is_same_file = evidence == _evidence(os.stat(self._path))
                is_known = not self._trusts or last.still_holds(file) or _is_copied(file, locked, give_up_at, runs)
                is_compared = compares and self._holder.has_compared(give_up_at=give_up_at)
                # Who writes without SQLite's locks may have written what was read only a moment ago.
                is_quiet = evidence == _evidence(file.status())
        finally:
            self._output.released()
        if not is_same_file:
            raise _InterruptedError
        self._output.begin(locked.page_size, locked.page_count)
        for run in runs:
            self._take(run)
        if not (is_known and is_quiet) or (not self._trusts and not is_compared):
            return False
        if is_compared and not self._is_that_of_api(first_page, locked):
            return False
        if self._compare_seconds and not is_compared:
            self._output.compared(is_same=None)
        header = source.header_of(self._path, first_page)
        facts = {**locked.facts, "sqlite_version": header.sqlite_version}
        self._output.pinned(facts)
        self._output.finish(facts, first_page, header)
        return True

    def _is_that_of_api(self, first_page: bytes, locked: Locked) -> bool:
        """Whether the image has the digest of the one that the API gave, with the API's pages where it is not trusted.

        After a difference the image is trusted no more.
        """
        api = self._holder.api_image()
        if not self._trusts:
            with open(api.images, "rb") as images:
                self._output.pages_written(api.numbers, [images.read(locked.page_size) for _ in api.numbers])
        with open(api.hashes, "rb") as hashes:
            hashes.seek(HASH_BYTES)
            api_digest = blake3(hashes.read()).digest()
        blank = [sink.complete_first_page(page, **_BLANK) for page in (first_page, api.first_page)]
        is_same = blank[0] == blank[1] and self._output.packer.table.digest_behind(b"") == api_digest
        if self._trusts:
            self._output.compared(is_same=is_same)
            self._trusts = is_same
        return is_same

    def _take(self, run: Run) -> None:
        """Hand on the pages of a run, but for page 1, which comes last, and the page with the lock byte."""
        page_size = self._output.page_size
        first = run.offset // page_size + 1
        last = min(first + len(run.content) // page_size - 1, self._output.page_count)
        left_out = {1, lock_page(page_size)}
        numbers = [number for number in range(first, last + 1) if number not in left_out]
        content = memoryview(run.content)
        images = [bytes(content[(each - first) * page_size : (each - first + 1) * page_size]) for each in numbers]
        self._output.pages_written(numbers, images)


def _is_copied(file: UnlockedFile, locked: Locked, give_up_at: float, runs: list[Run]) -> bool:
    """Hash the locked file, and copy what has changed into `runs`; whether that was all, in time and in memory."""
    copied_bytes = 0
    try:
        for run in file.changed_runs(locked.page_size * locked.page_count, give_up_at=give_up_at):
            runs.append(run)
            copied_bytes += len(run.content)
            if copied_bytes > _MOST_COPIED_BYTES:
                return False
    except TimeoutError:
        return False
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _evidence(status: os.stat_result) -> tuple[int, ...]:
    """What differs after a write by someone who minds no locks, unless it comes within the same time stamp."""
    return *_identity(status), status.st_size, status.st_mtime_ns
