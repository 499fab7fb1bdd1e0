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
from backupd.capture.facts import read_facts
from backupd.capture.files import Header, header_of, page_size_of, read_header
from backupd.capture.foreign import HEADER_BYTES
from backupd.capture.limits import BYTES_PER_STEP, LockTimer, never_at_rest, written_without_lock
from backupd.capture.unchanged import TICK_SECONDS, Stillness, has_fine_stamp
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
_TRIES_UNDER_LOCK = 3
_MOST_CHANGED_BYTES = 64 << 20
"""The lock is not taken after a pass that found more changed pages than this: there may be as many again."""

_MOST_COPIED_BYTES = 128 << 20
_API_TIMES = 4
"""How many times as long as hashing the file the backup API takes: 0.6 s and 0.15 s for 1 GB on two cores."""

_MARGIN = 1.3
_BLANK = {"schema_version": 0, "writer_version": 0, "counter": 0}
_DATABASE_SIZE = slice(28, 32)


class _InterruptedError(Exception):
    """The application has committed, or something has touched the file: the copy begins again."""


class StepwiseCapture:
    """The backup API in steps that release the lock in between; a small database is one step."""

    def __init__(self, path: str, output: Output, *, lock_timeout: float, max_lock: float, whole_bytes: int) -> None:
        """Up to `whole_bytes` are copied in one step."""
        self._path = path
        self._output = output
        self._lock_timeout = lock_timeout
        self._timer = LockTimer(max_lock)
        self._whole_bytes = whole_bytes

    def run(self) -> bool:
        """Capture; False when the application commits too often for that.

        Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`.
        """
        for _ in range(_TRIES_IN_STEPS):
            header, before = read_header(self._path), os.stat(self._path)
            if header.is_wal:
                raise source.JournalModeChangedError
            self._prepare(header, before)
            try:
                with source.opened(self._path, lock_timeout=self._lock_timeout, timer=self._timer) as connection:
                    steps = _Steps(connection, self._path, self._output, self._timer)
                    facts, first_page = steps.copied(before, whole_bytes=self._whole_bytes)
            except _InterruptedError:
                continue
            finally:
                self._timer.stop()
                self._output.released()
            if _identity(os.stat(self._path)) == _identity(before):
                self._output.pinned(facts, steps.taken_at)
                self._output.finish(facts, first_page, steps.header)
                return True
        return False

    def _prepare(self, header: Header, status: os.stat_result) -> None:
        """What may have to wait for a disk, and so must not come under the lock."""
        if header.page_size and status.st_size >= header.page_size:
            page_count = status.st_size // header.page_size
            self._output.begin(header.page_size, min(page_count, header.page_count or page_count))
        if status.st_size <= self._whole_bytes:
            source.warm_file_cache(self._path)
        else:
            time.sleep(TICK_SECONDS)  # from now on every write gives the file another time stamp


class _Steps:
    """One try: every step meets the state that the first one met, or ends it with `_InterruptedError`."""

    def __init__(self, connection: apsw.Connection, path: str, output: Output, timer: LockTimer) -> None:
        self.taken_at = 0.0
        self._connection = connection
        self._path = path
        self._output = output
        self._timer = timer

    def copied(self, before: os.stat_result, *, whole_bytes: int) -> tuple[dict[str, Any], bytes]:
        """Facts and page 1 of the state whose other pages the output has got.

        `before` is what the file was like a tick of the kernel ago.
        """
        connection = self._connection
        self._lock()
        status = os.stat(self._path)
        source.read_damaged_schema(connection, seconds=self._timer.facts_seconds)
        self.header, facts = read_facts(connection, seconds=self._timer.facts_seconds)
        source.reject_journal_mode(facts, is_wal=False)
        self._evidence, self._version = _evidence(status), connection.data_version("main")
        page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
        self._output.begin(page_size, page_count)
        if page_count == 0:
            self.taken_at = time.time()
            return facts, b""
        is_small = page_size * page_count <= whole_bytes
        if not is_small and not (has_fine_stamp(status) and _evidence(status) == _evidence(before)):
            raise _InterruptedError  # time stamps would not tell of a write between two steps
        first_page = sink.stream_pages(
            connection,
            page_size=page_size,
            pages_per_step=page_count if is_small else BYTES_PER_STEP // page_size,
            pages_written=self._output.pages_written,
            stepped=lambda remaining: self._output.progress(page_count - remaining),
            held=self._held,
        )
        return facts, first_page

    def _lock(self) -> None:
        self._timer.start()
        source.pin(self._connection)
        self._output.locked(time.monotonic())

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._connection.in_transaction:
            self._reject_touched_file()
            self._lock()
        # SQLite itself begins again when this has changed: the counter in page 1 is another.
        if self._connection.data_version("main") != self._version:
            raise _InterruptedError
        yield
        # A crash without a journal, or another program, changes the file and leaves the counter as it is.
        self._reject_touched_file()
        self.taken_at = time.time()
        source.let_go(self._connection)
        self._timer.stop()
        self._output.released()

    def _reject_touched_file(self) -> None:
        if _evidence(os.stat(self._path)) != self._evidence:
            raise _InterruptedError


@dataclass(frozen=True, slots=True)
class _Pass:
    """One reading of the whole file: how long it took, how much had changed, and what can tell that nothing did since.

    `header` is that of page 1 before the pass, which `stillness` has watched since.
    """

    seconds: float
    changed_bytes: int
    header: bytes
    stillness: Stillness

    def still_holds(self, file: UnlockedFile) -> bool:
        """Whether nothing has touched the file since."""
        return self.stillness.still_holds() and file.read(HEADER_BYTES, 0) == self.header


@dataclass(slots=True)
class _Look:
    """What was seen of the file under one lock.

    `numbers` and `images` are pages that had changed since they were read without a lock: all of them if `is_complete`.
    `is_same_file` and `is_quiet` say whether the name led to the file that was read, and no program wrote past SQLite.
    """

    locked: Locked
    taken_at: float
    first_page: bytes
    numbers: list[int]
    images: list[bytes]
    is_complete: bool = False
    is_compared: bool = False
    is_same_file: bool = False
    is_quiet: bool = False


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
        self._stillness = Stillness(path)
        self._least_seconds = 0.0
        """What confirming takes at least, as a try under the lock has shown."""

    def run(self) -> bool:
        """Capture; False when the file became another one, so that everything has to begin again.

        Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`.
        """
        self._holder.start()
        tries = 0
        try:
            with UnlockedFile(self._path) as file:
                for _ in range(_MOST_PASSES):
                    last = self._read(file)
                    # If it is not ready, another pass finds less to do, or that nothing has touched the file meanwhile.
                    if self._is_ready(last, file):
                        tries += 1
                        look = self._look_under_lock(last, file)
                        if self._try_to_finish(look):
                            return True
                        is_hopeless = not self._trusts and self._least_seconds > self._max_lock
                        if tries == _TRIES_UNDER_LOCK or is_hopeless:
                            break
        except _InterruptedError:
            return False
        if tries and not look.is_quiet:
            raise written_without_lock(self._path)
        raise never_at_rest(self._path, self._expected_seconds(last), self._max_lock)

    def _read(self, file: UnlockedFile) -> _Pass:
        """Read the whole file without a lock, and hand on what has changed; then wait until it is compressed."""
        self._stillness.begin()
        header = file.read(HEADER_BYTES, 0)
        page_size = page_size_of(header)
        if page_size is None or (page_count := file.status().st_size // page_size) == 0:
            raise _InterruptedError
        self._output.begin(page_size, page_count)
        started, changed_pages = time.monotonic(), 0
        for run in file.changed_runs(page_size * page_count, read=self._output.alive):
            changed_pages += self._output.packer.pages_written(*_pages(run, page_size, page_count))
            self._output.progress((run.offset + len(run.content)) // page_size)
        seconds = time.monotonic() - started
        self._output.wait_for_packs()
        return _Pass(seconds, changed_pages * page_size, header, self._stillness)

    def _is_ready(self, last: _Pass, file: UnlockedFile) -> bool:
        """Whether the lock should be short enough now."""
        is_short = self._expected_seconds(last) <= self._max_lock and last.changed_bytes <= _MOST_CHANGED_BYTES
        return is_short or (self._trusts and last.still_holds(file))

    def _expected_seconds(self, last: _Pass) -> float:
        return max(self._least_seconds, last.seconds * _MARGIN * (1 if self._trusts else _API_TIMES))

    def _look_under_lock(self, last: _Pass, file: UnlockedFile) -> _Look:
        """See what has changed since it was read; all that is done while writers wait."""
        compares = not self._trusts or last.seconds * _API_TIMES <= self._compare_seconds
        table = self._output.packer.table
        try:
            with self._holder.locked() as locked:
                self._output.locked(locked.at)
                give_up_at = locked.at + self._max_lock
                if compares:
                    self._holder.compare(table, keeps_images=not self._trusts)
                evidence = _evidence(file.status())
                look = _Look(locked, time.time(), file.read(locked.page_size, 0), [], [])
                look.is_same_file = evidence == _evidence(os.stat(self._path))
                if self._trusts:
                    look.is_complete = last.still_holds(file) or self._copy_changes(look, file, give_up_at)
                # Before the comparison, which lets the lock go when it takes too long.
                look.is_quiet = self._is_as_it_was(file, evidence, locked)
                if compares:
                    compared_by = locked.at + self._compare_seconds if self._trusts else give_up_at
                    look.is_compared = self._holder.has_compared(give_up_at=min(compared_by, give_up_at))
                if look.is_compared:
                    look.is_quiet = look.is_quiet and self._is_as_it_was(file, evidence, locked)
        finally:
            self._output.released()
        if time.monotonic() > give_up_at:
            self._least_seconds = self._max_lock * _MARGIN
        return look

    @staticmethod
    def _is_as_it_was(file: UnlockedFile, evidence: tuple[int, ...], locked: Locked) -> bool:
        """Whether the locked file has the same evidence, and is as long as SQLite says that it is."""
        status = file.status()
        return _evidence(status) == evidence and status.st_size >= locked.page_size * locked.page_count

    def _copy_changes(self, look: _Look, file: UnlockedFile, give_up_at: float) -> bool:
        """Hash the locked file, and copy the pages that have changed; whether that was all, in time and in memory."""
        page_size, page_count = look.locked.page_size, look.locked.page_count
        try:
            for run in file.changed_runs(page_size * page_count, give_up_at=give_up_at):
                changed = self._output.packer.table.changed(*_pages(run, page_size, page_count))
                look.numbers += changed.numbers
                look.images += changed.images
                if len(look.images) * page_size > _MOST_COPIED_BYTES:
                    return False
        except TimeoutError:
            return False
        return True

    def _try_to_finish(self, look: _Look) -> bool:
        """Hand on what has changed; finish the image if it is confirmed by now."""
        if not look.is_same_file:
            raise _InterruptedError
        output, locked, first_page = self._output, look.locked, look.first_page
        output.begin(locked.page_size, locked.page_count)
        output.pages_written(look.numbers, look.images)
        if not look.is_quiet or not (look.is_complete if self._trusts else look.is_compared):
            return False
        if look.is_compared:
            is_same, first_page = self._compared_with_api(look)
            if not is_same:
                return False
        elif self._compare_seconds:
            output.compared(is_same=None)
        header = header_of(self._path, look.first_page)
        facts = {**locked.facts, "sqlite_version": header.sqlite_version}
        output.pinned(facts, look.taken_at)
        output.finish(facts, first_page, header)
        return True

    def _compared_with_api(self, look: _Look) -> tuple[bool, bytes]:
        """Whether the image has the digest of what the API gave, and page 1 of the one to be believed.

        Where the file is not trusted, the image gets the API's pages first. After a difference it is trusted no more.
        """
        api, table = self._holder.api_image(), self._output.packer.table
        if not self._trusts:
            with open(api.images, "rb") as images:
                self._output.pages_written(api.numbers, [images.read(look.locked.page_size) for _ in api.numbers])
        with open(api.hashes, "rb") as hashes:
            hashes.seek(HASH_BYTES)
            is_same = blake3(hashes.read()).digest() == table.digest_behind(b"")
        if not self._trusts:
            return is_same, api.first_page
        is_same = is_same and _blanked(look.first_page) == _blanked(api.first_page)
        self._output.compared(is_same=is_same)
        self._trusts = is_same
        return is_same, look.first_page


def _pages(run: Run, page_size: int, page_count: int) -> tuple[list[int], list[bytes]]:
    """Numbers and images of the pages in a run, but for page 1, which comes last, and the page with the lock byte."""
    first = run.offset // page_size + 1
    last = min(first + len(run.content) // page_size - 1, page_count)
    left_out = {1, lock_page(page_size)}
    numbers = [number for number in range(first, last + 1) if number not in left_out]
    content = memoryview(run.content)
    return numbers, [bytes(content[(each - first) * page_size : (each - first + 1) * page_size]) for each in numbers]


def _blanked(first_page: bytes) -> bytes:
    """Page 1 without the fields that the backup API sets anew."""
    page = bytearray(sink.complete_first_page(first_page, **_BLANK))
    page[_DATABASE_SIZE] = bytes(4)
    return bytes(page)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _evidence(status: os.stat_result) -> tuple[int, ...]:
    """What is different after a write by a program that ignores SQLite's locks."""
    return *_identity(status), status.st_size, status.st_mtime_ns
