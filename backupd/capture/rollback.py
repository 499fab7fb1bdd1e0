"""The capture of a database in rollback-journal mode, whose writers must wait only for moments.

In this mode a reader's SHARED lock keeps writers from the file, so nothing slow may be done under it. What makes short
locks possible: while SQLite grants us a SHARED lock, the main file itself is the committed state. SQLite writes into it
only under an EXCLUSIVE lock, and grants a SHARED lock only after it has looked for a hot journal. A hot journal would
have to be rolled back, which a read-only connection may not do, so the capture fails then. This holds for every kind of
journal (DELETE, PERSIST, TRUNCATE, MEMORY, OFF, with a super-journal or not), because SQLite itself decides which
journal is hot.
Source: https://www.sqlite.org/lockingv3.html, https://www.sqlite.org/atomiccommit.html

1. `StepwiseCapture`, here: SQLite's backup API copies the file in steps, and the lock is released between them. After a
   commit the copied pages belong to a state that has passed, and the copy begins again.
2. `confirmed.ConfirmedCapture`, after two such interruptions: the file is read and compressed without a lock, and then
   confirmed under a short one, which another process (`holder`) holds.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backupd.capture import source
from backupd.capture.confirmed import ConfirmedCapture
from backupd.capture.database_files import read_header, warm_file_cache
from backupd.capture.facts import read_facts
from backupd.capture.holder import LockHolder
from backupd.capture.limits import BYTES_PER_STEP, LockTimer
from backupd.capture.sink import stream_pages
from backupd.capture.unlocked import TICK_SECONDS, evidence_of, has_fine_stamp, identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

    from backupd.capture.header import Header
    from backupd.capture.limits import CaptureRequest
    from backupd.capture.output import Output

_TRIES_IN_STEPS = 2


def capture_between_writes(request: CaptureRequest, output: Output) -> bool:
    """Capture a database in rollback mode; False when the file became another one, so that the capture must restart.

    Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`.
    """
    if StepwiseCapture(request, output).run():
        return True
    with LockHolder(request) as holder:
        return ConfirmedCapture(request, output, holder).run()


class _InterruptedError(Exception):
    """The application has committed, or something has touched the file: the copy begins again."""


class StepwiseCapture:
    """A capture by the backup API in steps, between which the lock is released; a small database takes one step."""

    def __init__(self, request: CaptureRequest, output: Output) -> None:
        self._path = request.path
        self._lock_timeout = request.lock_timeout
        self._whole_bytes = request.whole_bytes
        self._timer = LockTimer(request.max_lock)
        self._output = output

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
                    copy = _Steps(connection, self._path, self._output, self._timer).copy(before, self._whole_bytes)
            except _InterruptedError:
                continue
            finally:
                self._timer.stop()
                self._output.released()
            if identity_of(os.stat(self._path)) == identity_of(before):
                self._output.pinned(copy.facts, copy.taken_at)
                self._output.finish(copy.facts["schema_version"], copy.first_page, copy.header)
                return True
        return False

    def _prepare(self, header: Header, status: os.stat_result) -> None:
        """Do what may wait for a disk, and so must not be done under the lock."""
        if header.page_size and status.st_size >= header.page_size:
            page_count = status.st_size // header.page_size
            self._output.begin(header.page_size, min(page_count, header.page_count or page_count))
        if status.st_size <= self._whole_bytes:
            warm_file_cache(self._path)
        else:
            time.sleep(TICK_SECONDS)  # from now on every write gives the file another time stamp


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copied state: the output has its pages, except page 1. `taken_at` is in seconds since the epoch."""

    taken_at: float
    header: Header
    facts: dict[str, Any]
    first_page: bytes


@dataclass(frozen=True, slots=True)
class _State:
    """The state of the first step: what `stat` said of the file, and SQLite's counter of commits by others."""

    evidence: tuple[int, ...]
    version: int


class _Steps:
    """One try: every step sees the state that the first one saw, or ends the try with `_InterruptedError`."""

    def __init__(self, connection: apsw.Connection, path: str, output: Output, timer: LockTimer) -> None:
        self._connection = connection
        self._path = path
        self._output = output
        self._timer = timer
        self._taken_at = 0.0

    def copy(self, before: os.stat_result, whole_bytes: int) -> _Copy:
        """Copy the database; `before` is the status of the file at least one tick of the kernel's clock ago."""
        connection = self._connection
        self._lock()
        status = os.stat(self._path)
        source.read_damaged_schema(connection, seconds=self._timer.facts_seconds)
        header, facts = read_facts(connection, seconds=self._timer.facts_seconds)
        source.reject_journal_mode(facts, is_wal=False)
        state = _State(evidence_of(status), connection.data_version("main"))
        page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
        if page_count == 0:
            self._output.begin_empty(page_size)
            return _Copy(time.time(), header, facts, b"")
        packer = self._output.begin(page_size, page_count)
        is_small = page_size * page_count <= whole_bytes
        if not is_small and not (has_fine_stamp(status) and state.evidence == evidence_of(before)):
            raise _InterruptedError  # time stamps would not show a write between two steps
        first_page = stream_pages(
            connection,
            page_size=page_size,
            pages_per_step=page_count if is_small else BYTES_PER_STEP // page_size,
            pages_written=packer.add,
            stepped=lambda remaining: self._output.progress(page_count - remaining),
            held=lambda: self._held(state),
        )
        return _Copy(self._taken_at, header, facts, first_page)

    def _lock(self) -> None:
        self._timer.start()
        source.pin(self._connection)
        self._output.locked(time.monotonic())

    @contextmanager
    def _held(self, state: _State) -> Iterator[None]:
        """Hold the lock for one step."""
        if not self._connection.in_transaction:
            self._reject_touched_file(state)
            self._lock()
        # SQLite itself begins again when this has changed: the counter in page 1 is another.
        if self._connection.data_version("main") != state.version:
            raise _InterruptedError
        yield
        # A crash without a journal, or another program, changes the file and leaves the counter as it is.
        self._reject_touched_file(state)
        self._taken_at = time.time()
        source.unpin(self._connection)
        self._timer.stop()
        self._output.released()

    def _reject_touched_file(self, state: _State) -> None:
        if evidence_of(os.stat(self._path)) != state.evidence:
            raise _InterruptedError
