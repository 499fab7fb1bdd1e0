"""The files beside a database: SQLite creates none here that the application could not write, and deletes none.

To read a database in WAL mode, SQLite needs `-wal` and `-shm`, and creates those that are missing, even for a read-only
connection. They get the owner of this process; root gives them to the owner of the database afterwards, and continues
if that fails. The application, whose uid is that of the database, can then no longer write: "attempt to write a
readonly database". Checking before SQLite opens the database is not enough: the application deletes both files
whenever it closes its last connection.

So SQLite opens files through a function of ours, by its own means for that (xSetSystemCall). A side file that is
missing appears in one step, empty, with owner and mode of the database; or, where that is not possible, not at all, and
SQLite reports that it cannot open the database. Existing files are opened as usual: SQLite holds a SHARED lock on the
database by then, and no other connection deletes them before that lock is released.

This concerns the files that SQLite would create while it reads a live database. Which files beside a restored one hold
content that SQLite would apply to it is for `restore` to say.
Source: https://www.sqlite.org/src/file/src/os_unix.c (robust_open, robustFchown), wal.c (sqlite3WalClose).
"""

from __future__ import annotations

import errno
import os
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
"""Why a side file was not created since the last call of `guard`, by the real path of the database."""


def guard(path: str) -> None:
    """Let SQLite create side files of the database at `path` only as files of its owner, in this process.

    Must be called before each connection to a live database. Costs one `stat` where this process is that owner. Raises
    OSError when there is no such file, and `SourceUnusableError` when SQLite cannot be kept from creating files.
    """
    status = os.stat(path)
    _refusals.pop(_real(path), None)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        try:
            _install()
        except (ImportError, MemoryError, OSError, apsw.Error) as error:
            # Systems that forbid generating code at run time have no callbacks.
            raise _refusal(path, "-wal", status, f"SQLite cannot be kept from making it: {error}") from error


def refusal(path: str, error: apsw.Error) -> SourceUnusableError | None:
    """Return why a side file of the database `path` was not created, if SQLite failed with `error` because of that."""
    return _refusals.get(_real(path)) if isinstance(error, apsw.CantOpenError) else None


def reject_foreign_files(path: str) -> None:
    """Raise `SourceUnusableError` where a new file beside the database at `path` could not belong to its owner.

    Call this before a write, which surely creates one. Leaves nothing behind, and accepts a directory in which no file
    can be created at all.
    """
    status = os.stat(path)
    try:
        with suppress(OSError), _file_of_owner(os.path.dirname(_real(path)), status):
            pass
    except _NotOwnersError as error:
        raise _refusal(path, "-journal", status, str(error)) from error


class _NotOwnersError(Exception):
    """The file system or the kernel does not let this process create files of the database's owner."""


@cache
def _install() -> None:
    """Replace SQLite's `open` by our function."""
    import ctypes  # noqa: PLC0415  (takes milliseconds, and most processes are the owner)

    _set_system_call("open", _open, ctypes.c_int, ctypes.c_int)


@cache
def keep_sqlite_from_deleting() -> None:
    """Take from SQLite, in a process that only reads, the means to delete the files beside a database. Repeatable.

    `database_files.examine_files` refuses wherever SQLite would delete them; this guards against a main file that is
    emptied a moment later.
    """

    def unlink(path: bytes) -> int:
        if path.endswith(_SUFFIXES):
            raise PermissionError(errno.EPERM, "kept")
        os.unlink(path)
        return 0

    _set_system_call("unlink", unlink)


_system_calls: list[object] = []  # SQLite has only their addresses


def _set_system_call(name: str, function: Callable[..., int], *more: Any) -> None:
    """Let SQLite call `function`, with a path and arguments of the C types `more`, in place of a system call."""
    import ctypes  # noqa: PLC0415

    def call(path: bytes, *arguments: int) -> int:
        try:
            return function(path, *arguments)
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
        except BaseException:  # noqa: BLE001  (SQLite would take an exception in a callback for success)
            ctypes.set_errno(errno.EIO)
        return -1

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *more, use_errno=True)(call)
    _system_calls.append(callback)
    # It inherits everything from the default VFS, whose system calls are reached through it.
    vfs = apsw.VFS("backupd-calls", base="")
    vfs.xSetSystemCall(name, ctypes.cast(callback, ctypes.c_void_p).value or 0)
    vfs.unregister()


def _open(path: bytes, flags: int, mode: int) -> int:
    """Open a file for SQLite, like the system call; `_make` creates the files beside a database."""
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
        # SQLite then tries to open it without creating it, and finds that it is missing.
        raise FileNotFoundError(errno.ENOENT, str(error)) from error
    return os.open(path, flags & ~os.O_CREAT)


def _make(path: bytes, database: os.stat_result) -> None:
    """Create an empty side file with the owner and the mode of `database`; one that appears meanwhile stays."""
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
    """Create an empty file in `directory` with the owner and mode of `database`, which is removed at the end.

    Yields a path to link from, and the descriptor of the directory. The file has no name where the file system has such
    files. Raises `_NotOwnersError` and OSError.
    """
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temporary: bytes | None = None
        try:
            descriptor = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError:
            temporary = os.path.join(directory, f".backupd-{os.urandom(8).hex()}".encode())
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
    """Set owner, group and mode of an empty file to those of `database`. Raises `_NotOwnersError`.

    The group may differ where it has no right to write the database.
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
            f"writing to {path} as uid {us} would create files beside it that its owner, uid {owner}, cannot write: "
            f"they cannot be given to {owner}:{group} ({reason})",
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
