"""The files beside a database: SQLite makes none that the application could not write, and deletes none here.

To read a database in WAL mode, SQLite needs `-wal` and `-shm`, and makes those that are missing, even for a read-only
connection. They get the owner of this process; root gives them to the owner of the database afterwards, and goes on if
that fails. The application, whose uid is that of the database, can then write nothing any more: "attempt to write a
readonly database". To look before SQLite opens the database is not enough: the application deletes both files
whenever it closes its last connection.

So SQLite opens files through a function of ours here, by its own means for that (xSetSystemCall). A side file that is
missing appears in one step, empty, with owner and mode of the database; or, where that cannot be, not at all, and
SQLite reports that it cannot open the database. Files that are there are opened as ever: SQLite holds a SHARED lock on
the database by then, and no other connection deletes them before that lock is released.
Source: https://www.sqlite.org/src/file/src/os_unix.c (robust_open, robustFchown), wal.c (sqlite3WalClose).
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import apsw

from backupd.errors import SourceUnusableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SUFFIXES = (b"-wal", b"-shm", b"-journal")
_GROUP_WRITES = 0o020
_PERMISSIONS = 0o777
_refusals: dict[bytes, SourceUnusableError] = {}
"""Why a side file of a database, by its real path, was not made, since `guard` was called for it."""


def guard(path: str) -> None:
    """Have SQLite make side files of the database at `path` only as files of its owner, from now on in this process.

    To be called before each connection to a live database. Costs one `stat` where this process is that owner. Raises
    OSError when there is no such file, and `SourceUnusableError` when SQLite cannot be kept from making files.
    """
    status = os.stat(path)
    _refusals.pop(_real(path), None)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        try:
            _install()
        except (ImportError, MemoryError, OSError, apsw.Error) as error:
            # Systems that forbid to make code at run time have no callbacks.
            raise _refusal(path, "-wal", status, f"SQLite cannot be kept from making it: {error}") from error


def refusal(path: str, error: apsw.Error) -> SourceUnusableError | None:
    """Why SQLite ended with `error` at the database `path`, if it was because of a side file that may not be made."""
    return _refusals.get(_real(path)) if isinstance(error, apsw.CantOpenError) else None


def reject_foreign_files(path: str) -> None:
    """Raise `SourceUnusableError` where a file beside the database at `path` could not be one that its owner can write.

    For what will surely make one. Leaves nothing, and says nothing of files that cannot be made at all.
    """
    status = os.stat(path)
    try:
        with suppress(OSError), _file_of_owner(os.path.dirname(_real(path)), status):
            pass
    except _NotOwnersError as error:
        raise _refusal(path, "-journal", status, str(error)) from error


class _NotOwnersError(Exception):
    """The file system, or the kernel, does not let this process make files of the database's owner."""


@cache
def _install() -> None:
    """Put our function in the place of SQLite's `open`."""
    import ctypes  # noqa: PLC0415  (takes milliseconds, and most processes are the owner)

    _set_system_call("open", _open, ctypes.c_int, ctypes.c_int)


@cache
def keep_sqlite_from_deleting() -> None:
    """Take from SQLite, in this process, the means to delete what lies beside a database. For processes that only look.

    `files.look` refuses wherever SQLite would; this is for a main file that is emptied a moment later. Repeatable.
    """

    def unlink(path: bytes) -> int:
        if path.endswith(_SUFFIXES):
            raise PermissionError(errno.EPERM, "kept")
        os.unlink(path)
        return 0

    _set_system_call("unlink", unlink)


_system_calls: list[object] = []  # SQLite has only their addresses


def _set_system_call(name: str, function: Callable[..., int], *more: Any) -> None:
    """Have SQLite call `function`, with a path and `more` types of C, in the place of a system call, for good."""
    import ctypes  # noqa: PLC0415

    def call(path: bytes, *arguments: int) -> int:
        try:
            return function(path, *arguments)
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
        except BaseException:  # noqa: BLE001  (an exception cannot pass through SQLite, which would see a success)
            ctypes.set_errno(errno.EIO)
        return -1

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *more, use_errno=True)(call)
    _system_calls.append(callback)
    # It inherits everything from the default VFS, whose system calls are reached through it.
    vfs = apsw.VFS("backupd-calls", base="")
    vfs.xSetSystemCall(name, ctypes.cast(callback, ctypes.c_void_p).value or 0)
    vfs.unregister()


def _open(path: bytes, flags: int, mode: int) -> int:
    """`open`, for SQLite; what it would make beside a database is made by `_make`."""
    suffix = next((suffix for suffix in _SUFFIXES if path.endswith(suffix)), None)
    if suffix is None or not flags & os.O_CREAT:
        return os.open(path, flags, mode)
    with suppress(FileNotFoundError):
        return os.open(path, flags & ~os.O_CREAT)
    database = path.removesuffix(suffix)
    status = os.stat(database)
    try:
        _make(path, status)
    except _NotOwnersError as error:
        _refusals[database] = _refusal(os.fsdecode(database), suffix.decode(), status, str(error))
        # SQLite then tries to open it without making it, and finds that it is not there.
        raise FileNotFoundError(errno.ENOENT, str(error)) from error
    return os.open(path, flags & ~os.O_CREAT)


def _make(path: bytes, database: os.stat_result) -> None:
    """Make an empty side file with the owner and the mode of `database`; one that appears meanwhile stays."""
    directory, name = os.path.split(path)
    with _file_of_owner(directory, database) as (source, parent), suppress(FileExistsError):
        try:
            # With a descriptor Python asks the kernel to follow /proc/self/fd/N to the file.
            os.link(source, name, dst_dir_fd=parent)
        except FileExistsError:
            raise
        except OSError:  # no hard links, or none to files of others: as SQLite does it, in two steps
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent)
            try:
                _give(descriptor, database, parent)
            except _NotOwnersError:
                os.unlink(name, dir_fd=parent)
                raise
            finally:
                os.close(descriptor)


@contextmanager
def _file_of_owner(directory: bytes, database: os.stat_result) -> Iterator[tuple[str | bytes, int]]:
    """An empty file in `directory` with the owner and mode of `database`, gone at the end.

    Gives a path to link from, and the descriptor of the directory. Without a name, where the file system has such
    files. Raises `_NotOwnersError` and OSError.
    """
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temporary: bytes | None = None
        try:
            descriptor = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError:
            temporary = os.path.join(directory, f".backupd-{secrets.token_hex(8)}".encode())
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _give(descriptor, database, parent)
            yield temporary or f"/proc/self/fd/{descriptor}", parent
        finally:
            os.close(descriptor)
            if temporary is not None:
                os.unlink(temporary)
    finally:
        os.close(parent)


def _give(descriptor: int, database: os.stat_result, parent: int) -> None:
    """Give an empty file the owner, the group and the mode of `database`. Raises `_NotOwnersError`.

    The group may be another where it does not write the database.
    """
    with suppress(OSError):  # where the mount decides; and before the owner, who alone may do it afterwards
        os.fchmod(descriptor, database.st_mode & _PERMISSIONS)
    reason = ""
    for uid, gid in ((-1, database.st_gid), (database.st_uid, -1)):
        made = os.fstat(descriptor)
        if (uid in {-1, made.st_uid}) and (gid in {-1, made.st_gid}):
            continue  # some file systems give every file the same owner, and permit no change
        try:
            os.fchown(descriptor, uid, gid)
        except OSError as error:
            reason = error.strerror or str(error)
    made = os.fstat(descriptor)
    group_writes = database.st_mode & os.fstat(parent).st_mode & _GROUP_WRITES
    if made.st_uid != database.st_uid or (made.st_gid != database.st_gid and group_writes):
        raise _NotOwnersError(reason.lower() or "it keeps another owner")


def _refusal(path: str, suffix: str, status: os.stat_result, reason: str) -> SourceUnusableError:
    owner, group, us = status.st_uid, status.st_gid, os.geteuid()
    as_owner = f'run backupd as that user (user: "{owner}:{group}" in Compose, or run_as_owner = true), or as root'
    if suffix == "-journal":
        return SourceUnusableError(
            f"writing to {path} as uid {us} would make files beside it that its owner, uid {owner}, cannot write: they "
            f"cannot be given to {owner}:{group} ({reason})",
            hint=f"{as_owner} where root may chown; or restore to a file with --to FILE",
        )
    return SourceUnusableError(
        f"{path} is in WAL mode and no process has it open: reading it as uid {us} would leave -wal and -shm files "
        f"that its owner, uid {owner}, cannot write, since they cannot be given to {owner}:{group} ({reason})",
        hint=f"{as_owner} where root may chown; or keep the application running, which makes these files itself",
    )


def _real(path: str) -> bytes:
    """The path by which SQLite opens the database."""
    return os.fsencode(os.path.realpath(path))
