"""The capture of a busy database in rollback mode: read without a lock, then confirmed under a short one.

What was read without a lock may be torn, or may never have been committed, and none of it counts before it is
confirmed. For that, another process takes the lock (see `unlocked` for why not this one). Then either nothing has
touched the file since it was read (`unlocked.ChangeWatch`, and the same header in page 1), or the file is hashed again
and the parts that differ are copied. Either way every byte of the image is then known to be that of the locked file,
which is the committed state, as `rollback` explains. A file that was replaced has another inode.

The backup API remains the reference: from time to time it reads the locked file too, and must give the same digest.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blake3 import blake3

from backupd.capture.header import HEADER_BYTES, header_of, page_size_of
from backupd.capture.sink import with_counters
from backupd.capture.unlocked import ChangeWatch, UnlockedFile, evidence_of
from backupd.errors import BusyError, SourceUnusableError
from backupd.format import lock_page
from backupd.format.pack import HASH_BYTES

if TYPE_CHECKING:
    from backupd.capture.holder import Locked, LockHolder
    from backupd.capture.limits import CaptureRequest
    from backupd.capture.output import Output
    from backupd.capture.packer import Packer
    from backupd.capture.unlocked import Run

_MOST_PASSES = 12
_TRIES_UNDER_LOCK = 3
_MOST_CHANGED_BYTES = 64 << 20
"""The lock is not taken after a pass that found more changed pages than this: there may be as many again."""

_MOST_COPIED_BYTES = 128 << 20
_API_TIMES = 4
"""How many times as long as hashing the file the backup API takes: 0.6 s and 0.15 s for 1 GB on two cores."""

_MARGIN = 1.3
_DATABASE_SIZE = slice(28, 32)


class _ReplacedError(Exception):
    """The path leads to another file by now, or to none with pages: the capture begins again."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One reading of the whole file without a lock.

    `header` is that of page 1 before the reading; `watch` has watched the file since.
    """

    seconds: float
    changed_bytes: int
    header: bytes
    watch: ChangeWatch
    packer: Packer

    def is_unchanged(self, file: UnlockedFile) -> bool:
        """Whether nothing has touched the file since."""
        return self.watch.is_unchanged() and file.read(HEADER_BYTES, 0) == self.header


@dataclass(frozen=True, slots=True)
class _Changes:
    """Pages of the locked file that had changed since they were read without a lock; all of them if `is_complete`."""

    is_complete: bool
    numbers: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Examination:
    """The observations of the file under one lock.

    `is_compared` says whether the backup API has read it too, `is_same_file` whether the path led to the file that was
    read, and `is_quiet` whether no program wrote to it past SQLite's lock.
    """

    locked: Locked
    taken_at: float
    first_page: bytes
    changes: _Changes
    is_same_file: bool
    is_quiet: bool
    is_compared: bool


class ConfirmedCapture:
    """A capture that reads the file without a lock, and confirms what it read under one.

    It compares with the backup API where that should keep the lock for no more than `request.compare_seconds`. It
    confirms by reading the file again if `request.trusts_file`, otherwise by the backup API.
    """

    def __init__(self, request: CaptureRequest, output: Output, holder: LockHolder) -> None:
        self._path = request.path
        self._max_lock = request.max_lock
        self._compare_seconds = request.compare_seconds
        self._trusts = request.trusts_file
        self._output = output
        self._holder = holder
        self._watch = ChangeWatch(request.path)
        self._least_seconds = 0.0
        """How long confirming takes at least, as a try under the lock has shown."""

    def run(self) -> bool:
        """Capture; False when the file became another one, so that everything must begin again.

        Raises `BusyError`, `SourceUnusableError`, `JournalModeChangedError`.
        """
        self._holder.start()
        tries, is_quiet = 0, True
        try:
            with UnlockedFile(self._path) as file:
                for _ in range(_MOST_PASSES):
                    last = self._read(file)
                    # If it is not ready, another pass finds less to do, or that nothing has touched the file meanwhile.
                    if self._is_ready(last, file):
                        tries += 1
                        seen = self._examine_under_lock(last, file)
                        if self._try_to_finish(seen):
                            return True
                        is_quiet = seen.is_quiet
                        is_hopeless = not self._trusts and self._least_seconds > self._max_lock
                        if tries == _TRIES_UNDER_LOCK or is_hopeless:
                            break
        except _ReplacedError:
            return False
        if not is_quiet:
            raise _written_without_lock(self._path)
        raise _never_at_rest(self._path, self._expected_seconds(last), self._max_lock)

    def _read(self, file: UnlockedFile) -> _Pass:
        """Read the whole file without a lock, hand on what has changed, and wait until it is compressed."""
        self._watch.begin()
        header = file.read(HEADER_BYTES, 0)
        page_size = page_size_of(header)
        if page_size is None or (page_count := file.status().st_size // page_size) == 0:
            raise _ReplacedError
        packer = self._output.begin(page_size, page_count)
        started, changed_pages = time.monotonic(), 0
        for run in file.changed_runs(page_size * page_count, read=self._output.alive):
            changed_pages += packer.add(*_pages(run, page_size, page_count))
            self._output.progress((run.offset + len(run.content)) // page_size)
        seconds = time.monotonic() - started
        packer.wait()
        return _Pass(seconds, changed_pages * page_size, header, self._watch, packer)

    def _is_ready(self, last: _Pass, file: UnlockedFile) -> bool:
        """Whether the lock should be short enough now."""
        is_short = self._expected_seconds(last) <= self._max_lock and last.changed_bytes <= _MOST_CHANGED_BYTES
        return is_short or (self._trusts and last.is_unchanged(file))

    def _expected_seconds(self, last: _Pass) -> float:
        return max(self._least_seconds, last.seconds * _MARGIN * (1 if self._trusts else _API_TIMES))

    def _examine_under_lock(self, last: _Pass, file: UnlockedFile) -> _Examination:
        """Examine under the lock what has changed since the file was read; writers wait until this returns."""
        compares = not self._trusts or last.seconds * _API_TIMES <= self._compare_seconds
        is_compared = False
        changes = _Changes(is_complete=False)
        try:
            with self._holder.locked() as locked:
                self._output.locked(locked.at)
                give_up_at = locked.at + self._max_lock
                if compares:
                    self._holder.compare(last.packer.table, keeps_images=not self._trusts)
                evidence = evidence_of(file.status())
                taken_at = time.time()
                first_page = file.read(locked.page_size, 0)
                is_same_file = evidence == evidence_of(os.stat(self._path))
                if self._trusts:
                    changes = self._changes_since(last, file, locked, give_up_at)
                # Before the comparison, which releases the lock when it takes too long.
                is_quiet = _is_as_it_was(file, evidence, locked)
                if compares:
                    compared_by = locked.at + self._compare_seconds if self._trusts else give_up_at
                    is_compared = self._holder.has_compared(give_up_at=min(compared_by, give_up_at))
                if is_compared:
                    is_quiet = is_quiet and _is_as_it_was(file, evidence, locked)
        finally:
            self._output.released()
        if time.monotonic() > give_up_at:
            self._least_seconds = self._max_lock * _MARGIN
        return _Examination(locked, taken_at, first_page, changes, is_same_file, is_quiet, is_compared)

    @staticmethod
    def _changes_since(last: _Pass, file: UnlockedFile, locked: Locked, give_up_at: float) -> _Changes:
        """Hash the locked file again unless nothing has touched it, and copy what has changed, up to a limit."""
        if last.is_unchanged(file):
            return _Changes(is_complete=True)
        page_size, page_count = locked.page_size, locked.page_count
        numbers: list[int] = []
        images: list[bytes] = []
        try:
            for run in file.changed_runs(page_size * page_count, give_up_at=give_up_at):
                changed = last.packer.table.changed(*_pages(run, page_size, page_count))
                numbers += changed.numbers
                images += changed.images
                if len(images) * page_size > _MOST_COPIED_BYTES:
                    return _Changes(False, numbers, images)
        except TimeoutError:
            return _Changes(False, numbers, images)
        return _Changes(True, numbers, images)

    def _try_to_finish(self, seen: _Examination) -> bool:
        """Hand on what has changed, and finish the image if it is confirmed by now; whether it was."""
        if not seen.is_same_file:
            raise _ReplacedError
        output, locked, first_page = self._output, seen.locked, seen.first_page
        packer = output.begin(locked.page_size, locked.page_count)
        packer.add(seen.changes.numbers, seen.changes.images)
        if not seen.is_quiet or not (seen.changes.is_complete if self._trusts else seen.is_compared):
            return False
        if seen.is_compared:
            is_same, first_page = self._compared_with_api(seen, packer)
            if not is_same:
                return False
        elif self._compare_seconds:
            output.compared(is_same=None)
        header = header_of(self._path, seen.first_page)
        facts = {**locked.facts, "sqlite_version": header.sqlite_version}
        output.pinned(facts, seen.taken_at)
        output.finish(facts["schema_version"], first_page, header)
        return True

    def _compared_with_api(self, seen: _Examination, packer: Packer) -> tuple[bool, bytes]:
        """Whether the image has the digest of what the API gave, and the page 1 to store.

        Where the file is not trusted, the image gets the API's pages first. After a difference it is trusted no more.
        """
        api = self._holder.api_image()
        if not self._trusts:
            with open(api.images, "rb") as images:
                packer.add(api.numbers, [images.read(seen.locked.page_size) for _ in api.numbers])
        with open(api.hashes, "rb") as hashes:
            hashes.seek(HASH_BYTES)
            is_same = blake3(hashes.read()).digest() == packer.table.digest_with(b"")
        if not self._trusts:
            return is_same, api.first_page
        is_same = is_same and _without_counters(seen.first_page) == _without_counters(api.first_page)
        self._output.compared(is_same=is_same)
        self._trusts = is_same
        return is_same, seen.first_page


def _is_as_it_was(file: UnlockedFile, evidence: tuple[int, ...], locked: Locked) -> bool:
    """Whether the locked file has the same evidence, and is as long as SQLite says that it is."""
    status = file.status()
    return evidence_of(status) == evidence and status.st_size >= locked.page_size * locked.page_count


def _pages(run: Run, page_size: int, page_count: int) -> tuple[list[int], list[bytes]]:
    """Numbers and images of the pages in a run, except page 1, which comes last, and the lock-byte page."""
    first = run.offset // page_size + 1
    last = min(first + len(run.content) // page_size - 1, page_count)
    left_out = {1, lock_page(page_size)}
    numbers = [number for number in range(first, last + 1) if number not in left_out]
    content = memoryview(run.content)
    return numbers, [bytes(content[(each - first) * page_size : (each - first + 1) * page_size]) for each in numbers]


def _without_counters(first_page: bytes) -> bytes:
    """Page 1 without the fields that the backup API sets."""
    page = bytearray(with_counters(first_page, schema_version=0, writer_version=0, counter=0))
    page[_DATABASE_SIZE] = bytes(4)
    return bytes(page)


def _never_at_rest(path: str, expected_seconds: float, max_lock_seconds: float) -> BusyError:
    """The error for a database that is written to so much that no state of it could be confirmed in time."""
    if expected_seconds > max_lock_seconds:
        return BusyError(
            f"{path} is not in WAL mode and is written to all the time: to confirm what was read of it would hold its "
            f"writers up for about {expected_seconds:.1f} s, and capture.max_lock allows {max_lock_seconds:g} s",
            hint="let the application use WAL mode (PRAGMA journal_mode = WAL), where writers never wait, "
            f"or raise capture.max_lock to {math.ceil(expected_seconds * 1.5)}s if it can wait that long",
        )
    return BusyError(
        f"{path} is not in WAL mode, and so much of it was written meanwhile that no state of it could be confirmed",
        hint="take the snapshot when less is written, or let the application use WAL mode: PRAGMA journal_mode = WAL",
    )


def _written_without_lock(path: str) -> SourceUnusableError:
    """The error for a file that changed while SQLite's lock on it was held."""
    return SourceUnusableError(
        f"{path} was written to while SQLite's lock on it was held: another program writes past SQLite",
        hint="find that program (cp, rsync, another backup tool?) and stop it; then take the snapshot again",
    )
