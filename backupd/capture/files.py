"""The files of a database, looked at before SQLite opens them: looking must not destroy.

Beside a main file that is empty, SQLite takes a log or a journal for what an older database left, and deletes it, even
through a read-only connection. A FIFO by one of its names makes it wait for ever. Whatever opens a database with SQLite
calls `read_header` first. What SQLite reads without harm is not refused here.
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
from typing import TYPE_CHECKING, Self

from backupd.capture.foreign import HEADER_BYTES, LOOKED_AT_BYTES, MAGIC, why_unread
from backupd.errors import BusyError, NotADatabaseError, SourceUnusableError, missing_database
from backupd.format import is_page_size

if TYPE_CHECKING:
    from backupd.errors import BackupdError

LOG_HEADER_BYTES = 32
FLOCK = "@hhqqi4x"
"""`struct flock` of Linux on 64-bit machines: type, whence, start, length, process."""
LOCK_BYTES = (1 << 30, 512)
"""Start and length of what SQLite locks in a database. Source: https://www.sqlite.org/src/file/src/os_unix.c."""

_WRITE_VERSION, _READ_VERSION = 18, 19
_WAL_VERSION = 2
_LOG_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_MOST_BYTES_OF_EMPTY_FILE = 1  # SQLite itself writes one byte into an empty file on some systems, see `unixFileSize`
_RESERVED_LOCK = ((1 << 30) + 1, 1)


@dataclass(frozen=True, slots=True)
class Files:
    """How the main file (at most `LOOKED_AT_BYTES`; none if SQLite takes it for empty) and the log beside it begin."""

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


def look(path: str) -> Files:
    """What lies at `path` and beside it. Never waits, and changes nothing.

    Raises `NotADatabaseError` for an empty main file beside a log or journal with content, `BusyError` while that is
    the application's first transaction, and `SourceUnusableError` for what is missing, unreadable or no regular file.
    Must come before any connection of this process is open: closing the file drops SQLite's POSIX locks on it.
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
                if log or head[_READ_VERSION : _READ_VERSION + 1] == bytes([_WAL_VERSION]):
                    _size_beside(f"{file}-shm")
                return Files(head, log)
            if left:
                is_settled = not _is_reserved(descriptor) and _with_content(file) == left
                raise _empty(path, left, is_being_created=not (is_settled and _is_empty(descriptor)))
            return Files(b"", b"")
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        if left := _with_content(file):
            raise SourceUnusableError(f"{path} does not exist, {_told(left)}", hint=_how_to_save(left)) from error
        raise unreadable(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class Header:
    """What page 1 says of the database.

    Source: https://www.sqlite.org/fileformat2.html#the_database_header.
    """

    is_wal: bool
    """Whether SQLite opens it in WAL mode."""
    page_size: int
    """0 for an empty file, and where SQLite has to look for page 1 in the log."""
    writer_version: int
    """SQLITE_VERSION_NUMBER of the library that changed page 1 last; 0 for an empty file."""
    page_count: int = 0
    """What page 1 says of the size; 0 where SQLite takes the length of the file for that."""
    is_read_only: bool = False
    """Whether the format is one that SQLite reads and does not write: a later one, or one that was made so."""

    @classmethod
    def in_page(cls, head: bytes, *, is_wal: bool, page_size: int) -> Self:
        """The header that page 1 begins with."""
        # An SQLite before 3.7.0 changes the counter and leaves the size, and the counter that the size is valid for.
        page_count = int.from_bytes(head[28:32], "big") if head[24:28] == head[92:96] else 0
        writer_version = int.from_bytes(head[96:100], "big")
        return cls(is_wal, page_size, writer_version, page_count, head[_WRITE_VERSION] > _WAL_VERSION)

    @property
    def sqlite_version(self) -> str:
        """The version as people write it, `3.45.1`; empty for an empty file."""
        number = self.writer_version
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else ""


def read_header(path: str) -> Header:
    """Look at the files before SQLite does, for how to open them: what is captured, `source.read_pinned_header` says.

    Raises what `look` raises, and `NotADatabaseError` for what SQLite would refuse. Must come before any
    connection of this process is open, as `look` must.
    """
    found = look(path)
    if found.is_log_valid and not _is_database(found.head):
        return Header(is_wal=True, page_size=0, writer_version=0)  # SQLite takes page 1 from the log, if it is there
    header = header_of(path, found.head)
    return replace(header, is_wal=True) if found.has_log else header


def read_header_to_write(path: str) -> Header:
    """`read_header` before a restore into the file. Raises `NotADatabaseError` also where page 1 is in the log alone.

    SQLite would write the log over whatever the file is: it has to be kept, and another file put in its place.
    """
    header = read_header(path)
    if header.is_wal and not header.page_size:
        raise NotADatabaseError(
            f"{path} is no database without the log beside it", hint="restore with --replace, which keeps both"
        )
    return header


def header_of(path: str, head: bytes) -> Header:
    """The header that `head`, the first bytes of the file at `path`, begins with. Raises `NotADatabaseError`.

    Versions that SQLite reads are no reason: those above 2 for writing make the database read-only.
    """
    if not head:
        return Header(is_wal=False, page_size=0, writer_version=0)
    page_size = page_size_of(head)
    if page_size is None or not _is_database(head):
        raise why_unread(path, head)
    return Header.in_page(head, is_wal=head[_READ_VERSION] == _WAL_VERSION, page_size=page_size)


def _is_database(head: bytes) -> bool:
    """Whether SQLite reads a database that begins like this. Source: https://www.sqlite.org/src/file/src/btree.c."""
    return page_size_of(head) is not None and head[_READ_VERSION] <= _WAL_VERSION


def page_size_of(head: bytes) -> int | None:
    """The page size in the header that `head` begins with; None where there is no valid one."""
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        return None
    page_size = int.from_bytes(head[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    return page_size if is_page_size(page_size) else None


def open_regular(path: str) -> int:
    """A descriptor to read the file at `path`, for the caller to close. Never waits, as a FIFO would make it.

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
    """Log and journal beside `file` that are not empty, with their sizes: SQLite takes an empty one for none."""
    sizes = {beside: _size_beside(beside) for beside in (f"{file}-wal", f"{file}-journal")}
    return {beside: size for beside, size in sizes.items() if size}


def _size_beside(beside: str) -> int:
    """The size of a file that SQLite would open; 0 for none. Raises `SourceUnusableError` for what is no file."""
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
    """How a log begins. It carries no locks, so that it may be closed at any time."""
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


def _is_reserved(descriptor: int) -> bool:
    """Whether a process holds the lock of SQLite's writers on the open main file."""
    asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, *_RESERVED_LOCK, 0)
    kind: int = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _is_empty(descriptor: int) -> bool:
    return os.fstat(descriptor).st_size <= _MOST_BYTES_OF_EMPTY_FILE


def _empty(path: str, left: dict[str, int], *, is_being_created: bool) -> BackupdError:
    """The error for an empty main file. In rollback mode, that with a journal is how a first transaction looks too."""
    if is_being_created and not any(name.endswith("-wal") for name in left):
        return BusyError(
            f"{path} is being created: the application's first transaction is not committed yet",
            hint="try again when it is",
        )
    return NotADatabaseError(f"{path} is empty, {_told(left)}", hint=_how_to_save(left))


def _told(left: dict[str, int]) -> str:
    names = " and ".join(f"{PurePath(name).name} ({size} bytes)" for name, size in left.items())
    return (
        f"and {names} beside it may hold the only copy of committed rows: SQLite deletes what lies there when it opens "
        "the database, so backupd did not open it"
    )


def _how_to_save(left: dict[str, int]) -> str:
    return (
        f"copy {' and '.join(left)} to a safe place before the application opens the database; then see "
        '"A log without its database" in docs/restore.md'
    )


def unreadable(path: str, error: OSError) -> SourceUnusableError:
    """Our error for one of the system's about the source database."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return missing_database(path)
    hint = "check the disk and the system log"
    if isinstance(error, PermissionError):
        hint = f"backupd runs as uid {os.geteuid()}; run it as the owner of the file, or as root"
    return SourceUnusableError(f"database {path} cannot be read: {error.strerror}", hint=hint)
