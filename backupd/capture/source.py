"""The live database: open it read-only, pin one committed state, and say what SQLite refuses of it."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import apsw

from backupd.capture import side_files
from backupd.capture.facts import FACTS_SECONDS, TooMuchError, bounded
from backupd.capture.files import (
    FLOCK,
    LOCK_BYTES,
    open_regular,
    unreadable,
)
from backupd.capture.foreign import LOOKED_AT_BYTES, why_unread
from backupd.capture.image import distrust
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
_READ_BYTES = 1 << 20
_UNSUPPORTED = "unsupported file format"
_NO_SHARED_MEMORY = {
    apsw.SQLITE_IOERR_SHMOPEN,
    apsw.SQLITE_IOERR_SHMSIZE,
    apsw.SQLITE_IOERR_SHMLOCK,
    apsw.SQLITE_IOERR_SHMMAP,
}
_BLOCK_BYTES = 512
_SLOWEST_BYTES_PER_SECOND = 10e6
_LARGEST_HOLE_BYTES = 16 << 30
_DENSEST = 20
"""How many times as much as it takes of the disk a database may hold: on file systems that compress, 5 is a lot."""


def opening_seconds(path: str) -> float:
    """How long SQLite may take to open the database: it may have to read all of its log first, from a slow disk."""
    return _log_bytes(path) / _SLOWEST_BYTES_PER_SECOND


def _log_bytes(path: str) -> int:
    """How much of the disk the log beside the database has."""
    try:
        return os.stat(f"{path}-wal").st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


def reject_hollow(path: str, image_bytes: int) -> None:
    """Refuse an image that is nearly all hole: reading nothing would take hours. Raises `SourceUnusableError`.

    A file system that compresses, or does not say what a file has of the disk, is no reason to.
    """
    stored_bytes = os.stat(path).st_blocks * _BLOCK_BYTES
    if stored_bytes and image_bytes > _LARGEST_HOLE_BYTES + _DENSEST * (stored_bytes + _log_bytes(path)):
        raise SourceUnusableError(
            f"{path} says that it has {image_bytes >> 30} GiB, and has {stored_bytes >> 10} KiB of the disk: nearly "
            "all of it is a hole",
            hint="find out what made the file so large; VACUUM INTO writes a copy of what is really in it",
        )


def warm_file_cache(path: str) -> None:
    """Read the whole file, so that the time under SQLite's lock is not spent on the disk. Raises `SourceUnusableError`.

    Must not be called for a database that this process has open: closing the file drops SQLite's locks on it.
    """
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            buffer = bytearray(_READ_BYTES)
            while file.readinto(buffer):
                pass
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def opened(path: str, *, lock_timeout: float, timer: LockTimer | None = None) -> Iterator[apsw.Connection]:
    """A read-only connection that holds no lock yet; no symbolic link may be in `path`.

    Waits at most `lock_timeout` seconds for each lock, and each wait starts `timer` again. SQLite's errors inside the
    block become `BusyError` and `SourceUnusableError`.
    """
    prepare(path)
    try:
        # A URI can name every file; apsw takes no plain path that is not UTF-8.
        uri = f"file:{quote(os.fsencode(path))}"
        # Without symbolic links since its way was looked at: one that comes in meanwhile is not followed.
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
    """What the file begins with, as far as it can be read. This process must not have the database open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, LOOKED_AT_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return b""  # what SQLite said of it is reported


def prepare(path: str) -> None:
    """See to it that SQLite leaves no file beside the database that its owner could not write, and that it gets locks.

    Before each connection to a live database, and while this process has none to it. Raises `SourceUnusableError`.
    """
    try:
        side_files.guard(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, *LOCK_BYTES, 0))
    except OSError as error:
        # SQLite takes this for a lock of another process, and waits for it.
        raise SourceUnusableError(
            f"the file system of {path} gives no locks ({(error.strerror or str(error)).lower()}), and without them "
            "SQLite reads nothing",
            hint="for NFS, use version 4 or start its lock service; better put the database on a disk of the machine "
            "that writes it, and run backupd there",
        ) from error
    finally:
        os.close(descriptor)


def pin(connection: apsw.Connection) -> None:
    """Begin a transaction that holds one committed state. In rollback mode writers wait until `let_go`."""
    connection.execute("BEGIN")
    # Takes the read lock as any SELECT does, and reads nothing but the header.
    connection.pragma("schema_version")


def let_go(connection: apsw.Connection) -> None:
    """End that transaction."""
    connection.execute("ROLLBACK")  # a COMMIT fails when the schema could not be read


@contextmanager
def pinned(path: str, *, lock_timeout: float, timer: LockTimer | None = None) -> Iterator[apsw.Connection]:
    """A read-only connection whose transaction holds one committed state until the block ends.

    In WAL mode writers go on; in rollback mode they wait until then. Waits at most `lock_timeout` seconds for the
    first lock. `timer` runs from then on until it is released. Raises `BusyError`, `SourceUnusableError`; SQLite's
    errors inside the block become these too.
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
    """Have a damaged schema read as the plain table that it is: it is captured too.

    A sound one is read here, for about `seconds`: what comes later does with the part that SQLite has by then. Not
    before the first lock, or SQLite would accept a file that is shorter than its header says.
    """
    connection.pragma("writable_schema", True)
    with suppress(TooMuchError), bounded(connection, seconds=seconds):
        connection.pragma("journal_mode")  # the first that has to know the schema


class _Patience:
    """How long a connection waits for each of its locks."""

    def __init__(self, seconds: float, timer: LockTimer | None) -> None:
        self._seconds = seconds
        self._timer = timer
        self._give_up_at = 0.0

    def wait(self, tries: int) -> bool:
        """What SQLite calls while it cannot get a lock; `tries` is 0 at the first call for each."""
        if tries == 0:
            self._give_up_at = time.monotonic() + self._seconds
        if self._timer is not None:
            self._timer.start()
        # SQLite's own busy_timeout sleeps up to 100 ms between tries and so misses the gaps of a busy writer.
        time.sleep(_LOCK_RETRY_SECONDS)
        return time.monotonic() < self._give_up_at


def translated(path: str, error: apsw.Error, head: bytes = b"") -> BackupdError:
    """Our error for one of SQLite's about the source database, whose file begins with `head`, if that is known."""
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
        return why_unread(path, head, detail)
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
        hint = "its file system gives no shared memory, which WAL mode needs: put the database on a local disk"
    return kind(f"{path} cannot be read: {detail}", hint=hint)


def _known(path: str, extended: int) -> SourceUnusableError | None:
    """Our error for what SQLite tells in its extended codes alone."""
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
            hint="run the same command again, which says what lies there",
        )
    return None


def is_disk_full(path: str) -> bool:
    """Whether no block or no inode is left beside the database: SQLite tells that in many words."""
    try:
        status = os.statvfs(os.path.dirname(path))
    except OSError:
        return False
    # Some file systems say nothing: then all of these are 0.
    return bool(status.f_blocks and not status.f_bavail) or bool(status.f_files and not status.f_favail)


class JournalModeChangedError(Exception):
    """The database is in WAL mode now, or is so no more: the capture has to begin again, in the way for that."""


def reject_journal_mode(facts: dict[str, Any], *, is_wal: bool) -> None:
    """Refuse to go on with a database whose `facts` show another journal mode than its header did."""
    if (facts["journal_mode"] == "wal") != is_wal:
        raise JournalModeChangedError
