"""The files of a database, examined before SQLite opens them, because opening them can destroy data.

Beside an empty main file, SQLite takes a log or a journal for what an older database left, and deletes it, even through
a read-only connection. A FIFO with one of these names makes it wait without end. So all code that opens a database
with SQLite calls `read_header` first. What SQLite reads without harm is not refused here.
Source: https://www.sqlite.org/src/file/src/pager.c, `pagerOpenWalIfPresent` and `hasHotJournal`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from backupd.capture.header import LOOKED_AT_BYTES, Header, header_of, is_readable, says_wal
from backupd.errors import BusyError, NotADatabaseError, SourceUnusableError, missing_database

if TYPE_CHECKING:
    from backupd.errors import BackupdError

LOG_HEADER_BYTES = 32
LOCK_BYTES = (1 << 30, 512)
"""Start and length of the range that SQLite locks in a database.

Source: https://www.sqlite.org/src/file/src/os_unix.c.
"""

_FLOCK = "@hhqqi4x"
"""`struct flock` of Linux on 64-bit machines: type, whence, start, length, process."""
_LOG_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_MOST_BYTES_OF_EMPTY_FILE = 1  # SQLite itself writes one byte into an empty file on some systems, see `unixFileSize`
_RESERVED_LOCK = ((1 << 30) + 1, 1)
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 512
_SLOWEST_BYTES_PER_SECOND = 10e6
_LARGEST_HOLE_BYTES = 16 << 30
_DENSEST = 20
"""How many times its space on disk a database may hold: on file systems that compress, 5 is a lot."""


@dataclass(frozen=True, slots=True)
class DatabaseFiles:
    """The first bytes of the main file, at most `LOOKED_AT_BYTES`, and of the log beside it.

    `head` is empty where SQLite takes the main file for empty.
    """

    head: bytes
    log: bytes

    @property
    def has_log(self) -> bool:
        """Whether SQLite opens the database in WAL mode whatever its header says: it does for any log with content."""
        return bool(self.log)

    @property
    def is_log_valid(self) -> bool:
        """Whether SQLite may find pages in the log."""
        return self.log[:4] in _LOG_MAGIC


def examine_files(path: str) -> DatabaseFiles:
    """Read how the files at `path` and beside it begin. Never waits, and changes nothing.

    Raises `NotADatabaseError` for an empty main file beside a log or journal with content, or `BusyError` while it may
    be the application's first transaction, and `SourceUnusableError` when it is missing, unreadable or not regular.
    Must not be called while this process has a connection to it: closing the file drops SQLite's POSIX locks on it.
    Source: https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """
    file = os.path.realpath(path)  # SQLite keeps the others beside the file, not beside a symbolic link to it
    try:
        descriptor = open_regular(path)
        try:
            left = _with_content(file)
            head = os.pread(descriptor, LOOKED_AT_BYTES, 0)
            if len(head) > _MOST_BYTES_OF_EMPTY_FILE:
                log = _beginning(f"{file}-wal") if f"{file}-wal" in left else b""
                if log or says_wal(head):
                    _size_beside(f"{file}-shm")
                return DatabaseFiles(head, log)
            if left:
                is_settled = not _is_reserved(descriptor) and _with_content(file) == left
                raise _empty(path, left, is_being_created=not (is_settled and _is_empty(descriptor)))
            return DatabaseFiles(b"", b"")
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        if left := _with_content(file):
            raise SourceUnusableError(f"{path} does not exist, {_only_copy(left)}", hint=_how_to_save(left)) from error
        raise unreadable(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_header(path: str) -> Header:
    """Examine the files before SQLite opens them, and return how it would: the pinned state may have another header.

    Raises what `examine_files` raises, and `NotADatabaseError` for what SQLite would refuse. Like that function, it
    must not be called while this process has a connection to the database.
    """
    found = examine_files(path)
    if found.is_log_valid and not is_readable(found.head):
        return Header(is_wal=True, page_size=0, writer_version=0)  # SQLite takes page 1 from the log, if it is there
    header = header_of(path, found.head)
    return replace(header, is_wal=True) if found.has_log else header


def read_header_to_write(path: str) -> Header:
    """Read the header before a restore into the file. Raises as `read_header`, and when page 1 is only in the log.

    SQLite would write that log over the file, whatever it is: the file must be kept, and another put in its place.
    """
    header = read_header(path)
    if header.is_wal and not header.page_size:
        raise NotADatabaseError(
            f"{path} is no database without the log beside it", hint="restore with --replace, which keeps both"
        )
    return header


def open_regular(path: str) -> int:
    """Open the file at `path` for reading; the caller closes the descriptor. Never waits, as a FIFO would make it.

    Raises `SourceUnusableError` for what is no regular file, and OSError.
    """
    _reject_odd_file(path, os.stat(path))  # before `open`, which is enough to start a watchdog or to rewind a tape
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _reject_odd_file(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reject_odd_file(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise SourceUnusableError(f"{path} is a directory", hint="give the path of the database file inside it")
    if path.endswith(("-wal", "-shm", "-journal")):
        raise SourceUnusableError(
            f"{path} is a file that SQLite keeps beside a database, not a database",
            hint="give the database itself; what is in its log is backed up with it",
        )
    if not stat.S_ISREG(status.st_mode):
        raise SourceUnusableError(f"{path} is not a regular file", hint="give the path of an SQLite database file")


def _with_content(file: str) -> dict[str, int]:
    """Sizes of the log and the journal beside `file`, without empty ones, which SQLite ignores."""
    sizes = {beside: _size_beside(beside) for beside in (f"{file}-wal", f"{file}-journal")}
    return {beside: size for beside, size in sizes.items() if size}


def _size_beside(beside: str) -> int:
    """The size of a file that SQLite would open; 0 for none. Raises `SourceUnusableError` unless it is regular."""
    try:
        status = os.lstat(beside)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            return 0
        raise
    if not stat.S_ISREG(status.st_mode):
        raise SourceUnusableError(
            f"{beside} is {_kind(status.st_mode)}: SQLite keeps a regular file of that name beside the database",
            hint="find out what put it there and move it away; nothing was opened",
        )
    return status.st_size


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
}


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def _beginning(log: str) -> bytes:
    """The header of a log, as far as it goes. A log carries no locks, so it may be closed at any time."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, LOG_HEADER_BYTES, 0)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return b""  # the application closed the database meanwhile
    except OSError as error:
        raise unreadable(log, error) from error


class HeldLock(NamedTuple):
    """A lock of another process: first byte, number of bytes (0 for up to the end), process id (0 if it is hidden)."""

    start: int
    length: int
    process: int


def conflicting_lock(descriptor: int, kind: int, start: int, length: int) -> HeldLock | None:
    """A lock of another process that excludes one of `kind`, F_RDLCK or F_WRLCK, on a range of an open file.

    Raises OSError where the file system has no locks.
    """
    asked = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
    found, _, first, held, process = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if found == fcntl.F_UNLCK else HeldLock(first, held, process)


def _is_reserved(descriptor: int) -> bool:
    """Whether a process holds the lock of SQLite's writers on the open main file."""
    return conflicting_lock(descriptor, fcntl.F_WRLCK, *_RESERVED_LOCK) is not None


def _is_empty(descriptor: int) -> bool:
    return os.fstat(descriptor).st_size <= _MOST_BYTES_OF_EMPTY_FILE


def _empty(path: str, left: dict[str, int], *, is_being_created: bool) -> BackupdError:
    """The error for an empty main file. With a journal beside it, it may also be a first transaction in progress."""
    if is_being_created and not any(name.endswith("-wal") for name in left):
        return BusyError(
            f"{path} is being created: the application's first transaction is not committed yet",
            hint="try again when it is",
        )
    return NotADatabaseError(f"{path} is empty, {_only_copy(left)}", hint=_how_to_save(left))


def _only_copy(left: dict[str, int]) -> str:
    names = " and ".join(f"{PurePath(name).name} ({size} bytes)" for name, size in left.items())
    return (
        f"and {names} beside it may hold the only copy of committed rows: SQLite deletes such files when it opens "
        "the database, so backupd did not open it"
    )


def _how_to_save(left: dict[str, int]) -> str:
    return (
        f"copy {' and '.join(left)} to a safe place before the application opens the database; then see "
        '"A log without its database" in docs/restore.md'
    )


def unreadable(path: str, error: OSError) -> SourceUnusableError:
    """Translate an error of the system about the source database into one of ours."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return missing_database(path)
    hint = "check the disk and the system log"
    if isinstance(error, PermissionError):
        hint = f"backupd runs as uid {os.geteuid()}; run it as the owner of the file, or as root"
    return SourceUnusableError(f"database {path} cannot be read: {error.strerror}", hint=hint)


_READ_BYTES = 1 << 20


_BLOCK_BYTES = 512


_SLOWEST_BYTES_PER_SECOND = 10e6


_LARGEST_HOLE_BYTES = 16 << 30


_DENSEST = 20
"""How many times as much as it takes of the disk a database may hold: on file systems that compress, 5 is a lot."""


def opening_seconds(path: str) -> float:
    """How long SQLite may take to open the database: it may have to read the whole log first, from a slow disk."""
    return _log_bytes(path) / _SLOWEST_BYTES_PER_SECOND


def _log_bytes(path: str) -> int:
    """The space on disk of the log beside the database."""
    try:
        return os.stat(f"{path}-wal").st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


def reject_sparse_image(path: str, image_bytes: int) -> None:
    """Refuse an image that is nearly all a hole, which would take hours to read. Raises `SourceUnusableError`.

    Accepts one on a file system that compresses, or that does not say how much space a file takes.
    """
    stored_bytes = os.stat(path).st_blocks * _BLOCK_BYTES
    if stored_bytes and image_bytes > _LARGEST_HOLE_BYTES + _DENSEST * (stored_bytes + _log_bytes(path)):
        raise SourceUnusableError(
            f"{path} says that it has {image_bytes >> 30} GiB, and takes {stored_bytes >> 10} KiB on the disk: nearly "
            "all of it is a hole",
            hint="find out what made the file so large; VACUUM INTO writes a copy of what is really in it",
        )


def warm_file_cache(path: str) -> None:
    """Read the whole file into the cache, so that no time under SQLite's lock is spent waiting for the disk.

    Must not be called while this process has a connection to it: closing the file drops SQLite's POSIX locks on it.
    Raises `SourceUnusableError`.
    """
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            buffer = bytearray(_READ_BYTES)
            while file.readinto(buffer):
                pass
    except OSError as error:
        raise unreadable(path, error) from error
