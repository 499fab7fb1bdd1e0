"""The files of a restore beside a database: its locked intent file, a partial image, and the old file's second name.

The database's directory may belong to another user, who can give any name in it to their own file at any moment. So
files are created with `O_EXCL`, and an existing file counts only if this user or root created it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from backupd.errors import AnotherRunError, BusyError, TargetUnwritableError
from backupd.system.files import flush_directory, try_lock
from backupd.system.trust import is_foreign, is_writable_by_others, status_of

if TYPE_CHECKING:
    from pathlib import Path

_PRIVATE_MODE = 0o600
_FOR_OTHERS = 0o077
_TRIES = 5
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK because another user may put a named pipe in the file's place in this moment.
_OLD = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IMAGE = "image"


def why_not_ours(status: os.stat_result) -> str | None:
    """Return why another user may have written a file; None for one of this user or root that no other may write."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if is_foreign(status):
        return f"it belongs to uid {status.st_uid}"
    return "other users may write it" if is_writable_by_others(status) else None


def open_ours(file: Path, database: Path) -> int | None:
    """Open and lock an existing `file`; None when there is none, or `why_not_ours` has a reason.

    Raises `AnotherRunError` when another restore of `database` holds it, and OSError.
    """
    status = status_of(str(file))
    if status is None or why_not_ours(status) is not None:
        return None
    try:
        descriptor = os.open(file, _OLD)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor, file, database)
        if why_not_ours(os.fstat(descriptor)) is None and is_named(descriptor, file):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def make_locked(file: Path, database: Path) -> int:
    """Create an empty `file` for this user alone, open and locked. A file that has the name is moved out of the way.

    Raises `AnotherRunError` as `open_ours`, `BusyError` when another program keeps taking the name, and OSError.
    """
    for _ in range(_TRIES):
        try:
            descriptor = os.open(file, _NEW, _PRIVATE_MODE)
        except FileExistsError:
            with suppress(FileNotFoundError):
                file.rename(file.with_name(f"{file.name}.ignored-{secrets.token_hex(4)}"))
            continue
        try:
            _lock(descriptor, file, database)
            if is_named(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise BusyError(f"another program takes the name {file} again and again", hint=f"find out who writes {file.parent}")


def _lock(descriptor: int, file: Path, database: Path) -> None:
    if not try_lock(descriptor, file):
        raise _another_run(database)


def _another_run(database: Path) -> AnotherRunError:
    return AnotherRunError(f"another restore to {database} is running", hint="wait until it has finished")


def make_partial(target: Path) -> tuple[Path, int]:
    """Create an empty file for a restore to `target` to write first; return it and a descriptor that holds its lock.

    It lies in its own directory beside `target`, which no other user can enter: they can neither open the file, nor put
    files beside it that SQLite would apply to it. The directory has the same name each time, so that the next restore
    takes over what a killed one left; only where another user has that name, it gets a further one.

    Raises `AnotherRunError` when another restore to `target` is running, `TargetUnwritableError`, and OSError.
    """
    directory = usual = partial_directory(target)
    for _ in range(_TRIES):
        try:
            descriptor = _image_in(directory, target)
        except FileNotFoundError:
            continue  # another restore has just ended, and removed the directory
        if descriptor is not None:
            return directory / _IMAGE, descriptor
        directory = usual.with_name(f"{usual.name}-{secrets.token_hex(4)}")
    if directory == usual:
        raise _another_run(target)
    raise TargetUnwritableError(
        f"no private directory can be made beside {target}",
        hint=f"another program takes its names again and again: find out who writes {target.parent}",
    )


def _image_in(directory: Path, target: Path) -> int | None:
    """Open the empty, locked image in `directory`, which is created if needed; None where another user has that name.

    Raises FileNotFoundError where another restore removes either of them meanwhile.
    """
    is_new = True
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        is_new = False
    if not is_new and not _is_private(directory):
        return None
    opened = os.open(directory, _DIRECTORY)
    try:
        descriptor = os.open(_IMAGE, _OLD | os.O_CREAT, _PRIVATE_MODE, dir_fd=opened)
        try:
            _lock(descriptor, directory / _IMAGE, target)
            if not os.path.samestat(os.fstat(descriptor), os.stat(_IMAGE, dir_fd=opened, follow_symlinks=False)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))  # noqa: TRY301
            _reject_another_maker(opened, descriptor, directory)
            _remove_beside_image(opened)
            os.ftruncate(descriptor, 0)
        except (AnotherRunError, FileNotFoundError):
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            os.unlink(_IMAGE, dir_fd=opened)  # a restore does not begin without locks
            directory.rmdir()
            raise
    finally:
        os.close(opened)
    return descriptor


def _remove_beside_image(opened: int) -> None:
    """Remove the files that SQLite or a test for hard links left: SQLite would apply a journal to the next image."""
    for name in {*os.listdir(opened)} - {_IMAGE}:
        os.unlink(name, dir_fd=opened)


def _is_private(directory: Path) -> bool:
    """Whether this is a directory of this user that no other can enter. Raises FileNotFoundError."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _FOR_OTHERS


def _reject_another_maker(opened: int, descriptor: int, directory: Path) -> None:
    # Some file systems give all files another owner: then both of these have the same.
    if os.fstat(opened).st_uid != os.fstat(descriptor).st_uid:
        raise TargetUnwritableError(
            f"another user put a directory in the place of {directory}", hint=f"find out who writes {directory.parent}"
        )


def partial_directory(target: Path) -> Path:
    """The directory of `make_partial`, always in the same place, so that none is ever left over."""
    return target.with_name(f".{target.name}.backupd-partial")


def remove_abandoned(directory: Path, target: Path) -> None:
    """Remove the directory that a killed restore to `target` left, with its content, unless it is another user's.

    Raises `AnotherRunError` when that restore still runs, and OSError.
    """
    status = status_of(str(directory))
    if status is None or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    opened = os.open(directory, _DIRECTORY)
    try:
        if os.path.samestat(os.fstat(opened), status):
            with suppress(FileNotFoundError):
                descriptor = os.open(_IMAGE, _OLD, dir_fd=opened)
                try:
                    _lock(descriptor, directory / _IMAGE, target)
                    os.unlink(_IMAGE, dir_fd=opened)
                finally:
                    os.close(descriptor)
            _remove_beside_image(opened)
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass  # another restore has removed it
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise _another_run(target) from error  # it has just taken it over
    finally:
        os.close(opened)


def is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is the name of the open file."""
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


class Replacement(msgspec.Struct, frozen=True):
    """Names in the directory of a database, and how they change when its file is replaced.

    `image` (a path relative to it), whose inode is `inode`, becomes the database; the old file keeps the name `aside`;
    `moves` are (from, to) of its log and journal, as far as there are any.
    """

    image: str
    inode: int
    aside: str
    moves: tuple[tuple[str, str], ...]


def put_in_place(database: Path, replacement: Replacement) -> None:
    """Give the new file the name of the database. Raises `TargetUnwritableError` and OSError, and may be half done."""
    directory = database.parent
    _keep_aside(database, directory / replacement.aside)
    for old, new in replacement.moves:
        with suppress(FileNotFoundError):
            (directory / old).rename(directory / new)
    flush_directory(directory)
    (directory / replacement.image).rename(database)
    if not _has_inode(database, replacement.inode):
        raise TargetUnwritableError(
            f"another user has put a file in the place of {database}",
            hint=f"find out who writes {directory}; the old file is kept as {replacement.aside}",
        )
    flush_directory(directory)


def take_back(database: Path, replacement: Replacement) -> bool:
    """Give the old files their names again; False when the new file, or another one since, is in place and stays there.

    The second name is given first, so while it leads to another file than the database's name, it has the old file.
    """
    directory = database.parent
    aside = directory / replacement.aside
    if _has_inode(database, replacement.inode):
        return False
    if aside.exists():
        if not database.exists() or not aside.samefile(database):
            return False
        aside.unlink()
    for old, new in replacement.moves:
        # A log of an application that was started since is newer.
        if (directory / new).exists() and not (directory / old).exists():
            (directory / new).rename(directory / old)
    flush_directory(directory)
    return True


def _keep_aside(database: Path, aside: Path) -> None:
    """A second name for the old file, if there is one."""
    try:
        os.link(database, aside)
    except FileNotFoundError:
        return  # there is no file to keep, only what was beside it
    except FileExistsError:
        raise
    except OSError as error:
        raise no_second_name(database, error) from error


def no_second_name(database: Path, error: OSError) -> TargetUnwritableError:
    """The error for a file system without hard links, where the name would lead nowhere, or to half a file, meanwhile.

    An application that finds no database would create an empty one.
    """
    return TargetUnwritableError(
        f"{database} cannot be kept under a second name while it is replaced: the file system of {database.parent} has "
        f"no hard links ({(error.strerror or str(error)).lower()})",
        hint=f"move it away by hand with all files whose names begin with {database.name}, and restore again",
    )


def _has_inode(file: Path, inode: int) -> bool:
    try:
        return file.stat().st_ino == inode
    except FileNotFoundError:
        return False
