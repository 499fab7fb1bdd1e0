"""The database file without SQLite and without a lock: whether anything has touched it, and which parts have changed.

A process that has the database open in SQLite must not use `UnlockedFile`: closing the file would drop SQLite's locks.
Source: https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_

`fingerprint` and `ChangeWatch` go by what `stat` says. Why equal evidence means equal content: let m be the newest time
stamp in the evidence, let the clock that stamps the file have advanced by more than 3 s since m at a time t, and let
the same evidence be found after t. A `write` or `truncate` after t stamps the file with that clock, cut to what the
file system stores: 2 s on FAT, 1 s on many servers, the tick of the kernel elsewhere. The stamp would be later than m,
and the evidence would differ. `ChangeWatch` knows that the clock has advanced so far because the evidence has been the
same for more than 3 s, whatever that clock shows; `fingerprint` knows it because it is this machine's clock. SQLite's
change counter alone would not do: a transaction that outgrows the page cache writes into the file, and when it is
rolled back the counter is what it was, but a reader in between has seen pages that never were committed. Further:

- `touch -d` sets mtime back. It cannot set ctime, which is evidence too.
- A clock that is set back lets a later write have an earlier stamp. `ChangeWatch` compares the system's clock with one
  that cannot be set, and counts only while both have advanced alike.
- Another file under the same name has another inode. A hot journal that was rolled back was written into the file.
- A database may be written through a shared mapping (SQLite compiled with SQLITE_MMAP_READWRITE, which no distribution
  does): that stamps the file only when a clean page becomes dirty. The commit still changes the counter in page 1,
  which the caller of `ChangeWatch` compares. What is rolled back had its journal created, written or deleted: that
  stamps the journal, which is evidence in the modes PERSIST and TRUNCATE, or, in the mode DELETE, the directory, which
  `ChangeWatch` adds. In the mode MEMORY only a comparison with the backup API shows it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Self

from blake3 import blake3

from backupd.capture.database_files import open_regular, unreadable
from backupd.concurrency import WorkerThreads
from backupd.format.pack import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType

TICK_SECONDS = 0.03
"""Longer than the tick of the kernel's clock, by which fine time stamps are counted."""

STEP_BYTES = 64 << 10
"""The unit in which changes are found: whole pages of every size, and little is copied for one that has changed."""

_COARSEST_STAMP_NS = 3 * 10**9
_LONGEST_TICK_NS = 10**7
_CLOCKS_MAY_DIFFER_BY_SECONDS = 0.5
# The file comes last: if it is as it was, so was what the log added to it a moment before. In the other order, an
# application that moves its log into the file and removes it in between would look like one that never had a log.
_PARTS = ("-wal", "-journal", "")
_STEPS_AT_ONCE = 8
# Measured on two cores with a warm cache, 1 GB: one thread 0.27 s, two 0.15 s, four the same; beside four busy loops
# 0.65 s, 0.42 s and 0.30 s. Larger steps gain a tenth. Mapping the file gains nothing, and a file that is cut would
# kill the process. Reading 1 MiB at once, eight ahead, gains nothing either, and takes 16 MB of memory more.
_THREADS = 4
_READ_AHEAD = 6


def fingerprint(path: Path | str, *, now: datetime, directories: dict[str, str] | None = None) -> str | None:
    """A text that differs for every state of the database at `path`, without reading it; None where none would be sure.

    `now` (aware) is a moment just before the call. The fingerprint has device and inode of the file, and size and times
    of change of the file, its log and its journal. A write sets those; of the file, also after `touch -d`, because the
    ctime cannot be set. None while the newest of them is not older than the coarsest time stamp, or lies in the future.
    An empty log counts as none: opening the database to read creates one. Calls for many databases at one moment share
    in `directories` where those of the databases lead.
    """
    stamped = _stamped(path, {} if directories is None else directories)
    if stamped is None:
        return None
    text, newest_ns = stamped
    return text if newest_ns + _COARSEST_STAMP_NS < now.timestamp() * 10**9 else None


def is_without_log(evidence: str) -> bool:
    """Whether a fingerprint is that of a database without a log, or with an empty one.

    SQLite writes a commit into the log, flushes that, and only then makes it valid, which leaves no stamp: while a
    flush hangs, a capture may give the state before a commit whose stamp is already old.
    """
    return evidence.startswith("- ")


def _stamped(path: Path | str, directories: dict[str, str]) -> tuple[str, int] | None:
    """The evidence as a text, and the newest time stamp in it; None where a file cannot be examined."""
    found = []
    newest_ns = 0
    file = _real(path, directories)  # SQLite keeps the log beside the file, not beside a symbolic link to it
    try:
        for part in _PARTS:
            stat = _stat(f"{file}{part}", is_optional=bool(part))
            if stat is None or (part and not stat.st_size):
                found.append("-")
                continue
            # SQLite as root sets the owner of a log each time it opens one, which changes the ctime without a write.
            times_ns = (stat.st_mtime_ns,) if part else (stat.st_mtime_ns, stat.st_ctime_ns)
            newest_ns = max(newest_ns, *times_ns)
            found.append(":".join(map(str, (stat.st_dev, stat.st_ino, stat.st_size, *times_ns))))
    except OSError:
        return None
    return " ".join(found), newest_ns


def _real(path: Path | str, directories: dict[str, str]) -> str:
    """Return `path` without symbolic links. Each directory is followed once: that takes as long as all the rest."""
    directory, name = os.path.split(path)
    if name in {"", ".", ".."} or os.path.islink(path):
        return os.path.realpath(path)
    if directory not in directories:
        directories[directory] = os.path.realpath(directory)
    return os.path.join(directories[directory], name)


def has_fine_stamp(status: os.stat_result) -> bool:
    """Whether the file system keeps time stamps as fine as the kernel's tick: this one was not cut to a second."""
    return status.st_mtime_ns % _LONGEST_TICK_NS != 0


class ChangeWatch:
    """Finds out whether anything, even a transaction that was rolled back, has touched one file during a reading."""

    def __init__(self, path: str) -> None:
        """`path` has no symbolic link in it."""
        self._path = path
        self._found: tuple[str, int, int] | None = None
        self._since = self._clock_ahead_seconds = 0.0
        self._is_proof = False

    def begin(self) -> None:
        """Mark the beginning of a reading."""
        found, now = self._evidence(), time.monotonic()
        if found != self._found or not self._has_clock_run_alike():
            self._found, self._since, self._clock_ahead_seconds = found, now, _clock_ahead_seconds()
        self._is_proof = found is not None and now - self._since > _COARSEST_STAMP_NS / 10**9

    def is_unchanged(self) -> bool:
        """Whether nothing has touched the file since `begin`; the caller must also compare the header of page 1.

        False unless the evidence had been the same for three seconds when the reading began.
        """
        return self._is_proof and self._evidence() == self._found and self._has_clock_run_alike()

    def _has_clock_run_alike(self) -> bool:
        return abs(_clock_ahead_seconds() - self._clock_ahead_seconds) < _CLOCKS_MAY_DIFFER_BY_SECONDS

    def _evidence(self) -> tuple[str, int, int] | None:
        stamped = _stamped(self._path, {})
        try:
            directory = os.stat(os.path.dirname(self._path))
        except OSError:
            return None
        return None if stamped is None else (stamped[0], directory.st_mtime_ns, directory.st_ctime_ns)


def _clock_ahead_seconds() -> float:
    return time.time() - time.monotonic()


def _stat(path: str, *, is_optional: bool) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        if is_optional:
            return None
        raise


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """Device and inode: another file under the same name has others."""
    return status.st_dev, status.st_ino


def evidence_of(status: os.stat_result) -> tuple[int, ...]:
    """Return evidence of writes by programs that ignore SQLite's locks: identity, size and mtime."""
    return *identity_of(status), status.st_size, status.st_mtime_ns


class Run(NamedTuple):
    """The content of one or more consecutive steps, from byte `offset` of the file."""

    offset: int
    content: bytes


class _ThreadBuffers(threading.local):
    """The buffer and the hasher of each thread: allocating them for each reading would take longer than the reading."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_STEPS_AT_ONCE * STEP_BYTES))
        self.hasher = blake3()


class UnlockedFile:
    """The file at a path, as a context manager, with a hash of each step as it was when `changed_runs` gave it last.

    Every method raises `SourceUnusableError` for what cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._hashes = bytearray()
        self._buffers = _ThreadBuffers()

    def __enter__(self) -> Self:
        with self._translating_errors():
            self._descriptor = open_regular(self._path)
        self._threads = WorkerThreads(_THREADS, thread_name_prefix="read")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def status(self) -> os.stat_result:
        """The status of the open file, whatever its path leads to by now."""
        return os.fstat(self._descriptor)

    def read(self, size_bytes: int, offset: int) -> bytes:
        """Read bytes of the file; fewer at its end."""
        content = bytearray(size_bytes)
        with memoryview(content) as view:
            filled = self._fill(view, offset)
        return bytes(content[:filled])

    def changed_runs(
        self, size_bytes: int, *, give_up_at: float = float("inf"), read: Callable[[], None] = lambda: None
    ) -> Iterator[Run]:
        """Read the first `size_bytes` of the file, and yield the steps that have changed since last time, in order.

        The caller must use each run that it gets: it counts as known from then on. Raises `TimeoutError` when the
        monotonic clock reaches `give_up_at`; nothing is lost then. `read` is called after each reading.
        """
        steps = -(-size_bytes // STEP_BYTES)
        self._hashes[steps * HASH_BYTES :] = b""
        firsts = iter(range(0, steps, _STEPS_AT_ONCE))
        reading: deque[Future[list[tuple[bytes, Run]]]] = deque()
        try:
            while True:
                while len(reading) < _READ_AHEAD and (first := next(firsts, None)) is not None:
                    reading.append(self._threads.submit(self._changed, first, size_bytes))
                if not reading:
                    return
                for digests, run in reading.popleft().result():
                    self._remember(run.offset // STEP_BYTES, digests)
                    yield run
                read()
                if time.monotonic() > give_up_at:
                    raise TimeoutError
        finally:
            for each in reading:
                each.cancel()

    def _changed(self, first: int, size_bytes: int) -> list[tuple[bytes, Run]]:
        """Read once from step number `first` on; return the changed runs with the joined hashes of their steps."""
        start = first * STEP_BYTES
        view, hasher = self._buffers.view, self._buffers.hasher
        filled = self._fill(view[: size_bytes - start], start)
        digests = []
        for at in range(0, filled, STEP_BYTES):
            hasher.reset()
            hasher.update(view[at : min(at + STEP_BYTES, filled)])
            digests.append(hasher.digest(HASH_BYTES))
        known = self._hashes[first * HASH_BYTES : (first + len(digests)) * HASH_BYTES]
        is_new = [known[at * HASH_BYTES : (at + 1) * HASH_BYTES] != digest for at, digest in enumerate(digests)]
        changed = []
        for is_changed, group in groupby(range(len(digests)), is_new.__getitem__):
            if is_changed:
                numbers = list(group)
                begin, end = numbers[0] * STEP_BYTES, min((numbers[-1] + 1) * STEP_BYTES, filled)
                changed.append((b"".join(digests[at] for at in numbers), Run(start + begin, bytes(view[begin:end]))))
        return changed

    def _fill(self, view: memoryview, offset: int) -> int:
        """Read until `view` is full or the file ends. One call may read less, for example up to an unreadable page."""
        filled = 0
        with self._translating_errors():
            while filled < len(view) and (got := os.preadv(self._descriptor, [view[filled:]], offset + filled)):
                filled += got
        return filled

    def _remember(self, number: int, digests: bytes) -> None:
        start = number * HASH_BYTES
        if start > len(self._hashes):
            self._hashes.extend(bytes(start - len(self._hashes)))
        self._hashes[start : start + len(digests)] = digests

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unreadable(self._path, error) from error
