"""The source of a capture: opens a live database read-only, pins one committed state, and translates SQLite's errors.

A process may do that only after `prepare_process`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import apsw

from backupd.capture import side_files
from backupd.capture.database_files import LOCK_BYTES, conflicting_lock, unreadable
from backupd.capture.facts import TooMuchError, bounded, distrust
from backupd.capture.header import LOOKED_AT_BYTES, not_a_database
from backupd.capture.limits import FACTS_SECONDS, let_timers_end_this_process
from backupd.errors import (
    BackupdError,
    BusyError,
    LimitReachedError,
    NotADatabaseError,
    SourceUnusableError,
    limit_reached,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.capture.limits import LockTimer

_HOW_TO_CHECK = "check it with: sqlite3 FILE 'PRAGMA integrity_check'; the newest good snapshot can be restored"
_LOCK_RETRY_SECONDS = 0.001
_MMAP_LIMIT_BYTES = 1 << 46
_UNSUPPORTED = "unsupported file format"
_NO_SHARED_MEMORY = {
    apsw.SQLITE_IOERR_SHMOPEN,
    apsw.SQLITE_IOERR_SHMSIZE,
    apsw.SQLITE_IOERR_SHMLOCK,
    apsw.SQLITE_IOERR_SHMMAP,
}


def prepare_process() -> None:
    """Prepare this process, which only reads, for opening a live database: signals, and the files beside it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    let_timers_end_this_process()
    side_files.keep_sqlite_from_deleting()


@contextmanager
def opened(path: str, *, lock_timeout: float, timer: LockTimer | None = None) -> Iterator[apsw.Connection]:
    """Open a read-only connection that holds no lock yet; no symbolic link may be in `path`.

    Waits at most `lock_timeout` seconds for each lock, and each wait restarts `timer`. SQLite's errors inside the block
    become `BusyError` and `SourceUnusableError`.
    """
    prepare(path)
    try:
        # A URI can name every file; apsw takes no plain path that is not UTF-8.
        uri = f"file:{quote(os.fsencode(path))}"
        # The path was resolved before: a symbolic link that has come in since must not be followed.
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
        connection = apsw.Connection(uri, flags=flags)
        try:
            distrust(connection)
            connection.set_busy_handler(_Patience(lock_timeout, timer).wait)
            connection.pragma("mmap_size", _MMAP_LIMIT_BYTES)
            yield connection
        finally:
            connection.close()
    except apsw.Error as error:
        raise side_files.refusal(path, error) or translated(path, error, _first_bytes(path)) from error


def _first_bytes(path: str) -> bytes:
    """The first bytes of the file, as far as they can be read. This process must not have the database open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, LOOKED_AT_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return b""  # what SQLite said about it is reported


def prepare(path: str) -> None:
    """Guard the files beside the database, and check that its file system has locks. Raises `SourceUnusableError`.

    Must be called before each connection to a live database, and never while this process has one: closing the file
    drops SQLite's POSIX locks on it.
    """
    try:
        side_files.guard(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        conflicting_lock(descriptor, fcntl.F_RDLCK, *LOCK_BYTES)
    except OSError as error:
        # SQLite takes this for a lock of another process, and waits for it.
        raise SourceUnusableError(
            f"the file system of {path} has no locks ({(error.strerror or str(error)).lower()}), and without them "
            "SQLite reads nothing",
            hint="for NFS, use version 4 or start its lock service; better put the database on a disk of the machine "
            "that writes it, and run backupd there",
        ) from error
    finally:
        os.close(descriptor)


def pin(connection: apsw.Connection) -> None:
    """Begin a transaction that holds one committed state. In rollback mode writers wait until `unpin`."""
    connection.execute("BEGIN")
    # Takes the read lock as any SELECT does, and reads nothing but the header.
    connection.pragma("schema_version")


def unpin(connection: apsw.Connection) -> None:
    """End the transaction that `pin` began."""
    connection.execute("ROLLBACK")  # a COMMIT fails when the schema could not be read


@contextmanager
def pinned(path: str, *, lock_timeout: float, timer: LockTimer | None = None) -> Iterator[apsw.Connection]:
    """Open a read-only connection whose transaction holds one committed state until the block ends.

    In WAL mode writers continue; in rollback mode they wait until then. Waits at most `lock_timeout` seconds for the
    first lock. `timer` runs from then on until it is released. Raises `BusyError` and `SourceUnusableError`, also for
    SQLite's errors inside the block.
    """
    try:
        with opened(path, lock_timeout=lock_timeout, timer=timer) as connection:
            if timer is not None:
                timer.start()
            pin(connection)
            read_damaged_schema(connection, seconds=timer.facts_seconds if timer else FACTS_SECONDS)
            yield connection
    finally:
        if timer is not None:
            timer.stop()


def read_damaged_schema(connection: apsw.Connection, *, seconds: float = FACTS_SECONDS) -> None:
    """Let SQLite read a damaged schema as the plain table that it is: such a database is captured too.

    A sound schema is read here, for about `seconds`: later statements make do with the part that SQLite has by then.
    Must not be called before the first lock, or SQLite would accept a file that is shorter than its header says.
    """
    connection.pragma("writable_schema", True)
    with suppress(TooMuchError), bounded(connection, seconds=seconds):
        connection.pragma("journal_mode")  # the first that has to know the schema


class _Patience:
    """The time that a connection waits for each of its locks."""

    def __init__(self, seconds: float, timer: LockTimer | None) -> None:
        self._seconds = seconds
        self._timer = timer
        self._give_up_at = 0.0

    def wait(self, tries: int) -> bool:
        """Sleep a little, and say whether to try again. SQLite calls it for a lock; `tries` is 0 for the first time."""
        if tries == 0:
            self._give_up_at = time.monotonic() + self._seconds
        if self._timer is not None:
            self._timer.start()
        # SQLite's own busy_timeout sleeps up to 100 ms between tries and so misses the gaps of a busy writer.
        time.sleep(_LOCK_RETRY_SECONDS)
        return time.monotonic() < self._give_up_at


def translated(path: str, error: apsw.Error, head: bytes = b"") -> BackupdError:
    """Translate one of SQLite's errors about the source database, whose file begins with `head` if that is known."""
    extended = getattr(error, "extendedresult", 0)
    detail = str(error).partition(": ")[2] or str(error)
    if isinstance(error, apsw.BusyError | apsw.LockedError | apsw.ProtocolError):
        return BusyError(
            f"{path} stayed locked by the application",
            hint="try again, or raise capture.lock_timeout; a long transaction or an exclusive lock blocks readers",
        )
    if (known := _known(path, extended)) is not None:
        return known
    if isinstance(error, apsw.NotADBError) or detail == _UNSUPPORTED:
        return not_a_database(path, head, detail)
    if isinstance(error, apsw.CorruptError | apsw.SQLError):
        what = "corrupt" if isinstance(error, apsw.CorruptError) else "corrupt, or of a newer SQLite"
        return NotADatabaseError(
            f"{path} is {what}: {detail}",
            hint=_HOW_TO_CHECK,
        )
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError) and not is_disk_full(path):
        if extended == apsw.SQLITE_CANTOPEN_SYMLINK:
            detail = "a symbolic link has come into its path since that was looked at"
        return SourceUnusableError(
            f"{path} cannot be opened for reading: {detail}",
            hint="a WAL database needs a directory that backupd may write (no :ro mount, uid of the owner or root), "
            "or the application running",
        )
    limit = limit_reached(MemoryError()) if isinstance(error, apsw.NoMemError) else None
    kind: type[BackupdError] = LimitReachedError if limit else SourceUnusableError
    hint = limit.hint if limit else "check the disk and the system log"
    if is_disk_full(path):
        hint = "free some space, or inodes, on its disk"
    elif extended in _NO_SHARED_MEMORY:
        hint = "its file system has no shared memory, which WAL mode needs: put the database on a local disk"
    return kind(f"{path} cannot be read: {detail}", hint=hint)


def _known(path: str, extended: int) -> SourceUnusableError | None:
    """Return our error for a failure that only SQLite's extended codes identify; None for any other."""
    if extended == apsw.SQLITE_READONLY_ROLLBACK:
        return SourceUnusableError(
            f"{path} has a hot rollback journal: a program crashed inside a transaction",
            hint="open it once with the application, which rolls the transaction back; backupd never writes to it",
        )
    if extended == apsw.SQLITE_IOERR_SHORT_READ:
        return NotADatabaseError(f"{path} is corrupt: it ends within a page", hint=_HOW_TO_CHECK)
    if extended == apsw.SQLITE_IOERR_DELETE:
        return SourceUnusableError(
            f"{path} was emptied while it was opened; the log or journal beside it was kept",
            hint="run the same command again, which says what is there",
        )
    return None


def is_disk_full(path: str) -> bool:
    """Whether no block or no inode is left beside the database: SQLite reports that with many different codes."""
    try:
        status = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    # Some file systems say nothing: then all of these are 0.
    return bool(status.f_blocks and not status.f_bavail) or bool(status.f_files and not status.f_favail)


class JournalModeChangedError(Exception):
    """The database has switched to WAL mode or away from it, so the capture must begin again in the other way."""


def reject_journal_mode(facts: dict[str, Any], *, is_wal: bool) -> None:
    """Raise `JournalModeChangedError` when `facts` show another journal mode than the header did."""
    if (facts["journal_mode"] == "wal") != is_wal:
        raise JournalModeChangedError
